"""What is to be said of a mapping that was applied: what follows, what stays, and what it makes impossible.

The records before and after are compared; what the mapping broke is told here, what the target lacks is left to
revalidation. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping

from ckpt.mapping import Mapping as Names
from ckpt.mapping import Network as Prefix
from ckpt.mapping import as_network
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.finding import Finding, Severity
from ckpt.model.network import Network, Route
from ckpt.model.process import Isolation
from ckpt.model.socket import IPPROTO_TCP, IPPROTO_UDP, Socket
from ckpt.remap_network import FLOWS, SPLIT
from ckpt.remap_translator import Translator

_LISTED = 8
_PROTOCOLS = {IPPROTO_TCP: "TCP", IPPROTO_UDP: "UDP"}
_LINK_SCOPES = ("link", "host")


def describe(mapping: Names, translator: Translator) -> Iterator[Finding]:
    """What has followed each entry, the entries that nothing has followed, and what has stayed."""
    for entry in (*mapping.addresses, *mapping.links, *mapping.ports, *mapping.macs):
        counts = translator.followed.get(str(entry))
        if counts:
            what = ", ".join(f"{name} ({number})" for name, number in counts.items())
            yield Finding(severity=Severity.OK, code="map-follows", subject=str(entry), reason=f"followed by {what}")
        else:
            yield Finding(
                severity=Severity.WARN,
                code="map-unused",
                subject=str(entry),
                reason="nothing in the image is called so",
                remedy="`ckpt inspect` shows what there is to be mapped",
            )
    for subject, why in translator.left:
        yield _left(subject, why)


def _left(subject: str, why: str) -> Finding:
    if why == SPLIT:
        return Finding(
            severity=Severity.BLOCK,
            code="map-prefix-split",
            subject=subject,
            reason=why,
            remedy="map the whole prefix, or all of the addresses in it to one other",
        )
    if why == FLOWS:
        return Finding(severity=Severity.OK, code="map-conntrack", subject=subject, reason=why)
    return Finding(
        severity=Severity.WARN,
        code="map-left",
        subject=subject,
        reason=f"{why}; it is restored as it was",
        remedy="set it again after the restore, where it is needed",
    )


def check_networks(before: Mapping[str, Network], after: Mapping[str, Network]) -> Iterator[Finding]:
    """Addresses that have become one, gateways that are out of reach, and IPsec whose peers know nothing of it."""
    for key, old in before.items():
        new = after[key]
        if old == new:
            continue
        yield from _taken(old, new)
        yield from _macs_taken(old, new)
        yield from _made_of_macs(old, new)
        yield from _gateways(old, new)
        states = sum(one != two for one, two in zip(old.ipsec.states, new.ipsec.states, strict=True))
        if states:
            yield Finding(
                severity=Severity.WARN,
                code="map-ipsec",
                subject=f"{states} IPsec states",
                reason="their addresses are mapped, and the other ends keep those that they know",
                remedy="negotiate them anew after the restore",
            )


def _taken(old: Network, new: Network) -> Iterator[Finding]:
    seen: dict[tuple[str, str], str] = {}
    for before, after in zip(old.addresses, new.addresses, strict=True):
        plain = after.address.partition("/")[0]
        # A link-local address is one of its link alone.
        place = (plain, after.ifname if after.scope in _LINK_SCOPES else "")
        rival = seen.setdefault(place, before.address)
        if rival != before.address and before.address.partition("/")[0] != rival.partition("/")[0]:
            yield Finding(
                severity=Severity.BLOCK,
                code="map-address-taken",
                subject=plain,
                reason=f"both {rival} and {before.address} of the group would be called so",
                remedy="map one of them elsewhere",
            )


def _macs_taken(old: Network, new: Network) -> Iterator[Finding]:
    """Two links that had MACs of their own and would have one; those that share one, as VLANs do, go on to."""
    seen: dict[str, str] = {}
    for before, after in zip(old.links, new.links, strict=True):
        if before.mac and after.mac and seen.setdefault(after.mac, before.mac) != before.mac:
            yield Finding(
                severity=Severity.BLOCK,
                code="map-mac-taken",
                subject=after.mac,
                reason=f"both {seen[after.mac]} and {before.mac} ({before.ifname}) of the group would be this one",
                remedy="map one of them elsewhere",
            )


def _made_of_macs(old: Network, new: Network) -> Iterator[Finding]:
    """IPv6 addresses that were made of a MAC that is mapped: they stay, since peers know the group by them."""
    links = zip(old.links, new.links, strict=True)
    moved = {one.ifname: (one.mac, two.mac) for one, two in links if one.mac != two.mac}
    for before, after in zip(old.addresses, new.addresses, strict=True):
        macs = moved.get(before.ifname, ("", ""))
        plain = before.address.partition("/")[0]
        if ":" not in plain or before.address != after.address or not all(macs):
            continue
        own, other = (_interface_id(mac or "") for mac in macs)
        address = ipaddress.IPv6Address(plain)
        if int(address) & _INTERFACE == own:
            wanted = ipaddress.IPv6Address(int(address) & ~_INTERFACE | other)
            yield Finding(
                severity=Severity.WARN,
                code="map-left",
                subject=f"{plain} of {before.ifname}",
                reason=f"it was made of the MAC {macs[0]}, which is mapped; it is restored as it was",
                remedy=f"--map-address {plain}={wanted}, unless it is known to others",
            )


_INTERFACE = (1 << 64) - 1


def _interface_id(mac: str) -> int:
    """The lower half of the addresses that a link with this MAC gives itself (modified EUI-64, RFC 4291)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return int.from_bytes(bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:], "big")


def _gateways(old: Network, new: Network) -> Iterator[Finding]:
    """Each gateway that was on a link of the group and would be on none, with how many routes lead through it."""
    near_before, near_after = _near(old.routes), _near(new.routes)
    through: dict[tuple[str, str], list[str]] = {}
    for before, after in zip(old.routes, new.routes, strict=True):
        for one, two in zip(_hops(before), _hops(after), strict=True):
            if one.gateway:
                through.setdefault((one.gateway, two.gateway), []).append(after.destination)
    for (gateway, moved), destinations in through.items():
        if _is_in(gateway, near_before) and not _is_in(moved, near_after):
            name = "it" if moved == gateway else f"it, now {moved},"
            more = f" and {len(destinations) - 1} more" if len(destinations) > 1 else ""
            yield Finding(
                severity=Severity.BLOCK,
                code="map-gateway",
                subject=f"gateway {gateway}",
                reason=f"{name} would be on no link of the group; the route {destinations[0]}{more} leads through it",
                remedy=f"map the gateway too: --map-address {gateway}=NEW, or the whole prefix",
            )


def _hops(route: Route) -> tuple[Route, ...]:
    """The route, and one like it for each of several next hops."""
    return (route, *(Route(destination=route.destination, gateway=hop.gateway) for hop in route.nexthops))


def _near(routes: Iterable[Route]) -> tuple[Prefix, ...]:
    """What is reached on a link, without a gateway."""
    found = (
        as_network(one.destination)
        for one in routes
        if one.type == "unicast" and not one.gateway and not one.nexthops and not one.nexthop_id and one.ifname
    )
    return tuple(dict.fromkeys(found))


def _is_in(gateway: str, near: Iterable[Prefix]) -> bool:
    address = ipaddress.ip_address(gateway)
    return address.is_link_local or any(address in network for network in near)


def check_sockets(before: Checkpoint, after: Checkpoint, mapping: Names) -> Iterator[Finding]:
    """Ports that two sockets would share, and what goes on under the old ones."""
    yield from _ports_taken(before, after)
    for entry in mapping.ports:
        name = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP}.get(entry.protocol)
        kept = [one for one in after.sockets if one.holds_connection and one.local and one.local.port == entry.old]
        if kept and name != IPPROTO_UDP:
            yield Finding(
                severity=Severity.OK,
                code="map-port-kept",
                subject=str(entry),
                reason=f"{len(kept)} established connections keep the port {entry.old}",
            )
        for subject in _naming(after, entry.old):
            yield Finding(
                severity=Severity.WARN,
                code="map-port-left",
                subject=subject,
                reason=f"it names the port {entry.old}, and is restored as it was",
                remedy="set it again after the restore, where it is needed",
            )
    packets = [one for one in after.sockets if one.family == "packet"]
    if mapping.links and packets and after.group.isolation is not Isolation.NETNS:
        yield Finding(
            severity=Severity.WARN,
            code="map-left",
            subject=f"{len(packets)} packet sockets",
            reason="they name links by numbers, which are other ones on another host",
            remedy="let the program open them anew",
        )


def _ports_taken(before: Checkpoint, after: Checkpoint) -> Iterator[Finding]:
    """Two that had ports of their own and would have one; those that shared theirs before go on to."""
    seen: dict[tuple[object, ...], int] = {}
    for old, new in zip(before.sockets, after.sockets, strict=True):
        if new.local is None or old.local is None or not new.local.port or new.remote is not None:
            continue
        if new.protocol not in _PROTOCOLS:
            continue
        place = (new.netns, new.family, new.protocol, new.local.port, new.local.address)
        rival = seen.setdefault(place, old.local.port)
        if rival != old.local.port:
            yield Finding(
                severity=Severity.BLOCK,
                code="map-port-taken",
                subject=f"{_PROTOCOLS[new.protocol]} {new.local}",
                reason=f"both port {rival} and port {old.local.port} of the group would be this one",
                remedy="map one of them elsewhere",
            )


def _naming(checkpoint: Checkpoint, port: int) -> Iterator[str]:
    """Rules that name a port; told from their text."""
    pattern = re.compile(rf"(?:port|dport|sport|ports|redirect to)\b[^\n]*(?<![\d.]){port}(?![\d.])|:{port}\b")
    for network in checkpoint.networks.values():
        for table in network.nftables:
            if pattern.search(table.text):
                yield f"nft table {table.family} {table.name}"
        for legacy in network.filtering.legacy_tables:
            if pattern.search(legacy.text):
                yield f"iptables table {legacy.name}"
        if any(pattern.search(service) for service in network.filtering.virtual_services):
            yield "virtual services"


def listed(sockets: Iterable[Socket], most: int | None = _LISTED) -> str:
    """Connections by their ends, the first of them; None for every one."""
    # An IPv4 connection of a socket of both families is one of IPv4 to everybody else.
    names = [f"{one.local} – {one.remote}".replace("::ffff:", "") for one in sockets]
    names = [re.sub(r"\[([\d.]+)\]", r"\1", name) for name in names]
    more = 0 if most is None else len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
