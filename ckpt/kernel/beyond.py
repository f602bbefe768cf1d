"""What a namespace may hold that our records have no place for: looked for only to be named, never carried.

A dump that would leave one of these behind in silence restores a namespace that behaves otherwise. So each is asked
for by the shortest question there is, and a kernel that does not know the question holds none of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ckpt.kernel import netlink
from ckpt.kernel.netlink import KernelRefusal, Netlink, parse
from ckpt.model.network import Link, Unread

_RTM_GETNEXTHOP = 106

_RTM_NEWNEIGH = 28
_RTM_GETNEIGH = 30
_AF_BRIDGE = 7
_NDA_LLADDR = 2
_NDA_MASTER = 9
_NUD_NOARP = 0x40
_NEIGHBOUR = struct.Struct("=BxxxiHBB")


def read_beyond(netns: int, links: tuple[Link, ...]) -> tuple[Unread, ...]:
    """All that was found."""
    return (*_nexthops(netns), *_bridges(netns, links))


def _nexthops(netns: int) -> Iterator[Unread]:
    count = _count(netns, netlink.ROUTE, _RTM_GETNEXTHOP, bytes(8))
    if count:
        yield Unread(code="nexthop-object", subject="nexthop objects", what=f"{count} are set")


def _count(netns: int, protocol: int, kind: int, request: bytes) -> int:
    try:
        with Netlink(protocol, netns=netns) as connection:
            return len(connection.dump(kind, request))
    except OSError:
        return 0  # this kernel has no such thing


def _bridges(netns: int, links: tuple[Link, ...]) -> Iterator[Unread]:
    """Forwarding entries that somebody set, and VLANs of ports: the bridge itself travels with its options."""
    names = {link.ifindex: link.ifname for link in links}
    for link in links:
        if link.kind == "bridge" and link.options.get("vlan_filtering", "0") != "0":
            yield Unread(code="bridge-vlan", subject=f"link {link.ifname}", what="filters VLANs")
    if not any(link.kind == "bridge" for link in links):
        return
    try:
        with Netlink(netns=netns) as connection:
            messages = connection.dump(_RTM_GETNEIGH, _NEIGHBOUR.pack(_AF_BRIDGE, 0, 0, 0, 0))
    except KernelRefusal:
        return
    for kind, body in messages:
        _, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
        found = parse(body, _NEIGHBOUR.size)
        if kind == _RTM_NEWNEIGH and state & _NUD_NOARP and _NDA_MASTER in found:
            what = f"has the static forwarding entry {netlink.mac_text(found[_NDA_LLADDR])}"
            yield Unread(code="bridge-fdb", subject=f"link {names.get(index, index)}", what=what)
