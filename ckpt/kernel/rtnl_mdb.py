"""The multicast groups of bridges and tunnels (RTM_NEWMDB): from rtnetlink to records and back.

Only permanent entries are read: the others come from the wire and go with time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from ckpt.kernel import netlink
from ckpt.kernel.netlink import (
    Attributes,
    KernelRefusal,
    Netlink,
    attribute,
    ip_bytes,
    ip_text,
    nested,
    number,
    pairs,
    parse,
    u8,
    u16,
    u32,
)
from ckpt.model.bridging import MulticastEntry
from ckpt.model.network import Unread

_AF_BRIDGE = 7
RTM_NEWMDB, RTM_DELMDB, _RTM_GETMDB = 84, 85, 86
_HEADER = struct.Struct("=BxxxI")
_MDB, _ENTRY, _INFO = 1, 1, 1
_ENTRY_LAYOUT = struct.Struct("=IBBH16sHxx")
_PERMANENT, _STATE_OFFSET = 1, 4
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD

_SRC_LIST, _GROUP_MODE, _SOURCE, _RTPROT, _DST, _DST_PORT, _VNI, _IFINDEX, _SRC_VNI = 2, 3, 4, 5, 6, 7, 8, 9, 10
_READ = {1, _SRC_LIST, _GROUP_MODE, _SOURCE, _RTPROT, _DST, _DST_PORT, _VNI, _IFINDEX, _SRC_VNI}
_SET_ENTRY, _SET_ATTRIBUTES = 1, 2
# The same by the numbers of a request.
_SET_SOURCE, _SET_SRC_LIST, _SET_GROUP_MODE, _SET_RTPROT, _SET_DST, _SET_DST_PORT = 1, 2, 3, 4, 5, 6
_SET_VNI, _SET_IFINDEX, _SET_SRC_VNI = 7, 8, 9
_MODES = {0: "exclude", 1: "include"}
_STATIC = 4


def read_multicast(connection: Netlink, names: Mapping[int, str], unread: list[Unread]) -> tuple[MulticastEntry, ...]:
    """The permanent groups of every bridge and tunnel."""
    try:
        messages = connection.dump(_RTM_GETMDB, _HEADER.pack(_AF_BRIDGE, 0))
    except KernelRefusal:
        return ()
    found = []
    for kind, body in messages:
        if kind not in (RTM_NEWMDB, _RTM_GETMDB):  # bridges answer with the type of the question
            continue
        _, bridge = _HEADER.unpack_from(body)
        infos = [info for info in _infos(body) if info[_STATE_OFFSET] == _PERMANENT]
        found += [_decode(names[bridge], info, names, unread) for info in infos if bridge in names]
    return tuple(sorted(found, key=repr))


def is_learnt(body: bytes) -> bool:
    """Whether one RTM_NEWMDB or RTM_DELMDB is about groups from the wire only."""
    return all(info[_STATE_OFFSET] != _PERMANENT for info in _infos(body))


def _infos(body: bytes) -> Iterator[bytes]:
    for entries in (value for kind, value in pairs(body, _HEADER.size) if kind == _MDB):
        for _, entry in pairs(entries):
            yield from (value for kind, value in pairs(entry) if kind == _INFO)


def _decode(bridge: str, info: bytes, names: Mapping[int, str], unread: list[Unread]) -> MulticastEntry:
    index, _, _, vlan, address, protocol = _ENTRY_LAYOUT.unpack_from(info)
    found = parse(info, _ENTRY_LAYOUT.size)
    group = _address(address, int.from_bytes(struct.pack("=H", protocol), "big"))
    strange = [f"has the group {group} with the unknown attribute {one}" for one in sorted(found.keys() - _READ)]
    unread += [Unread(code="bridge-mdb", subject=f"link {bridge}", what=what) for what in strange]
    return MulticastEntry(
        bridge=bridge,
        ifname=names.get(index, ""),
        group=group,
        vlan=vlan,
        source=_ip(found, _SOURCE),
        mode=_MODES.get(number(found[_GROUP_MODE]), "") if _GROUP_MODE in found else "",
        sources=tuple(sorted(ip_text(parse(value)[1]) for _, value in pairs(found.get(_SRC_LIST, b"")))),
        protocol=number(found.get(_RTPROT, b"")),
        destination=_ip(found, _DST),
        port=number(found.get(_DST_PORT, b"")),
        vni=number(found.get(_VNI, b"")),
        source_vni=number(found.get(_SRC_VNI, b"")),
        via=names.get(number(found.get(_IFINDEX, b"")), ""),
    )


def _ip(found: Attributes, kind: int) -> str:
    return ip_text(found[kind]) if kind in found else ""


def _address(value: bytes, protocol: int) -> str:
    if protocol == _ETH_P_IP:
        return ip_text(value[:4])
    return ip_text(value) if protocol == _ETH_P_IPV6 else netlink.mac_text(value[:6])


_COLONS_IN_MAC = 5


def _address_bytes(group: str) -> tuple[bytes, int]:
    if group.count(":") == _COLONS_IN_MAC and "::" not in group:
        return netlink.mac_bytes(group), 0
    value = ip_bytes(group)
    return value, _ETH_P_IP if len(value) == 4 else _ETH_P_IPV6


def add_multicast(connection: Netlink, wanted: MulticastEntry, indices: Mapping[str, int]) -> None:
    """Add a permanent group. Raises KernelRefusal."""
    address, protocol = _address_bytes(wanted.group)
    order = int.from_bytes(struct.pack(">H", protocol), "little" if struct.pack("=H", 1)[0] else "big")
    entry = _ENTRY_LAYOUT.pack(indices[wanted.ifname], _PERMANENT, 0, wanted.vlan, address, order)
    parts = []
    if wanted.source:
        parts.append(attribute(_SET_SOURCE, ip_bytes(wanted.source)))
    # The mode of a group without sources is what it would be anyway, and older kernels take none.
    if wanted.sources:
        listed = (nested(1, attribute(1, ip_bytes(source))) for source in wanted.sources)
        modes = {name: value for value, name in _MODES.items()}
        parts += [nested(_SET_SRC_LIST, *listed), attribute(_SET_GROUP_MODE, u8(modes[wanted.mode]))]
    if wanted.protocol not in (0, _STATIC):
        parts.append(attribute(_SET_RTPROT, u8(wanted.protocol)))
    if wanted.destination:
        parts.append(attribute(_SET_DST, ip_bytes(wanted.destination)))
    if wanted.port:
        parts.append(attribute(_SET_DST_PORT, u16(wanted.port)))
    for kind, value in (
        (_SET_VNI, wanted.vni),
        (_SET_SRC_VNI, wanted.source_vni),
        (_SET_IFINDEX, indices[wanted.via] if wanted.via else 0),
    ):
        if value:
            parts.append(attribute(kind, u32(value)))
    body = _HEADER.pack(_AF_BRIDGE, indices[wanted.bridge]) + attribute(_SET_ENTRY, entry)
    if parts:
        body += nested(_SET_ATTRIBUTES, *parts)
    connection.request(RTM_NEWMDB, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)
