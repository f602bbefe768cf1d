"""Nexthop objects and groups of them (RTM_NEWNEXTHOP): from rtnetlink to records and back.

The kernel takes an object away when its link goes down, so all that it lists can be made again once links are up.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping

from ckpt.kernel import netlink, rtnl_encap
from ckpt.kernel.netlink import KernelRefusal, Netlink, attribute, ip_bytes, ip_text, nested, number, parse, u16, u32
from ckpt.model.forwarding import GroupMember, NexthopObject
from ckpt.model.network import Unread

RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106

_HEADER = struct.Struct("=BBBBI")
_MEMBER = struct.Struct("=IBBH")

_ID, _GROUP, _GROUP_TYPE, _BLACKHOLE, _OIF, _GATEWAY, _ENCAP_TYPE, _ENCAP = 1, 2, 3, 4, 5, 6, 7, 8
_FDB, _RES_GROUP = 11, 12
_READ = {_ID, _GROUP, _GROUP_TYPE, _BLACKHOLE, _OIF, _GATEWAY, _ENCAP_TYPE, _ENCAP, _FDB, _RES_GROUP}
_WORKED_OUT = {10, 14, 15, 16, 17, 18}  # what hardware does, and counts

_RES_BUCKETS, _RES_IDLE_TIMER, _RES_UNBALANCED_TIMER = 1, 2, 3
_GROUP_TYPES = {0: "multipath", 1: "resilient"}
_FLAGS = {"onlink": 4}
_FAMILIES = {4: 2, 6: 10}
_AF_UNSPEC = 0


def read(connection: Netlink, names: Mapping[int, str], unread: list[Unread]) -> tuple[NexthopObject, ...]:
    """All of the socket's namespace, each group after its members."""
    try:
        messages = connection.dump(RTM_GETNEXTHOP, _HEADER.pack(0, 0, 0, 0, 0))
    except KernelRefusal as error:
        if error.errno == errno.EOPNOTSUPP:
            return ()
        raise
    found = [decode(body, names, unread) for kind, body in messages if kind == RTM_NEWNEXTHOP]
    return tuple(sorted(found, key=lambda one: (bool(one.group), one.id)))


def decode(body: bytes, names: Mapping[int, str], unread: list[Unread]) -> NexthopObject:
    """One RTM_NEWNEXTHOP; what the record cannot hold goes to ``unread``."""
    family, _, protocol, _, flags = _HEADER.unpack_from(body)
    found = parse(body, _HEADER.size)
    number_of = number(found[_ID])
    subject = f"nexthop object {number_of}"
    resilient = parse(found.get(_RES_GROUP, b""))
    group_type = number(found.get(_GROUP_TYPE, b""))
    encapsulation, data = "", b""
    if _ENCAP_TYPE in found:
        encapsulation, data = rtnl_encap.decode(found[_ENCAP_TYPE], found.get(_ENCAP, b""))
        if reason := rtnl_encap.why_not(encapsulation, data):
            unread.append(Unread(code="route-encapsulation", subject=subject, what=reason))
    strange = [f"has the unknown attribute {one}" for one in sorted(found.keys() - _READ - _WORKED_OUT)]
    if group_type not in _GROUP_TYPES:
        strange.append(f"is of the unknown type {group_type}")
    unread += [Unread(code="nexthop-object", subject=subject, what=what) for what in strange]
    return NexthopObject(
        id=number_of,
        family={value: version for version, value in _FAMILIES.items()}.get(family, 0),
        protocol=protocol,
        ifname=names.get(number(found.get(_OIF, b"")), ""),
        gateway=ip_text(found[_GATEWAY]) if _GATEWAY in found else "",
        flags=tuple(name for name, bit in _FLAGS.items() if flags & bit),
        blackhole=_BLACKHOLE in found,
        fdb=_FDB in found,
        encapsulation=encapsulation,
        encapsulation_data=data,
        group=_members(found.get(_GROUP, b"")),
        group_type=_GROUP_TYPES.get(group_type, str(group_type)),
        buckets=number(resilient.get(_RES_BUCKETS, b"")),
        idle_timer=number(resilient.get(_RES_IDLE_TIMER, b"")),
        unbalanced_timer=number(resilient.get(_RES_UNBALANCED_TIMER, b"")),
    )


def _members(data: bytes) -> tuple[GroupMember, ...]:
    # The weight has had a second byte since b72a6a7ab957 "net: nexthop: Increase weight to u16" (Linux 6.12).
    return tuple(GroupMember(id=one, weight=(low | high << 8) + 1) for one, low, high, _ in _MEMBER.iter_unpack(data))


def encode(wanted: NexthopObject, indices: Mapping[str, int]) -> bytes:
    """The body of the RTM_NEWNEXTHOP for ``wanted``."""
    parts = [attribute(_ID, u32(wanted.id))]
    if wanted.group:
        members = [_MEMBER.pack(one.id, (one.weight - 1) & 0xFF, (one.weight - 1) >> 8, 0) for one in wanted.group]
        parts.append(attribute(_GROUP, b"".join(members)))
        types = {name: value for value, name in _GROUP_TYPES.items()}
        parts.append(attribute(_GROUP_TYPE, u16(types[wanted.group_type])))
    if wanted.group_type == "resilient":
        timers = ((_RES_IDLE_TIMER, wanted.idle_timer), (_RES_UNBALANCED_TIMER, wanted.unbalanced_timer))
        values = [
            attribute(_RES_BUCKETS, u16(wanted.buckets)),
            *(attribute(kind, u32(value)) for kind, value in timers),
        ]
        parts.append(nested(_RES_GROUP, *values))
    if wanted.blackhole:
        parts.append(attribute(_BLACKHOLE, b""))
    if wanted.ifname:
        parts.append(attribute(_OIF, u32(indices[wanted.ifname])))
    if wanted.gateway:
        parts.append(attribute(_GATEWAY, ip_bytes(wanted.gateway)))
    if wanted.fdb:
        parts.append(attribute(_FDB, b""))
    parts.append(
        rtnl_encap.encode(
            wanted.encapsulation, wanted.encapsulation_data, kind_attribute=_ENCAP_TYPE, data_attribute=_ENCAP
        )
    )
    family = _AF_UNSPEC if wanted.group else _FAMILIES.get(wanted.family, _AF_UNSPEC)
    flags = sum(_FLAGS[name] for name in wanted.flags)
    return _HEADER.pack(family, 0, wanted.protocol, 0, flags) + b"".join(parts)


def make(connection: Netlink, wanted: NexthopObject, indices: Mapping[str, int]) -> None:
    """Make one, or make the one of its number so. Raises KernelRefusal."""
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
    connection.request(RTM_NEWNEXTHOP, encode(wanted, indices), flags)
