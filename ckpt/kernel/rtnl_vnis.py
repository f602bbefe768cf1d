"""The VNIs that a vxlan of many takes (RTM_NEWTUNNEL): from rtnetlink to records and back.

Only one that was made with ``vnifilter`` has any. A kernel without that lists none.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ckpt.kernel import netlink
from ckpt.kernel.netlink import KernelRefusal, Netlink, attribute, nested, number, pairs, parse, u32
from ckpt.model.bridging import VniRange
from ckpt.model.network import Unread

_AF_BRIDGE = 7
RTM_NEWTUNNEL, RTM_DELTUNNEL, _RTM_GETTUNNEL = 120, 121, 122
_HEADER = struct.Struct("=BBHI")
_ENTRY = 1
_START, _END, _GROUP, _GROUP6, _STATISTICS = 1, 2, 3, 4, 5


def read_vnis(connection: Netlink, names: Mapping[int, str], unread: list[Unread]) -> tuple[VniRange, ...]:
    """All of the socket's namespace; what the records cannot hold goes to ``unread``."""
    try:
        messages = connection.dump(_RTM_GETTUNNEL, _HEADER.pack(_AF_BRIDGE, 0, 0, 0))
    except KernelRefusal:
        return ()
    found = []
    for kind, body in messages:
        ifname = names.get(_HEADER.unpack_from(body)[3])
        if kind != RTM_NEWTUNNEL or ifname is None:
            continue
        for _, value in (pair for pair in pairs(body, _HEADER.size) if pair[0] == _ENTRY):
            found.append(_decode(ifname, value, unread))
    return tuple(sorted(found, key=lambda one: (one.ifname, one.vni)))


def _decode(ifname: str, value: bytes, unread: list[Unread]) -> VniRange:
    entry = parse(value)
    first, last = number(entry[_START]), number(entry.get(_END, b""))
    for strange in sorted(entry.keys() - {_START, _END, _GROUP, _GROUP6, _STATISTICS}):
        what = f"has the VNI {first} with the unknown attribute {strange}"
        unread.append(Unread(code="vxlan-vni", subject=f"link {ifname}", what=what))
    group = entry.get(_GROUP) or entry.get(_GROUP6) or b""
    return VniRange(
        ifname=ifname, vni=first, last=last if last != first else 0, group=netlink.ip_text(group) if any(group) else ""
    )


def _message(one: VniRange, indices: Mapping[str, int]) -> bytes:
    parts = [attribute(_START, u32(one.vni))]
    if one.last:
        parts.append(attribute(_END, u32(one.last)))
    if one.group:
        parts.append(attribute(_GROUP6 if ":" in one.group else _GROUP, netlink.ip_bytes(one.group)))
    return _HEADER.pack(_AF_BRIDGE, 0, 0, indices[one.ifname]) + nested(_ENTRY, *parts)


def add_vni(connection: Netlink, one: VniRange, indices: Mapping[str, int]) -> None:
    """Let a link take these VNIs."""
    connection.request(RTM_NEWTUNNEL, _message(one, indices))
