"""Routes of MPLS: from rtnetlink to records and back. A kernel without label switching lists none."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

from ckpt.kernel import netlink, rtnl_family, rtnl_routes
from ckpt.kernel.netlink import KernelRefusal, Netlink, attribute, number, parse, u16, u32
from ckpt.model.forwarding import LabelHop, LabelRoute
from ckpt.model.network import Unread

_AF_MPLS, _AF_PACKET = 28, 17
_RTA_DST, _RTA_OIF, _RTA_MULTIPATH, _RTA_VIA, _RTA_NEWDST, _RTA_TTL_PROPAGATE = 1, 4, 9, 18, 19, 26
_READ = {_RTA_DST, _RTA_OIF, _RTA_MULTIPATH, 15, _RTA_VIA, _RTA_NEWDST, _RTA_TTL_PROPAGATE}
_SYSCTLS = "/proc/sys/net"
_LABEL_BITS = 20
_LABEL_SHIFT = 12
_BOTTOM = 1 << 8
_NEXTHOP = struct.Struct("=HBBi")
_TABLE = 254
_COLONS_IN_MAC = 5


def read(connection: Netlink, names: Mapping[int, str], unread: list[Unread]) -> tuple[LabelRoute, ...]:
    """All routes of the socket's namespace."""
    # A kernel without label switching answers with the routes of all other families (rtnl_dump_all).
    if os.path.isdir(_SYSCTLS) and not os.path.isdir(f"{_SYSCTLS}/mpls"):
        return ()
    try:
        messages = connection.dump(rtnl_routes.RTM_GETROUTE, rtnl_routes.ROUTE.pack(_AF_MPLS, 0, 0, 0, 0, 0, 0, 0, 0))
    except KernelRefusal:
        return ()
    return tuple(
        _decode(body, names, unread)
        for kind, body in messages
        if kind == rtnl_routes.RTM_NEWROUTE and body[0] == _AF_MPLS
    )


def _decode(body: bytes, names: Mapping[int, str], unread: list[Unread]) -> LabelRoute:
    _, _, _, _, _, protocol, _, kind, _ = rtnl_routes.ROUTE.unpack_from(body)
    found = parse(body, rtnl_routes.ROUTE.size)
    label = _labels(found[_RTA_DST])[0]
    for strange in sorted(found.keys() - _READ):
        what = f"has the unknown attribute {strange}"
        unread.append(Unread(code="route-attribute", subject=f"route of label {label}", what=what))
    if _RTA_MULTIPATH in found:
        hops = _hops(found[_RTA_MULTIPATH], names)
    else:
        hops = (_hop(found, names.get(number(found.get(_RTA_OIF, b"")), ""), 1),)
    return LabelRoute(
        label=label,
        hops=tuple(hop for hop in hops if hop != LabelHop()),
        protocol=protocol,
        type=rtnl_routes.ROUTE_TYPES.get(kind, str(kind)),
        ttl_propagate=number(found[_RTA_TTL_PROPAGATE]) if _RTA_TTL_PROPAGATE in found else -1,
    )


def _labels(value: bytes) -> tuple[int, ...]:
    return tuple(entry >> _LABEL_SHIFT for (entry,) in struct.iter_unpack(">I", value))


def _label_bytes(labels: tuple[int, ...]) -> bytes:
    entries = [label << _LABEL_SHIFT for label in labels]
    entries[-1] |= _BOTTOM
    return struct.pack(f">{len(entries)}I", *entries)


def _hop(found: netlink.Attributes, ifname: str, weight: int) -> LabelHop:
    via = ""
    if _RTA_VIA in found:
        family, address = number(found[_RTA_VIA][:2]), found[_RTA_VIA][2:]
        via = netlink.mac_text(address) if family == _AF_PACKET else netlink.ip_text(address)
    return LabelHop(ifname=ifname, via=via, labels=_labels(found.get(_RTA_NEWDST, b"")), weight=weight)


def _hops(data: bytes, names: Mapping[int, str]) -> tuple[LabelHop, ...]:
    hops = []
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, _, weight, index = _NEXTHOP.unpack_from(data, offset)
        found = parse(data[offset + _NEXTHOP.size : offset + length])
        hops.append(_hop(found, names.get(index, ""), weight + 1))
        offset += (length + 3) & ~3
    return tuple(hops)


def make(connection: Netlink, route: LabelRoute, indices: Mapping[str, int]) -> None:
    """Make ``route``. Raises KernelRefusal."""
    kind = {name: value for value, name in rtnl_routes.ROUTE_TYPES.items()}[route.type]
    header = rtnl_routes.ROUTE.pack(_AF_MPLS, _LABEL_BITS, 0, 0, _TABLE, route.protocol, 0, kind, 0)
    parts = [attribute(_RTA_DST, _label_bytes((route.label,)))]
    if len(route.hops) == 1:
        hop = route.hops[0]
        parts.append(_hop_bytes(hop))
        if hop.ifname:
            parts.append(attribute(_RTA_OIF, u32(indices[hop.ifname])))
    elif route.hops:
        parts.append(attribute(_RTA_MULTIPATH, b"".join(_multipath(hop, indices) for hop in route.hops)))
    if route.ttl_propagate >= 0:
        parts.append(attribute(_RTA_TTL_PROPAGATE, netlink.u8(route.ttl_propagate)))
    connection.request(rtnl_routes.RTM_NEWROUTE, header + b"".join(parts), netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)


def _multipath(hop: LabelHop, indices: Mapping[str, int]) -> bytes:
    attributes = _hop_bytes(hop)
    length = _NEXTHOP.size + len(attributes)
    return _NEXTHOP.pack(length, 0, hop.weight - 1, indices.get(hop.ifname, 0)) + attributes


def _hop_bytes(hop: LabelHop) -> bytes:
    parts = b""
    if hop.labels:
        parts += attribute(_RTA_NEWDST, _label_bytes(hop.labels))
    if hop.via:
        is_mac = "::" not in hop.via and hop.via.count(":") == _COLONS_IN_MAC
        address = netlink.mac_bytes(hop.via) if is_mac else netlink.ip_bytes(hop.via)
        family = _AF_PACKET if is_mac else rtnl_family.INET[4 if len(address) == 4 else 6]
        parts += attribute(_RTA_VIA, u16(family) + address)
    return parts
