"""Read the network namespaces of a group, with the links between them.

Each is read by itself (`rtnl`), and says of a link whose counterpart is neither in it nor in the caller's namespace
only that it is elsewhere. Here it is asked by which number a namespace knows each of the others: so the counterpart
is found by name where it is in one of the group's, and stays elsewhere where it is in a third one's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from ckpt.kernel import rtnl, rtnl_links, wireguard
from ckpt.kernel.netlink import Netlink
from ckpt.kernel.rtnl_links import RawLink
from ckpt.model.network import PAIRED, Counterpart, Link, Network, Place
from ckpt.model.travel import TUNNELS
from ckpt.model.wireguard import Carrier

_IFLA_LINK_NETNSID = 37

_ON_ANOTHER = PAIRED | {"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"}
"""Kinds that always stand on another link. A tunnel need not, and is elsewhere all the same when the packets that it
sends are routed in another namespace."""


def read_networks(spaces: Mapping[str, int]) -> dict[str, Network]:
    """All of each namespace, by its key; raises as ``rtnl.read_network`` does."""
    found = {key: rtnl.read_network(netns) for key, netns in spaces.items()}
    if len(found) < 2:
        return found
    found = _with_carriers(found, spaces)
    raw: dict[str, dict[int, RawLink]] = {}
    for key, netns in spaces.items():
        with Netlink(netns=netns) as connection:
            raw[key] = rtnl_links.read_raw(connection)
    return {key: _resolved(network, spaces[key], spaces, raw, raw[key]) for key, network in found.items()}


def _resolved(
    network: Network,
    netns: int,
    spaces: Mapping[str, int],
    raw: Mapping[str, Mapping[int, RawLink]],
    own: Mapping[int, RawLink],
) -> Network:
    """``network`` with the counterparts that are in others of ``spaces``; ``raw`` are the links of all of them."""
    if not any(_is_elsewhere(link) for link in network.links):
        return network
    with Netlink(netns=netns) as connection:
        keys = {rtnl_links.nsid_of(connection, other): key for key, other in spaces.items()}
    links = []
    for link in network.links:
        there = own.get(link.ifindex)
        if _is_elsewhere(link) and there is not None:
            key = keys.get(there.integer(_IFLA_LINK_NETNSID, -1))
            other = raw[key].get(there.link) if key is not None and there.integer(_IFLA_LINK_NETNSID, -1) >= 0 else None
            if key is not None and other is not None:
                link = replace(link, counterpart=_counterpart(key, other))
            elif key is not None and link.kind in TUNNELS:
                link = replace(link, counterpart=Counterpart(place=Place.ELSEWHERE, netns=key, ifindex=there.link))
        links.append(link)
    return replace(network, links=tuple(links))


def _with_carriers(networks: Mapping[str, Network], spaces: Mapping[str, int]) -> dict[str, Network]:
    """``networks`` in which WireGuard's links name the one that they send in, where that is another of the group's.

    Of two sockets that could be one's, or two that could have one socket, it cannot be told.
    """
    devices = [one for network in networks.values() for one in network.wireguard]
    asked = Counter(one.listen_port for one in devices if one.carrier in (Carrier.ELSEWHERE, Carrier.CALLER))
    if not asked:
        return dict(networks)
    places: dict[int, list[str]] = {}
    for key, network in networks.items():
        own = {one.listen_port for one in network.wireguard if one.carrier is Carrier.OWN}
        for port in (wireguard.ports(spaces[key]) or frozenset()) - own:
            places.setdefault(port, []).append(key)
    clear = {port: keys[0] for port, keys in places.items() if len(keys) == 1 and asked[port] == 1}
    return {key: _carried(network, places, clear) for key, network in networks.items()}


def _carried(network: Network, places: Collection[int], clear: Mapping[int, str]) -> Network:
    """``places`` are the ports that are in the group; ``clear`` those of which one has to be an interface's, and where.

    The host's namespace may have a socket of such a port, too: then it is not clear.
    """
    carried = {
        one.ifname: Counterpart(place=Place.ELSEWHERE, netns=clear[one.listen_port])
        for one in network.wireguard
        if one.carrier is Carrier.ELSEWHERE and one.listen_port in clear
    }
    links = [replace(one, counterpart=carried.get(one.ifname, one.counterpart)) for one in network.links]
    devices = [
        replace(one, carrier=Carrier.ELSEWHERE) if one.carrier is Carrier.CALLER and one.listen_port in places else one
        for one in network.wireguard
    ]
    return replace(network, links=tuple(links), wireguard=tuple(devices))


def _is_elsewhere(link: Link) -> bool:
    other = link.counterpart
    return other is not None and other.place is Place.ELSEWHERE and link.kind in _ON_ANOTHER | TUNNELS


def _counterpart(key: str, raw: RawLink) -> Counterpart:
    return Counterpart(place=Place.ELSEWHERE, netns=key, ifname=raw.ifname, ifindex=raw.index, kind=raw.kind)
