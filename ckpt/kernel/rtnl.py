"""Read a whole network namespace into records.

Links, addresses, routes, rules and neighbours come by rtnetlink, the rest by the modules named for it. While it is
read, changes are listened for (``watch``): what was read is returned only when there was none meanwhile, and is read
again otherwise, so that a record is never a mixture of two moments. Only what links name as their counterpart is
looked up outside, in the caller's own namespace; nothing outside is changed or read otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from ckpt.errors import CkptError, NetworkError
from ckpt.kernel import (
    beyond,
    bpf_attached,
    conntrack,
    ethtool,
    expectations,
    filtering,
    fou,
    hsr,
    isatap,
    link_multicast,
    macsec,
    nft,
    rtnl_addresses,
    rtnl_bond,
    rtnl_bridge,
    rtnl_family,
    rtnl_labels,
    rtnl_links,
    rtnl_neighbours,
    rtnl_nexthops,
    rtnl_routes,
    rtnl_rules,
    sysctl,
    team,
    wireguard,
    xfrm,
)
from ckpt.kernel.netlink import Netlink
from ckpt.kernel.netns import open_own
from ckpt.kernel.rtnl_links import LinkReader
from ckpt.kernel.rtnl_tc import TrafficReader
from ckpt.kernel.watch import Watch
from ckpt.model.network import Address, Counterpart, Neighbour, Network, Place, Route, Rule, Unread

_ATTEMPTS = 5


def read_network(netns: int, *, untouched: bool = False) -> Network:
    """All of ``netns``, as of one moment; ``untouched`` says that it was made just now.

    Raises NetworkError (``network-changing``) when it changes each time it is read.
    """
    changed: dict[str, None] = {}
    failure: Exception | None = None
    for _ in range(_ATTEMPTS):
        with Watch(netns) as watch:
            try:
                network = _read(netns, untouched)
            except (CkptError, OSError, LookupError) as error:
                # What is taken away while it is read is missed in many ways, and heard of at last a moment later.
                found = watch.changes(None)
                if failure is not None and not found:
                    raise
                failure = error
            else:
                found = watch.changes(network)
                if not found:
                    return network
        changed |= dict.fromkeys(found)
    raise NetworkError(
        "the network namespace changes faster than it can be read",
        code="network-changing",
        details=f"netlink messages seen meanwhile: {', '.join(changed)}",
        hint="stop what keeps changing links, addresses or routes and try again",
    ) from failure


def _read(netns: int, untouched: bool) -> Network:
    unread: list[Unread] = []
    with Netlink(netns=netns) as connection:
        raw = rtnl_links.read_raw(connection)
        caller, nsid = _caller_links(connection)
        reader = LinkReader(raw, caller=caller, caller_nsid=nsid)
        links = ethtool.with_settings(netns, rtnl_bond.with_orders(netns, reader.links()))
        links = hsr.with_versions(netns, links)
        names = {link.ifindex: link.ifname for link in links}
        addresses = read_addresses(connection, names)
        routes = read_routes(connection, names, unread)
        rules = read_rules(connection, unread)
        silent = {link.ifindex: link.mac for link in links if "noarp" in link.flags or link.kind == "loopback"}
        neighbours = read_neighbours(connection, names, silent)
        nexthops = rtnl_nexthops.read(connection, names, unread)
        label_routes = rtnl_labels.read(connection, names, unread)
        bridging = rtnl_bridge.read(connection, names, unread)
        traffic = TrafficReader(connection, names, unread).read()
    tables, unread_tables = nft.read_tables(netns)
    entries, unread_entries = conntrack.read_entries(netns)
    expected, unread_expected = expectations.read_expectations(netns)
    filters, unread_filters = filtering.read_filtering(netns)
    ipsec, unread_ipsec = xfrm.read_ipsec(netns, names)
    tunnels, unread_tunnels = wireguard.read(netns, links)
    teams, unread_teams = team.read(netns, links)
    links = team.numbered(links, teams)
    unread += unread_teams
    unread += [*reader.unread, *unread_tables, *unread_entries, *unread_expected, *unread_filters, *unread_ipsec]
    unread += [*unread_tunnels, *macsec.read_keys(netns, links)]
    receiving = fou.read_ports(netns, names, unread)
    return Network(
        links=links,
        addresses=addresses,
        routes=routes,
        rules=rules,
        neighbours=neighbours,
        nexthops=nexthops,
        label_routes=label_routes,
        traffic=traffic,
        bridging=bridging,
        link_multicast=link_multicast.read(netns),
        sysctls=sysctl.read_changed(netns, {link.ifname: link.mtu for link in links}, untouched=untouched),
        nftables=tables,
        conntrack=entries,
        expectations=expected,
        filtering=filters,
        ipsec=ipsec,
        wireguard=tunnels,
        teams=teams,
        fou=receiving,
        isatap=isatap.read_routers(netns, links),
        unread=tuple(dict.fromkeys((*unread, *beyond.read_beyond(netns, addresses), *bpf_attached.read(netns, links)))),
        complete=True,
    )


def _caller_links(inside: Netlink) -> tuple[dict[int, Counterpart], int]:
    """The links of the caller's namespace as counterparts, and the number by which the namespace that is read has it.

    The number is -1 when there is none: then no link leads there, and the caller's links are not even listed.
    """
    own = open_own()
    try:
        nsid = rtnl_links.nsid_of(inside, own)
    finally:
        os.close(own)
    if nsid < 0:
        return {}, nsid
    with Netlink() as outside:
        raw = rtnl_links.read_raw(outside)
        names = {index: link.ifname for index, link in raw.items()}
        addresses: dict[str, list[Address]] = {}
        for address in read_addresses(outside, names):
            addresses.setdefault(address.ifname, []).append(address)
    return {index: _counterpart(link, names, addresses) for index, link in raw.items()}, nsid


def _counterpart(
    link: rtnl_links.RawLink, names: Mapping[int, str], addresses: Mapping[str, list[Address]]
) -> Counterpart:
    return Counterpart(
        place=Place.CALLER,
        ifname=link.ifname,
        ifindex=link.index,
        kind=link.kind,
        mac=link.mac,
        mtu=link.mtu,
        master=names.get(link.master, ""),
        up=link.up,
        addresses=tuple(addresses.get(link.ifname, ())),
    )


def read_addresses(connection: Netlink, names: Mapping[int, str]) -> tuple[Address, ...]:
    """All addresses of the socket's namespace, in the kernel's order."""
    found: list[Address] = []
    for family in (4, 6):
        request = rtnl_addresses.ADDRESS.pack(rtnl_family.INET[family], 0, 0, 0, 0)
        for kind, body in connection.dump(rtnl_addresses.RTM_GETADDR, request):
            if kind == rtnl_addresses.RTM_NEWADDR and rtnl_addresses.ADDRESS.unpack_from(body)[4] in names:
                found.append(rtnl_addresses.decode_address(body, names))
    return tuple(found)


def has_tentative(connection: Netlink) -> bool:
    """Whether duplicate address detection has not ended for an address of a link."""
    request = rtnl_addresses.ADDRESS.pack(rtnl_family.INET[6], 0, 0, 0, 0)
    try:
        messages = connection.dump(rtnl_addresses.RTM_GETADDR, request)
    except NetworkError:
        return True  # of many addresses, one ends it each time that all are listed
    return any(rtnl_addresses.is_tentative(body) for kind, body in messages if kind == rtnl_addresses.RTM_NEWADDR)


def read_routes(
    connection: Netlink, names: Mapping[int, str], unread: list[Unread], *, families: Iterable[int] = (4, 6)
) -> tuple[Route, ...]:
    """All routes of all tables of these families, those that the kernel made by itself included."""
    found: list[Route] = []
    for family in families:
        request = rtnl_routes.ROUTE.pack(rtnl_family.INET[family], 0, 0, 0, 0, 0, 0, 0, 0)
        for kind, body in connection.dump(rtnl_routes.RTM_GETROUTE, request):
            if kind == rtnl_routes.RTM_NEWROUTE:
                found.append(rtnl_routes.decode_route(body, names, unread))
    return tuple(found)


def read_rules(connection: Netlink, unread: list[Unread]) -> tuple[Rule, ...]:
    """The rules of both families, the kernel's three own ones included."""
    found: list[Rule] = []
    for family in (4, 6):
        request = rtnl_rules.RULE.pack(rtnl_family.INET[family], 0, 0, 0, 0, 0, 0, 0, 0)
        for kind, body in connection.dump(rtnl_rules.RTM_GETRULE, request):
            if kind == rtnl_rules.RTM_NEWRULE:
                found.append(rtnl_rules.decode_rule(body, unread))
    return tuple(found)


def read_neighbours(
    connection: Netlink, names: Mapping[int, str], silent: Mapping[int, str | None]
) -> tuple[Neighbour, ...]:
    """The neighbours that somebody set, and the proxies; ``silent`` are the links that ask for none."""
    found: list[Neighbour] = []
    for family in (4, 6):
        for flags in (0, rtnl_neighbours.NTF_PROXY):
            request = rtnl_neighbours.NEIGHBOUR.pack(rtnl_family.INET[family], 0, 0, flags, 0)
            for kind, body in connection.dump(rtnl_neighbours.RTM_GETNEIGH, request):
                if kind == rtnl_neighbours.RTM_NEWNEIGH:
                    neighbour = rtnl_neighbours.decode_neighbour(body, names, silent)
                    if neighbour is not None:
                        found.append(neighbour)
    return tuple(found)
