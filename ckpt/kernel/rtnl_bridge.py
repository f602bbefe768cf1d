"""What bridges and other learning links keep: VLANs, forwarding entries and multicast groups, read and made again.

Everything that the kernel lists and that was not learnt is read, its own entries included. What is missing in the copy
is added, and of what is too much, what somebody could have taken away is taken away.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from ckpt.kernel import netlink
from ckpt.kernel.netlink import Attributes, KernelRefusal, Netlink, attribute, number, parse, u16, u32
from ckpt.kernel.rtnl_mdb import add_multicast, read_multicast
from ckpt.kernel.rtnl_vlans import read_vlan_options, read_vlans, set_vlan, set_vlan_options, vlan_differences
from ckpt.kernel.rtnl_vnis import add_vni, read_vnis
from ckpt.model.bridging import Bridging, ForwardingEntry
from ckpt.model.network import Unread

AF_BRIDGE = 7
_RTM_NEWNEIGH, _RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_DST, _LLADDR, _VLAN, _PORT, _VNI, _IFINDEX, _MASTER, _SRC_VNI = 1, 2, 5, 6, 7, 8, 9, 11
_NH_ID, _FLAGS_EXT = 13, 15
_LINK_NETNSID, _PROTOCOL, _CACHEINFO, _PROBES = 10, 12, 3, 4
_READ = {_DST, _LLADDR, _VLAN, _PORT, _VNI, _IFINDEX, _MASTER, _SRC_VNI, _NH_ID, _FLAGS_EXT}
_WORKED_OUT = {_CACHEINFO, _PROBES, _LINK_NETNSID, _PROTOCOL}

_REACHABLE, _NOARP, _PERMANENT = 0x02, 0x40, 0x80
_STATES = {_PERMANENT: "permanent", _NOARP: "static", _REACHABLE: "reachable"}
_NTF_SELF, _NTF_MASTER, _NTF_EXT_LEARNED = 0x02, 0x04, 0x10
_NTF_EXT_LOCKED = 0x02  # learnt from somebody who may not send yet
_FLAGS = {"use": 0x01, "extern_learn": _NTF_EXT_LEARNED, "sticky": 0x40, "router": 0x80}
_MULTICAST = 1


def is_learnt(body: bytes) -> bool:
    """Whether one RTM_NEWNEIGH or RTM_DELNEIGH is about a forwarding entry that nobody set."""
    _, _, state, flags, _ = _NEIGHBOUR.unpack_from(body)
    return not state & (_PERMANENT | _NOARP) and not flags & _NTF_EXT_LEARNED


def read(connection: Netlink, names: Mapping[int, str], unread: list[Unread]) -> Bridging:
    """All of the socket's namespace; what the records cannot hold goes to ``unread``."""
    return Bridging(
        vlans=read_vlans(connection, names, unread),
        vlan_options=read_vlan_options(connection, names, unread),
        forwarding=read_forwarding(connection, names, unread),
        multicast=read_multicast(connection, names, unread),
        vnis=read_vnis(connection, names, unread),
    )


# ---- forwarding entries -------------------------------------------------------------------------------------------


def read_forwarding(connection: Netlink, names: Mapping[int, str], unread: list[Unread]) -> tuple[ForwardingEntry, ...]:
    """The entries that were not learnt, without the groups that protocols join on a link by themselves."""
    try:
        messages = connection.dump(_RTM_GETNEIGH, _NEIGHBOUR.pack(AF_BRIDGE, 0, 0, 0, 0))
    except KernelRefusal:
        return ()
    found = []
    for kind, body in messages:
        if kind != _RTM_NEWNEIGH or body[0] != AF_BRIDGE or is_learnt(body):
            continue
        entry = _decode(body, names, unread)
        if entry is not None:
            found.append(entry)
    return tuple(sorted(found, key=repr))


def _is_joined(flags: int, found: Attributes) -> bool:
    """Whether it is a group on a link's own list, which who has joined it joins again."""
    elsewhere = _DST in found or _NH_ID in found
    return bool(flags & _NTF_SELF) and not elsewhere and bool(found[_LLADDR][0] & _MULTICAST)


def _decode(body: bytes, names: Mapping[int, str], unread: list[Unread]) -> ForwardingEntry | None:
    _, index, state, flags, _ = _NEIGHBOUR.unpack_from(body)
    found = parse(body, _NEIGHBOUR.size)
    if index not in names or _LLADDR not in found or number(found.get(_FLAGS_EXT, b"")) & _NTF_EXT_LOCKED:
        return None
    if _is_joined(flags, found):
        return None
    mac = netlink.mac_text(found[_LLADDR])
    what = f"has the forwarding entry {mac} with the unknown attribute"
    strange = [f"{what} {one}" for one in sorted(found.keys() - _READ - _WORKED_OUT)]
    if _LINK_NETNSID in found and _IFINDEX in found:
        # Of the tunnel that sends by a link in another namespace; what it was made with, it has again.
        if any(found[_LLADDR]):
            strange.append(f"has the forwarding entry {mac}, which leaves by a link in another network namespace")
        found = {kind: value for kind, value in found.items() if kind != _IFINDEX}
    unread += [Unread(code="bridge-fdb", subject=f"link {names[index]}", what=one) for one in strange]
    return ForwardingEntry(
        ifname=names[index],
        mac=mac,
        owner=_owner(index, flags, found),
        state=next((name for bit, name in _STATES.items() if state & bit), "reachable"),
        flags=tuple(name for name, bit in _FLAGS.items() if flags & bit),
        vlan=number(found.get(_VLAN, b"")),
        destination=netlink.ip_text(found[_DST]) if _DST in found else "",
        port=number(found.get(_PORT, b""), "be"),
        vni=number(found.get(_VNI, b"")),
        source_vni=number(found.get(_SRC_VNI, b"")),
        via=names.get(number(found.get(_IFINDEX, b"")), ""),
        nexthop=number(found.get(_NH_ID, b"")),
    )


def _owner(index: int, flags: int, found: Attributes) -> str:
    if flags & _NTF_SELF:
        return "self"
    return "bridge" if number(found.get(_MASTER, b"")) == index else "master"


def _encode(entry: ForwardingEntry, indices: Mapping[str, int]) -> bytes:
    # An entry of a port is asked of its master, one of the bridge itself or of a tunnel of the link.
    owner = _NTF_MASTER if entry.owner == "master" else _NTF_SELF
    flags = owner | sum(_FLAGS[name] for name in entry.flags)
    state = next(bit for bit, name in _STATES.items() if name == entry.state)
    if state == _NOARP:
        state |= _REACHABLE  # tunnels take it only so
    parts = [attribute(_LLADDR, netlink.mac_bytes(entry.mac))]
    if entry.destination:
        parts.append(attribute(_DST, netlink.ip_bytes(entry.destination)))
    if entry.vlan:
        parts.append(attribute(_VLAN, u16(entry.vlan)))
    if entry.port:
        parts.append(attribute(_PORT, struct.pack(">H", entry.port)))
    for kind, value in ((_VNI, entry.vni), (_SRC_VNI, entry.source_vni), (_NH_ID, entry.nexthop)):
        if value:
            parts.append(attribute(kind, u32(value)))
    if entry.via:
        parts.append(attribute(_IFINDEX, u32(indices[entry.via])))
    return _NEIGHBOUR.pack(AF_BRIDGE, indices[entry.ifname], state, flags, 0) + b"".join(parts)


def _add(connection: Netlink, entry: ForwardingEntry, indices: Mapping[str, int]) -> None:
    mac = netlink.mac_bytes(entry.mac)
    # A tunnel sends what is for all to several places; to one address there is one way.
    several = bool(entry.destination) and (not any(mac) or mac[0] & _MULTICAST)
    flags = netlink.NLM_F_CREATE | (netlink.NLM_F_APPEND if several else 0)
    connection.request(_RTM_NEWNEIGH, _encode(entry, indices), flags)


def _remove(connection: Netlink, entry: ForwardingEntry, indices: Mapping[str, int]) -> None:
    try:
        connection.request(_RTM_DELNEIGH, _encode(entry, indices))
    except KernelRefusal as error:
        if error.errno != errno.ENOENT:
            raise


def _named(entry: ForwardingEntry) -> str:
    return f"forwarding entry {entry.mac} of {entry.ifname}"


def making(
    connection: Netlink, wanted: Bridging, indices: Mapping[str, int], *, only: bool
) -> Iterator[tuple[str, Callable[[], None]]]:
    """What makes all as ``wanted``, in order: the name of each object and the request for it.

    Each part is compared with what is there only when its turn comes: a VLAN brings entries of its own.
    """
    names = {index: ifname for ifname, index in indices.items()}
    for subject, vlan, add in vlan_differences(wanted.vlans, read_vlans(connection, names, []), only=only):
        yield subject, partial(set_vlan, connection, vlan, indices, add=add)
    there = read_vlan_options(connection, names, [])
    for options in wanted.vlan_options:
        if options not in there:
            subject = f"VLAN {options.vid} of bridge {options.ifname}"
            yield subject, partial(set_vlan_options, connection, options, there, indices)
    for vni in wanted.vnis:
        if vni not in read_vnis(connection, names, []):
            yield f"VNI {vni.vni} of {vni.ifname}", partial(add_vni, connection, vni, indices)
    # One that is asked for without a VLAN comes, or goes, in all of them.
    for in_vlans in (False, True):
        asked = [entry for entry in wanted.forwarding if bool(entry.vlan) == in_vlans]
        now = read_forwarding(connection, names, [])
        for entry in asked:
            if entry not in now:
                yield _named(entry), partial(_add, connection, entry, indices)
        for entry in read_forwarding(connection, names, []) if only else ():
            if bool(entry.vlan) == in_vlans and entry not in asked:
                yield _named(entry), partial(_remove, connection, entry, indices)
    # Those of a group for all sources first: they bring some of the others.
    for group in sorted(wanted.multicast, key=lambda one: bool(one.source)):
        if group not in read_multicast(connection, names, []):
            yield f"group {group.group} on {group.ifname}", partial(add_multicast, connection, group, indices)
