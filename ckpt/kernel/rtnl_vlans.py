"""The VLANs of bridges and of their ports (RTM_NEWVLAN): from rtnetlink to records and back.

A kernel without VLAN filtering lists none. Only options that are not as on a new VLAN are read: some of them may be
set only where the bridge is made for it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt.kernel.netlink import Attributes, KernelRefusal, Netlink, attribute, nested, number, pairs, parse, u16, u32
from ckpt.model.bridging import BridgeVlan, VlanOptions
from ckpt.model.network import Unread

_AF_BRIDGE = 7
RTM_NEWVLAN, RTM_DELVLAN, _RTM_GETVLAN = 112, 113, 114
_HEADER = struct.Struct("=BxxxI")
_ENTRY, _GLOBAL_OPTIONS = 1, 2
_DUMP_FLAGS, _DUMP_GLOBAL = 1, 2

_INFO, _RANGE, _STATE, _TUNNEL, _STATISTICS, _N_GROUPS = 1, 2, 3, 4, 5, 7
_INFO_LAYOUT = struct.Struct("=HH")
_FLAGS = {"pvid": 2, "untagged": 4}
_TUNNEL_ID, _TUNNEL_COMMAND, _SETLINK = 1, 2, 19
_FORWARDING, _ROUTER_BY_QUERY = "3", "1"

# Number: name, size, and what a new VLAN has.
_OPTIONS = {
    3: ("state", 1, _FORWARDING),
    6: ("mcast_router", 1, _ROUTER_BY_QUERY),
    8: ("mcast_max_groups", 4, "0"),
    9: ("neigh_suppress", 1, "0"),
}
_GLOBAL_ID, _GLOBAL_RANGE = 1, 2
_GLOBALS = {
    3: ("mcast_snooping", 1),
    4: ("mcast_igmp_version", 1),
    5: ("mcast_mld_version", 1),
    6: ("mcast_last_member_cnt", 4),
    7: ("mcast_startup_query_cnt", 4),
    8: ("mcast_last_member_intvl", 8),
    10: ("mcast_membership_intvl", 8),
    11: ("mcast_querier_intvl", 8),
    12: ("mcast_query_intvl", 8),
    13: ("mcast_query_response_intvl", 8),
    14: ("mcast_startup_query_intvl", 8),
    15: ("mcast_querier", 1),
    18: ("msti", 2),
}
_GLOBALS_WORKED_OUT = {9, 16, 17}


def _dump(connection: Netlink, flags: int, wanted: int) -> Iterator[tuple[int, Attributes]]:
    request = _HEADER.pack(_AF_BRIDGE, 0) + (attribute(_DUMP_FLAGS, u32(flags)) if flags else b"")
    try:
        messages = connection.dump(_RTM_GETVLAN, request)
    except KernelRefusal:
        return
    for kind, body in messages:
        if kind != RTM_NEWVLAN:
            continue
        _, index = _HEADER.unpack_from(body)
        for number_of, value in pairs(body, _HEADER.size):
            if number_of == wanted:
                yield index, parse(value)


def read_vlans(connection: Netlink, names: Mapping[int, str], unread: list[Unread]) -> tuple[BridgeVlan, ...]:
    """The VLANs of every bridge and port."""
    found = []
    for index, attributes in _dump(connection, 0, _ENTRY):
        if index not in names:
            continue
        flags, vid = _INFO_LAYOUT.unpack_from(attributes[_INFO])
        tunnel = parse(attributes.get(_TUNNEL, b""))
        known = {_INFO, _RANGE, _TUNNEL, _STATISTICS, _N_GROUPS, *_OPTIONS}
        _note(unread, names[index], vid, attributes.keys() - known)
        values = {name: str(number(attributes[one])) for one, (name, _, _) in _OPTIONS.items() if one in attributes}
        found.append(
            BridgeVlan(
                ifname=names[index],
                vid=vid,
                last=number(attributes.get(_RANGE, b"")),
                flags=tuple(name for name, bit in _FLAGS.items() if flags & bit),
                tunnel=number(tunnel.get(_TUNNEL_ID, b"")),
                options={name: values[name] for name, _, new in _OPTIONS.values() if values.get(name, new) != new},
            )
        )
    # The kernel shows links here in the order of its hash of their indices, which depends on its version.
    return tuple(sorted(found, key=lambda one: (one.ifname, one.vid)))


def read_vlan_options(connection: Netlink, names: Mapping[int, str], unread: list[Unread]) -> tuple[VlanOptions, ...]:
    """What every bridge keeps of its VLANs for all ports."""
    found = []
    for index, attributes in _dump(connection, _DUMP_GLOBAL, _GLOBAL_OPTIONS):
        if index not in names:
            continue
        vid = number(attributes[_GLOBAL_ID])
        _note(
            unread, names[index], vid, attributes.keys() - {_GLOBAL_ID, _GLOBAL_RANGE, *_GLOBALS} - _GLOBALS_WORKED_OUT
        )
        options = {name: str(number(attributes[one])) for one, (name, _) in _GLOBALS.items() if one in attributes}
        last = number(attributes.get(_GLOBAL_RANGE, b""))
        found.append(VlanOptions(ifname=names[index], vid=vid, last=last, options=options))
    return tuple(sorted(found, key=lambda one: (one.ifname, one.vid)))


def _note(unread: list[Unread], ifname: str, vid: int, strange: Iterable[int]) -> None:
    for one in sorted(strange):
        what = f"has VLAN {vid} with the unknown attribute {one}"
        unread.append(Unread(code="bridge-vlan", subject=f"link {ifname}", what=what))


def _each(vlans: Iterable[BridgeVlan]) -> Iterator[BridgeVlan]:
    """Ranges taken apart."""
    for vlan in vlans:
        for offset in range(max(vlan.last, vlan.vid) - vlan.vid + 1):
            tunnel = vlan.tunnel + offset if vlan.tunnel else 0
            yield replace(vlan, vid=vlan.vid + offset, last=0, tunnel=tunnel)


def vlan_differences(
    wanted: Sequence[BridgeVlan], now: Sequence[BridgeVlan], *, only: bool
) -> Iterator[tuple[str, BridgeVlan, bool]]:
    """What to take away and what to add: its name, the VLANs, and whether they are added."""
    there = {(one.ifname, one.vid): one for one in _each(now)}
    asked = {(one.ifname, one.vid): one for one in _each(wanted)}
    if only:
        for key, one in there.items():
            if key not in asked:
                yield f"VLAN {one.vid} of {one.ifname}", one, False
    for vlan in wanted:
        missing = [one for one in _each([vlan]) if there.get((one.ifname, one.vid)) != one]
        # Tunnels count up with the VLANs of a range, which a request cannot say.
        parts = missing if vlan.tunnel else ([vlan] if missing else [])
        for part in parts:
            yield f"VLAN {part.vid} of {part.ifname}", part, True


def set_vlan(connection: Netlink, vlan: BridgeVlan, indices: Mapping[str, int], *, add: bool) -> None:
    """Add the VLANs, or take them away. Raises KernelRefusal."""
    flags = sum(_FLAGS[name] for name in vlan.flags) if add else 0
    parts = [attribute(_INFO, _INFO_LAYOUT.pack(flags, vlan.vid))]
    if vlan.last:
        parts.append(attribute(_RANGE, u16(vlan.last)))
    if add and vlan.tunnel:
        values = attribute(_TUNNEL_ID, u32(vlan.tunnel)), attribute(_TUNNEL_COMMAND, u32(_SETLINK))
        parts.append(nested(_TUNNEL, *values))
    for kind, (name, size, _) in _OPTIONS.items():
        if add and name in vlan.options:
            parts.append(attribute(kind, _integer(int(vlan.options[name]), size)))
    body = _HEADER.pack(_AF_BRIDGE, indices[vlan.ifname]) + nested(_ENTRY, *parts)
    connection.request(RTM_NEWVLAN if add else RTM_DELVLAN, body)


def set_vlan_options(
    connection: Netlink, wanted: VlanOptions, now: Sequence[VlanOptions], indices: Mapping[str, int]
) -> None:
    """Set the options of VLANs that are not so ``now``. Raises KernelRefusal."""
    there: set[tuple[str, str]] = set()
    for one in now:
        last = max(one.last, one.vid)
        if one.ifname == wanted.ifname and one.vid <= wanted.vid <= last and wanted.last <= last:
            there = set(one.options.items())
    parts = [attribute(_GLOBAL_ID, u16(wanted.vid))]
    if wanted.last:
        parts.append(attribute(_GLOBAL_RANGE, u16(wanted.last)))
    for kind, (name, size) in _GLOBALS.items():
        if name in wanted.options and (name, wanted.options[name]) not in there:
            parts.append(attribute(kind, _integer(int(wanted.options[name]), size)))
    body = _HEADER.pack(_AF_BRIDGE, indices[wanted.ifname]) + nested(_GLOBAL_OPTIONS, *parts)
    connection.request(RTM_NEWVLAN, body)


def _integer(value: int, size: int) -> bytes:
    return struct.pack({1: "=B", 2: "=H", 4: "=I", 8: "=Q"}[size], value)
