"""From records to steps: what has to be done, and in which order, to make a fresh namespace equal to a ``Network``.

Nothing here looks at a kernel. A step (`steps`) is a small record of what shall be true after it. Steps that concern
things which the kernel also makes by itself (addresses of lo, prefix routes, default rules) name the whole of what is
wanted: what is missing is then added and, for a complete record, what is too much is taken away. The differences
themselves are worked out in `differences`, from what ``kernel/apply`` has read.

The order: sysctls from which new links copy, with address configuration silenced; links, each after what it stands
on; ports into their masters; what else a link keeps; links up, addresses, routes (those on the link before those
through a gateway), rules, neighbours; the ruleset and what it tracks; and last every sysctl's own value.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import TypeVar

from ckpt.errors import UnsupportedError
from ckpt.model import fallback
from ckpt.model.bridging import NO_BRIDGING
from ckpt.model.filtering import NO_FILTERING
from ckpt.model.ipsec import NO_IPSEC
from ckpt.model.network import (
    PAIRED,
    Address,
    Link,
    Network,
    Place,
)
from ckpt.model.traffic import NO_TRAFFIC
from ckpt.model.travel import why_not
from ckpt.model.wireguard import Carrier
from ckpt.plan.steps import (
    AddIsatapRouters,
    AdjustLinks,
    BringUp,
    ChooseActive,
    CreateConntrack,
    Enslave,
    JoinMulticast,
    LoadFiltering,
    LoadNftables,
    MakeLink,
    OpenFou,
    PlaceCounterpart,
    Rename,
    SetAddresses,
    SetBridging,
    SetIpsec,
    SetLabelRoutes,
    SetNeighbours,
    SetNexthops,
    SetRoutes,
    SetRules,
    SetTeamModes,
    SetTeams,
    SettleSysctls,
    SetTokens,
    SetTraffic,
    SetWireguard,
    Step,
    TakeDown,
    WriteSysctls,
)

QUIET_NAMES: Mapping[str, str] = {"accept_dad": "0", "addr_gen_mode": "1", "accept_ra": "0", "use_tempaddr": "0"}
"""IPv6 settings while addresses are set: no duplicate address detection, no address of the kernel's own making."""

_QUIET = {
    "net/ipv6/conf/all/accept_dad": "0",
    **{f"net/ipv6/conf/default/{name}": value for name, value in QUIET_NAMES.items()},
}


def plan_network(wanted: Network, observed: Network) -> tuple[Step, ...]:
    """The steps that make the fresh namespace read as ``observed`` equal to ``wanted``.

    Raises UnsupportedError (``link-kind``) for a link that cannot be made; ``cannot_travel`` tells that beforehand.
    """
    renamed = {was: ifname for was, ifname in _loopbacks(observed, wanted) if was != ifname}
    there = {renamed.get(link.ifname, link.ifname) for link in observed.links}
    links = tuple(link for link in wanted.links if link.ifname in there or fallback.travels(link, wanted))
    names = there | {link.ifname for link in links}
    steps: list[Step] = [WriteSysctls(values=_templates(wanted, observed))]
    steps += [Rename(was=was, ifname=ifname) for was, ifname in renamed.items()]
    ordered = order_links(links)
    outside = {device.ifname for device in wanted.wireguard if device.carrier is Carrier.CALLER}
    steps += _make_links([link for link in ordered if link.ifname not in there], outside)
    ports = order_ports(links)
    # What a master is, its ports copy when they join it: it is adjusted before, and after, for what they change in it.
    masters = {link.master for link in ports}
    if masters:
        upper = tuple(link for link in ordered if link.ifname in masters)
        steps.append(AdjustLinks(links=upper, joined=False))
    if wanted.teams:
        steps.append(SetTeamModes(teams=wanted.teams))
    raising = {link.ifname for link in links if link.kind in ("bond", "team")}
    steps += [
        Enslave(ifname=link.ifname, master=link.master, below=_below(link, links) if link.master in raising else ())
        for link in ports
    ]
    if wanted.teams:
        steps.append(SetTeams(teams=wanted.teams))
    steps.append(AdjustLinks(links=ordered))
    if wanted.wireguard:
        steps.append(SetWireguard(devices=wanted.wireguard))
    steps.append(WriteSysctls(values=_devices(wanted, names)))
    steps += [BringUp(link=link, source=_source(link, wanted.addresses)) for link in ordered if link.up]
    steps += [TakeDown(link=link) for link in ordered if link.kind == "vlan" and not link.up]
    steps += [ChooseActive(link=link) for link in ordered if link.up and "active_slave" in link.options]
    if wanted.traffic != NO_TRAFFIC:
        steps.append(SetTraffic(traffic=wanted.traffic))
    if wanted.link_multicast:
        steps.append(JoinMulticast(groups=wanted.link_multicast))
    only = wanted.complete
    steps.append(SetAddresses(addresses=tuple(one for one in wanted.addresses if one.ifname in names), only=only))
    if wanted.fou:
        steps.append(OpenFou(ports=wanted.fou))
    if wanted.isatap:
        steps.append(AddIsatapRouters(routers=wanted.isatap))
    if wanted.nexthops:
        steps.append(SetNexthops(nexthops=wanted.nexthops))
    # A vxlan has an entry from its beginning, which somebody may have taken away.
    if wanted.bridging != NO_BRIDGING or (only and any(link.kind == "vxlan" for link in links)):
        steps.append(SetBridging(bridging=wanted.bridging, only=only))
    steps.append(SetRoutes(routes=wanted.routes, only=only))
    if wanted.label_routes:
        steps.append(SetLabelRoutes(routes=wanted.label_routes))
    steps.append(SetRules(rules=wanted.rules, only=only))
    # Sets before the rules that name them, rules before the flows that they follow.
    if wanted.filtering != NO_FILTERING:
        steps.append(LoadFiltering(filtering=wanted.filtering))
    steps.append(LoadNftables(tables=wanted.nftables))
    steps.append(CreateConntrack(entries=wanted.conntrack, expectations=wanted.expectations))
    if wanted.ipsec != NO_IPSEC:
        steps.append(SetIpsec(ipsec=wanted.ipsec))
    final = dict(wanted.sysctls)
    if not only:
        final = {**observed.sysctls, **final}
    mtus = {link.ifname: link.mtu for link in links if link.mtu}
    steps.append(SettleSysctls(sysctls=_of(final, names), mtus=mtus))
    # A token is taken only where router advertisements are, which the links' own sysctls say.
    tokens = {link.ifname: link.token for link in links if link.token}
    if tokens:
        steps.append(SetTokens(tokens=tokens))
    # Last: with every change of a link that has no carrier, the kernel forgets its proxies and most of its neighbours.
    steps.append(SetNeighbours(neighbours=wanted.neighbours))
    return tuple(steps)


def _loopbacks(observed: Network, wanted: Network) -> Iterable[tuple[str, str]]:
    """The name of the loopback that is there, and the one that it shall have."""
    names = [[link.ifname for link in network.links if link.kind == "loopback"] for network in (observed, wanted)]
    return zip(*names, strict=False)


def _make_links(links: Sequence[Link], outside: Container[str]) -> Iterable[Step]:
    made: set[str] = set()
    by_name = {link.ifname: link for link in links}
    room = _room(links)
    for link in links:
        if link.ifname in made:
            continue
        if reason := why_not(link):
            raise UnsupportedError(f"the link {link.ifname} cannot be made", code="link-kind", details=reason)
        made.add(link.ifname)
        other = link.counterpart
        paired = other if link.kind in PAIRED else None
        peer = by_name.get(paired.ifname) if paired and paired.place is Place.INSIDE else None
        if peer is not None:
            made.add(peer.ifname)
            peer = _roomy(peer, room)
        yield MakeLink(link=_roomy(link, room), peer=peer, from_outside=link.ifname in outside)
        if paired and paired.place is Place.CALLER:
            yield PlaceCounterpart(link=link)


def _room(links: Iterable[Link]) -> dict[str, int]:
    """The MTUs that links need which vxlans stand on: one may have a larger MTU than there is room for by now."""
    needed: dict[str, int] = {}
    for link in links:
        if link.kind == "vxlan" and link.counterpart is not None:
            below = link.counterpart.ifname
            needed[below] = max(link.mtu + _headers(link), needed.get(below, 0))
    return needed


def _roomy(link: Link, room: Mapping[str, int]) -> Link:
    """``link`` with room for all that stands on it."""
    needed = room.get(link.ifname, 0)
    return replace(link, mtu=needed) if 0 < link.mtu < needed else link


def _headers(vxlan: Link) -> int:
    """The bytes that a vxlan puts around a frame (vxlan_headroom, drivers/net/vxlan)."""
    return 70 if vxlan.options.keys() & {"group6", "local6"} else 50


def _source(link: Link, addresses: Sequence[Address]) -> Address | None:
    """What a tunnel to a group sends from: it joins that group where this is (ipgre_open, net/ipv4/ip_gre.c)."""
    remote, local = link.options.get("remote", "0.0.0.0"), link.options.get("local", "0.0.0.0")
    if link.kind != "gre" or not IPv4Address(remote).is_multicast or local == "0.0.0.0":
        return None
    below = link.counterpart.ifname if link.counterpart and link.counterpart.place is Place.INSIDE else ""
    there = [one.ifname for one in addresses if one.address.partition("/")[0] == local and below in ("", one.ifname)]
    ifname = below or next(iter(there), "")
    return Address(ifname=ifname, address=f"{local}/32", scope="link") if ifname else None


def order_links(links: Sequence[Link]) -> tuple[Link, ...]:
    """The links, each after the one it stands on inside; otherwise in their order."""
    by_name = {link.ifname: link for link in links}
    by_index = names_by_index(links)

    def below(ifname: str) -> list[str]:
        link = by_name[ifname]
        other = link.counterpart
        inside = other is not None and other.place is Place.INSIDE and link.kind not in PAIRED
        names = [other.ifname] if inside and other is not None else ring_ports(link, by_index)
        return [name for name in names if name in by_name]

    return tuple(by_name[name] for name in lowest_first(by_name, below))


_Node = TypeVar("_Node", bound=Hashable)


def lowest_first(nodes: Iterable[_Node], below: Callable[[_Node], Iterable[_Node]]) -> Iterable[_Node]:
    """The nodes, each after those ``below`` it; otherwise in their order. A circle is cut somewhere."""
    ordered: dict[_Node, None] = {}
    for node in nodes:
        waiting = {node: None}
        while waiting:
            top = next(reversed(waiting))
            under = [one for one in below(top) if one not in ordered and one not in waiting]
            if under:
                waiting[under[0]] = None
            else:
                ordered[top] = None
                del waiting[top]
    return ordered


def names_by_index(links: Iterable[Link]) -> dict[str, str]:
    """The names of links by their indices as options have them."""
    return {str(link.ifindex): link.ifname for link in links}


def ring_ports(link: Link, names: Mapping[str, str]) -> list[str]:
    """The links that an hsr stands on; ``names`` are those of all links of its namespace by index."""
    if link.kind != "hsr":
        return []
    indices = (link.options.get(option, "") for option in ("slave1", "slave2", "interlink"))
    return [names[index] for index in indices if index in names]


def _below(link: Link, links: Sequence[Link]) -> tuple[str, ...]:
    """The links inside that ``link`` stands on, the lowest first."""
    ordered = order_links([link, *(one for one in links if one.ifname != link.ifname)])
    return tuple(one.ifname for one in ordered[: ordered.index(link)])


def order_ports(links: Sequence[Link]) -> tuple[Link, ...]:
    """The ports, those of a master before that becomes a port itself, and those of one master in their order."""
    masters = {link.ifname: link.master for link in links}

    def above(link: Link) -> int:
        count, master, seen = 0, link.master, {link.ifname}
        while master and master not in seen:
            seen.add(master)
            count, master = count + 1, masters.get(master, "")
        return count

    ports = (link for link in links if link.master)
    return tuple(sorted(ports, key=lambda link: (-above(link), link.master, link.port_number)))


def _parts(key: str) -> tuple[str, str] | None:
    """The device (or ``all`` or ``default``) and the name of a per-device sysctl."""
    parts = key.split("/")
    return (parts[3], parts[4]) if len(parts) == 5 and parts[2] in ("conf", "neigh") else None


def _templates(wanted: Network, observed: Network) -> dict[str, str]:
    """What must be written before links are made: all that is not a link's own, silenced where it would speak."""
    values: dict[str, str] = {}
    for key, value in wanted.sysctls.items():
        parts, there = _parts(key), observed.sysctls.get(key)
        # A template that this kernel does not have stays away; ``cannot_travel`` says so.
        template = parts is not None and parts[0] in ("all", "default") and there is not None
        if (parts is None or template) and there != value:
            values[key] = value
    quiet = {key: value for key, value in _QUIET.items() if key in observed.sysctls}
    if not wanted.complete:
        quiet.pop("net/ipv6/conf/default/addr_gen_mode", None)  # the kernel's link-local addresses are wanted
    return values | quiet


def _devices(wanted: Network, names: set[str]) -> dict[str, str]:
    """The links' own sysctls that must be there before they are up; what would speak comes last."""
    values: dict[str, str] = {}
    for key, value in _of(wanted.sysctls, names).items():
        parts = _parts(key)
        if parts and parts[0] not in ("all", "default") and parts[1] not in (*QUIET_NAMES, "mtu", "stable_secret"):
            values[key] = value
    return values


def _of(sysctls: Mapping[str, str], names: set[str]) -> dict[str, str]:
    """Those of ``sysctls`` that are not of a link outside ``names``."""
    return {
        key: value
        for key, value in sysctls.items()
        if (parts := _parts(key)) is None or parts[0] in ("all", "default") or parts[0] in names
    }
