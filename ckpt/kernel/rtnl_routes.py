"""Routes: from rtnetlink to records, and back to messages.

The reader of the bytes of one message has its mirror, which makes the bytes of the message that would create the same.
Links are names in records and numbers on the wire; the caller gives the mapping. Nothing here decides what is created.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Mapping
from operator import attrgetter
from socket import inet_ntop
from typing import Any

from ckpt.kernel import netlink, rtnl_encap
from ckpt.kernel.netlink import attribute, ip_bytes, ip_text, nested, number, parse, string, text, u8, u16, u32
from ckpt.kernel.rtnl_family import INET, SCOPES, scope_number
from ckpt.model.network import Nexthop, Route, Unread
from ckpt.model.plenty import in_plenty

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

ROUTE_TYPES = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}
_ROUTE_TYPE_NUMBERS = {name: value for value, name in ROUTE_TYPES.items()}

ROUTE = struct.Struct("=BBBBBBBBI")
_NEXTHOP = struct.Struct("=HBBi")
_INDEX = struct.Struct("=I")
_INTEGER = struct.Struct("=HHI")  # an attribute that is a number of four bytes

_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 2, 4, 5, 6, 7
_RTA_METRICS, _RTA_MULTIPATH, _RTA_FLOW, _RTA_CACHEINFO, _RTA_TABLE, _RTA_VIA = 8, 9, 11, 12, 15, 18
_RTA_PREF, _RTA_ENCAP_TYPE, _RTA_ENCAP, _RTA_EXPIRES, _RTA_NH_ID = 20, 21, 22, 23, 30
_ROUTE_READ = {1, 2, 4, 5, 6, 7, 8, 9, 11, 12, 15, 18, 20, 21, 22, 23, 24, 30}
_USUAL = frozenset(
    {_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_CACHEINFO, _RTA_TABLE, _RTA_PREF}
)
_OF_NEXTHOP = {_RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA, _RTA_ENCAP_TYPE, _RTA_ENCAP}
_HOP_READ = {_RTA_GATEWAY, _RTA_VIA, _RTA_FLOW, _RTA_ENCAP_TYPE, _RTA_ENCAP}
_ROUTE_FLAGS = {"pervasive": 2, "onlink": 4}
_METRICS = {
    1: "lock",
    2: "mtu",
    3: "window",
    4: "rtt",
    5: "rttvar",
    6: "ssthresh",
    7: "cwnd",
    8: "advmss",
    9: "reordering",
    10: "hoplimit",
    11: "initcwnd",
    12: "features",
    13: "rto_min",
    14: "initrwnd",
    15: "quickack",
    17: "fastopen_no_cookie",
}
_RTAX_CC_ALGO = 16
_CACHEINFO = struct.Struct("=8xi")  # rta_expires after rta_clntref and rta_lastuse
_TICKS_PER_SECOND = 100  # USER_HZ, in which cache information counts


def decode_route(body: bytes, names: Mapping[int, str], unread: list[Unread]) -> Route:
    """One RTM_NEWROUTE; what the record cannot hold goes to ``unread``."""
    found = parse(body, ROUTE.size)
    get = found.get
    address_family, nowhere, common = _common(body[: ROUTE.size], get(_RTA_TABLE), get(_RTA_PRIORITY), get(_RTA_PREF))
    destination = f"{inet_ntop(address_family, get(_RTA_DST, nowhere))}/{body[1]}"
    more: dict[str, Any] = {}
    # Of ten thousand routes nearly all have nothing of this: asked first, worked out then.
    if not _USUAL.issuperset(found):
        found, more = _unusual(found, destination, body[2], names, unread)
        if "nexthop_id" in more:
            common = {**common, "flags": ()}
    return in_plenty(Route)(
        destination=destination,
        ifname=names.get(_INDEX.unpack(found[_RTA_OIF])[0], "") if _RTA_OIF in found else "",
        gateway=_gateway(found) if _RTA_GATEWAY in found or _RTA_VIA in found else "",
        preferred_source=ip_text(found[_RTA_PREFSRC]) if _RTA_PREFSRC in found else "",
        expires=_expires(found[_RTA_CACHEINFO]) if _RTA_CACHEINFO in found else None,
        **common,
        **more,
    )


@functools.lru_cache(256)
def _common(
    header: bytes, table: bytes | None, priority: bytes | None, preference: bytes | None
) -> tuple[socket.AddressFamily, bytes, Mapping[str, Any]]:
    """What of ten thousand routes most have in common: the family, its zero address, and fields of the record."""
    family, _, _, tos, low_table, protocol, scope, kind, flags = ROUTE.unpack(header)
    fields = {
        "type": ROUTE_TYPES.get(kind) or str(kind),
        "table": low_table if table is None else number(table),
        "scope": SCOPES.get(scope) or str(scope),
        "protocol": protocol,
        "priority": number(priority or b""),
        "tos": tos,
        "flags": _route_flags(flags),
        "preference": preference[0] if preference else 0,
    }
    if family == INET[4]:
        return socket.AF_INET, bytes(4), fields
    return socket.AF_INET6, bytes(16), fields


def _unusual(
    found: netlink.Attributes, destination: str, source_length: int, names: Mapping[int, str], unread: list[Unread]
) -> tuple[netlink.Attributes, dict[str, Any]]:
    """The attributes that are left for ``decode_route``, and the fields of the record that the others make."""
    more: dict[str, Any] = {}
    strange = [f"attribute {one}" for one in sorted(found.keys() - _ROUTE_READ)]
    if nexthop_id := number(found.get(_RTA_NH_ID, b"")):
        # What the object says is shown beside its number, unless net.ipv4.nexthop_compat_mode is off.
        found = {one: value for one, value in found.items() if one not in _OF_NEXTHOP}
        more["nexthop_id"] = nexthop_id
    more["encapsulation"], more["encapsulation_data"] = _encapsulation(found, destination, unread)
    if _RTA_METRICS in found:
        metrics = parse(found[_RTA_METRICS])
        strange += [f"metric {one}" for one in sorted(metrics.keys() - _METRICS.keys() - {_RTAX_CC_ALGO})]
        more["metrics"] = {_METRICS[kind]: number(value) for kind, value in metrics.items() if kind in _METRICS}
        more["congestion_control"] = text(metrics.get(_RTAX_CC_ALGO, b""))
    if _RTA_SRC in found:
        more["source"] = f"{ip_text(found[_RTA_SRC])}/{source_length}"
    if _RTA_MULTIPATH in found:
        more["nexthops"] = _nexthops(found[_RTA_MULTIPATH], names, destination, unread)
    more["realms"] = number(found.get(_RTA_FLOW, b""))
    subject = f"route {destination}"
    unread += [Unread(code="route-attribute", subject=subject, what=f"has the unknown {one}") for one in strange]
    return found, more


def _expires(cache: bytes) -> int | None:
    """The seconds that remain, of RTA_CACHEINFO."""
    (ticks,) = _CACHEINFO.unpack_from(cache)
    return max(ticks // _TICKS_PER_SECOND, 1) if ticks > 0 else None


def _encapsulation(found: netlink.Attributes, destination: str, unread: list[Unread]) -> tuple[str, bytes]:
    if _RTA_ENCAP_TYPE not in found:
        return "", b""
    name, data = rtnl_encap.decode(found[_RTA_ENCAP_TYPE], found.get(_RTA_ENCAP, b""))
    if reason := rtnl_encap.why_not(name, data):
        unread.append(Unread(code="route-encapsulation", subject=f"route {destination}", what=reason))
    return name, data


def _gateway(found: netlink.Attributes) -> str:
    if _RTA_GATEWAY in found:
        return ip_text(found[_RTA_GATEWAY])
    return ip_text(found[_RTA_VIA][2:]) if _RTA_VIA in found else ""


def _route_flags(bits: int) -> tuple[str, ...]:
    if not bits:
        return ()
    return tuple(sorted(name for name, bit in _ROUTE_FLAGS.items() if bits & bit))


def _nexthops(data: bytes, names: Mapping[int, str], destination: str, unread: list[Unread]) -> tuple[Nexthop, ...]:
    hops: list[Nexthop] = []
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, flags, weight, index = _NEXTHOP.unpack_from(data, offset)
        found = parse(data[offset + _NEXTHOP.size : offset + length])
        encapsulation, around = _encapsulation(found, destination, unread)
        hops.append(
            Nexthop(
                ifname=names.get(index, ""),
                gateway=_gateway(found),
                weight=weight + 1,
                flags=_route_flags(flags),
                realms=number(found.get(_RTA_FLOW, b"")),
                encapsulation=encapsulation,
                encapsulation_data=around,
            )
        )
        for strange in sorted(found.keys() - _HOP_READ):
            what = f"has a next hop with the unknown attribute {strange}"
            unread.append(Unread(code="route-attribute", subject=f"route {destination}", what=what))
        offset += (length + 3) & ~3
    return tuple(hops)


def encode_route(route: Route, indices: Mapping[str, int]) -> bytes:
    """The body of the RTM_NEWROUTE or RTM_DELROUTE for ``route``."""
    plain, _, length = route.destination.partition("/")
    destination = ip_bytes(plain)
    family = 4 if len(destination) == 4 else 6
    source, _, source_length = route.source.partition("/")
    parts = [_alike(family, int(length), int(source_length or 0), *_ALIKE(route))]
    if length != "0" or any(destination):
        parts.append(attribute(_RTA_DST, destination))
    if route.ifname:
        parts.append(_INTEGER.pack(_INTEGER.size, _RTA_OIF, indices[route.ifname]))
    if route.gateway:
        parts.append(_gateway_bytes(route.gateway, family))
    if source:
        parts.append(attribute(_RTA_SRC, ip_bytes(source)))
    if route.preferred_source:
        parts.append(attribute(_RTA_PREFSRC, ip_bytes(route.preferred_source)))
    if route.expires:
        parts.append(attribute(_RTA_EXPIRES, u32(route.expires)))
    if route.encapsulation:
        parts.append(_encapsulation_bytes(route))
    if route.metrics or route.congestion_control:
        parts.append(_metrics_bytes(route))
    if route.nexthops:
        parts.append(_nexthops_bytes(route, family, indices))
    return b"".join(parts)


_ALIKE = attrgetter(
    "type", "table", "protocol", "scope", "tos", "flags", "priority", "realms", "nexthop_id", "preference"
)


@functools.lru_cache(256)
def _alike(
    family: int,
    length: int,
    source_length: int,
    kind: str,
    table: int,
    protocol: int,
    scope: str,
    tos: int,
    flags: tuple[str, ...],
    priority: int,
    realms: int,
    nexthop_id: int,
    preference: int,
) -> bytes:
    """The header and the attributes that of ten thousand routes most have in common."""
    bits = sum(_ROUTE_FLAGS[name] for name in flags)
    low_table = table if table < 256 else 0
    number_of_kind, number_of_scope = _ROUTE_TYPE_NUMBERS[kind], scope_number(scope)
    header = ROUTE.pack(
        INET[family], length, source_length, tos, low_table, protocol, number_of_scope, number_of_kind, bits
    )
    parts = [attribute(_RTA_TABLE, u32(table))]
    for number_of_value, value in ((_RTA_PRIORITY, priority), (_RTA_FLOW, realms), (_RTA_NH_ID, nexthop_id)):
        if value:
            parts.append(attribute(number_of_value, u32(value)))
    if preference:
        parts.append(attribute(_RTA_PREF, u8(preference)))
    return header + b"".join(parts)


def _encapsulation_bytes(hop: Route | Nexthop) -> bytes:
    return rtnl_encap.encode(
        hop.encapsulation, hop.encapsulation_data, kind_attribute=_RTA_ENCAP_TYPE, data_attribute=_RTA_ENCAP
    )


@functools.lru_cache(4096)  # ten thousand routes lead through few
def _gateway_bytes(gateway: str, family: int) -> bytes:
    value = ip_bytes(gateway)
    version = 4 if len(value) == 4 else 6
    if version == family:
        return attribute(_RTA_GATEWAY, value)
    return attribute(_RTA_VIA, u16(INET[version]) + value)


def _metrics_bytes(route: Route) -> bytes:
    numbers = {name: kind for kind, name in _METRICS.items()}
    parts = [attribute(numbers[name], u32(value)) for name, value in route.metrics.items()]
    if route.congestion_control:
        parts.append(attribute(_RTAX_CC_ALGO, string(route.congestion_control)))
    return nested(_RTA_METRICS, *parts)


def _nexthops_bytes(route: Route, family: int, indices: Mapping[str, int]) -> bytes:
    hops: list[bytes] = []
    for hop in route.nexthops:
        parts = _gateway_bytes(hop.gateway, family) if hop.gateway else b""
        if hop.realms:
            parts += attribute(_RTA_FLOW, u32(hop.realms))
        parts += _encapsulation_bytes(hop)
        flags = sum(_ROUTE_FLAGS[name] for name in hop.flags)
        length = _NEXTHOP.size + len(parts)
        hops.append(_NEXTHOP.pack(length, flags, hop.weight - 1, indices.get(hop.ifname, 0)) + parts)
    return nested(_RTA_MULTIPATH, *hops)
