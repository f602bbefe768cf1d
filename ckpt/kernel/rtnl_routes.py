"""Addresses, routes, rules and neighbours: from rtnetlink to records, and back to messages.

Each kind has a reader of the bytes of one message and its mirror, which makes the bytes of the message that would
create the same. Interfaces are names in records and numbers on the wire; the caller gives the mapping. Nothing here
decides what is created or removed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ckpt.kernel import netlink, rtnl_encap
from ckpt.kernel.netlink import attribute, ip_bytes, ip_text, nested, number, parse, string, text, u8, u16, u32
from ckpt.model.network import Address, Neighbour, Nexthop, Route, Rule, Unread

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

INET = {4: 2, 6: 10}
_VERSION = {2: 4, 10: 6}
FOREVER = 0xFFFFFFFF

SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
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

ADDRESS = struct.Struct("=BBBBI")
ROUTE = struct.Struct("=BBBBBBBBI")
RULE = struct.Struct("=BBBBBBBBI")
NEIGHBOUR = struct.Struct("=BxxxiHBB")
_NEXTHOP = struct.Struct("=HBBi")

_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST, _IFA_CACHEINFO = 1, 2, 3, 4, 6
_IFA_FLAGS, _IFA_RT_PRIORITY, _IFA_PROTO = 8, 9, 11
_ADDRESS_FLAGS = {
    "temporary": 0x01,  # for IPv4 the same bit is "secondary"
    "nodad": 0x02,
    "optimistic": 0x04,
    "dadfailed": 0x08,
    "homeaddress": 0x10,
    "deprecated": 0x20,
    "managetempaddr": 0x100,
    "noprefixroute": 0x200,
    "mcautojoin": 0x400,
    "stable-privacy": 0x800,
}
# deprecated follows from the lifetime; the others the kernel takes from nobody (inet6_rtm_newaddr's mask).
UNSETTABLE_ADDRESS_FLAGS = frozenset({"temporary", "dadfailed", "deprecated", "optimistic", "stable-privacy"})
_IFA_F_TENTATIVE = 0x40

_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 2, 4, 5, 6, 7
_RTA_METRICS, _RTA_MULTIPATH, _RTA_FLOW, _RTA_CACHEINFO, _RTA_TABLE, _RTA_VIA = 8, 9, 11, 12, 15, 18
_RTA_PREF, _RTA_ENCAP_TYPE, _RTA_ENCAP, _RTA_EXPIRES, _RTA_NH_ID = 20, 21, 22, 23, 30
_ROUTE_READ = {1, 2, 4, 5, 6, 7, 8, 9, 11, 12, 15, 18, 20, 21, 22, 23, 24, 30}
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
_TICKS_PER_SECOND = 100  # USER_HZ, in which cache information counts

_ACTIONS = {1: "to_table", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_FRA_DST, _FRA_SRC, _FRA_PRIORITY, _FRA_TABLE = 1, 2, 6, 15
_FIB_RULE_INVERT = 2
_RULE_NUMBERS = {
    4: ("goto", 4),
    10: ("fwmark", 4),
    11: ("flow", 4),
    13: ("suppress_ifgroup", 4),
    14: ("suppress_prefixlen", 4),
    16: ("fwmask", 4),
    19: ("l3mdev", 1),
    21: ("protocol", 1),
    22: ("ip_proto", 1),
    25: ("dscp", 1),
    28: ("sport_mask", 2),
    29: ("dport_mask", 2),
    30: ("dscp_mask", 1),
}
_RULE_BIG_ENDIAN = {12: ("tun_id", 8), 26: ("flowlabel", 4), 27: ("flowlabel_mask", 4)}
_RULE_NAMES = {3: "iifname", 17: "oifname"}
_RULE_RANGES = {20: ("uid_range", "=II"), 23: ("sport_range", "=HH"), 24: ("dport_range", "=HH")}

_NDA_DST, _NDA_LLADDR, _NDA_PROTOCOL, _NDA_FLAGS_EXT = 1, 2, 12, 15
NTF_PROXY = 0x08
NUD_PERMANENT, _NUD_NOARP, _NUD_REACHABLE = 0x80, 0x40, 0x02
_NEIGHBOUR_STATES = {NUD_PERMANENT: "permanent", _NUD_NOARP: "noarp", _NUD_REACHABLE: "reachable"}
_NEIGHBOUR_FLAGS = {"use": 0x01, "extern_learn": 0x10, "router": 0x80}
_NEIGHBOUR_FLAGS_EXT = {"managed": 0x1}


def decode_address(body: bytes, names: Mapping[int, str]) -> Address:
    """One RTM_NEWADDR."""
    family, length, low_flags, scope, index = ADDRESS.unpack_from(body)
    found = parse(body, ADDRESS.size)
    bits = number(found[_IFA_FLAGS]) if _IFA_FLAGS in found else low_flags
    if family == INET[4]:
        bits &= ~_ADDRESS_FLAGS["temporary"]
    local = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    other = found.get(_IFA_ADDRESS, local)
    preferred, valid = FOREVER, FOREVER
    if _IFA_CACHEINFO in found:
        preferred, valid = struct.unpack_from("=II", found[_IFA_CACHEINFO])
    ifname = names[index]
    label = text(found.get(_IFA_LABEL, b""))
    return Address(
        ifname=ifname,
        address=f"{ip_text(local)}/{length}",
        peer=f"{ip_text(other)}/{length}" if other != local else "",
        broadcast=ip_text(found[_IFA_BROADCAST]) if _IFA_BROADCAST in found else "",
        scope=SCOPES.get(scope, str(scope)),
        label="" if label == ifname else label,
        flags=tuple(sorted(name for name, bit in _ADDRESS_FLAGS.items() if bits & bit)),
        valid_lifetime=None if valid == FOREVER else valid,
        preferred_lifetime=None if preferred == FOREVER else preferred,
        metric=number(found.get(_IFA_RT_PRIORITY, b"")),
        protocol=number(found.get(_IFA_PROTO, b"")),
    )


def is_tentative(body: bytes) -> bool:
    """Whether the address of one RTM_NEWADDR is tentative."""
    return bool(number(parse(body, ADDRESS.size).get(_IFA_FLAGS, b"")) & _IFA_F_TENTATIVE)


def encode_address(address: Address, indices: Mapping[str, int]) -> bytes:
    """The body of the RTM_NEWADDR or RTM_DELADDR for ``address``."""
    plain, _, length = address.address.partition("/")
    local = ip_bytes(plain)
    other = ip_bytes(address.peer.partition("/")[0]) if address.peer else local
    bits = sum(_ADDRESS_FLAGS[name] for name in address.flags if name not in UNSETTABLE_ADDRESS_FLAGS)
    preferred = FOREVER if address.preferred_lifetime is None else address.preferred_lifetime
    valid = FOREVER if address.valid_lifetime is None else address.valid_lifetime
    header = ADDRESS.pack(
        INET[4 if len(local) == 4 else 6], int(length), bits & 0xFF, _scope(address.scope), indices[address.ifname]
    )
    parts = [attribute(_IFA_LOCAL, local), attribute(_IFA_ADDRESS, other), attribute(_IFA_FLAGS, u32(bits))]
    parts.append(attribute(_IFA_CACHEINFO, struct.pack("=IIII", preferred, valid, 0, 0)))
    if address.broadcast:
        parts.append(attribute(_IFA_BROADCAST, ip_bytes(address.broadcast)))
    if len(local) == 4:
        parts.append(attribute(_IFA_LABEL, string(address.label or address.ifname)))
    if address.metric:
        parts.append(attribute(_IFA_RT_PRIORITY, u32(address.metric)))
    if address.protocol:
        parts.append(attribute(_IFA_PROTO, u8(address.protocol)))
    return header + b"".join(parts)


def decode_route(body: bytes, names: Mapping[int, str], unread: list[Unread]) -> Route:
    """One RTM_NEWROUTE; what the record cannot hold goes to ``unread``."""
    family, length, source_length, tos, table, protocol, scope, kind, flags = ROUTE.unpack_from(body)
    found = parse(body, ROUTE.size)
    empty = bytes(4 if family == INET[4] else 16)
    destination = f"{ip_text(found.get(_RTA_DST, empty))}/{length}"
    metrics = parse(found[_RTA_METRICS]) if _RTA_METRICS in found else {}
    expires = 0
    if _RTA_CACHEINFO in found:
        expires = struct.unpack_from("=IIi", found[_RTA_CACHEINFO])[2]
    for strange in sorted(found.keys() - _ROUTE_READ):
        what = f"has the unknown attribute {strange}"
        unread.append(Unread(code="route-attribute", subject=f"route {destination}", what=what))
    nexthop_id = number(found.get(_RTA_NH_ID, b""))
    if nexthop_id:
        # What the object says is shown beside its number, unless net.ipv4.nexthop_compat_mode is off.
        found = {one: value for one, value in found.items() if one not in _OF_NEXTHOP}
    encapsulation, data = _encapsulation(found, destination, unread)
    for strange in sorted(metrics.keys() - _METRICS.keys() - {_RTAX_CC_ALGO}):
        what = f"has the unknown metric {strange}"
        unread.append(Unread(code="route-attribute", subject=f"route {destination}", what=what))
    return Route(
        destination=destination,
        type=ROUTE_TYPES.get(kind, str(kind)),
        table=number(found[_RTA_TABLE]) if _RTA_TABLE in found else table,
        ifname=names.get(number(found.get(_RTA_OIF, b"")), ""),
        gateway=_gateway(found),
        nexthop_id=nexthop_id,
        encapsulation=encapsulation,
        encapsulation_data=data,
        source=f"{ip_text(found[_RTA_SRC])}/{source_length}" if _RTA_SRC in found else "",
        preferred_source=ip_text(found[_RTA_PREFSRC]) if _RTA_PREFSRC in found else "",
        scope=SCOPES.get(scope, str(scope)),
        protocol=protocol,
        priority=number(found.get(_RTA_PRIORITY, b"")),
        tos=tos,
        flags=() if nexthop_id else _route_flags(flags),
        nexthops=_nexthops(found.get(_RTA_MULTIPATH, b""), names, destination, unread),
        metrics={_METRICS[kind]: number(value) for kind, value in metrics.items() if kind in _METRICS},
        congestion_control=text(metrics.get(_RTAX_CC_ALGO, b"")),
        preference=_preference(found.get(_RTA_PREF, b"\0")),
        realms=number(found.get(_RTA_FLOW, b"")),
        expires=max(expires // _TICKS_PER_SECOND, 1) if expires > 0 else None,
    )


def _encapsulation(found: netlink.Attributes, destination: str, unread: list[Unread]) -> tuple[str, bytes]:
    if _RTA_ENCAP_TYPE not in found:
        return "", b""
    name, data = rtnl_encap.decode(found[_RTA_ENCAP_TYPE], found.get(_RTA_ENCAP, b""))
    if reason := rtnl_encap.why_not(name, data):
        unread.append(Unread(code="route-encapsulation", subject=f"route {destination}", what=reason))
    return name, data


def _preference(value: bytes) -> int:
    return value[0]


def _gateway(found: netlink.Attributes) -> str:
    if _RTA_VIA in found:
        return ip_text(found[_RTA_VIA][2:])
    return ip_text(found[_RTA_GATEWAY]) if _RTA_GATEWAY in found else ""


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
    source, _, source_length = route.source.partition("/")
    kind = _ROUTE_TYPE_NUMBERS[route.type]
    flags = sum(_ROUTE_FLAGS[name] for name in route.flags)
    table = route.table if route.table < 256 else 0
    header = ROUTE.pack(
        INET[route.family],
        int(length),
        int(source_length or 0),
        route.tos,
        table,
        route.protocol,
        _scope(route.scope),
        kind,
        flags,
    )
    parts = [attribute(_RTA_TABLE, u32(route.table))]
    if int(length) or any(ip_bytes(plain)):
        parts.append(attribute(_RTA_DST, ip_bytes(plain)))
    if source:
        parts.append(attribute(_RTA_SRC, ip_bytes(source)))
    if route.ifname:
        parts.append(attribute(_RTA_OIF, u32(indices[route.ifname])))
    if route.preferred_source:
        parts.append(attribute(_RTA_PREFSRC, ip_bytes(route.preferred_source)))
    parts += _gateway_bytes(route.gateway, route.family)
    for attribute_kind, value in (
        (_RTA_PRIORITY, route.priority),
        (_RTA_FLOW, route.realms),
        (_RTA_EXPIRES, route.expires or 0),
        (_RTA_NH_ID, route.nexthop_id),
    ):
        if value:
            parts.append(attribute(attribute_kind, u32(value)))
    if route.preference:
        parts.append(attribute(_RTA_PREF, u8(route.preference)))
    parts.append(_encapsulation_bytes(route))
    return header + b"".join(parts) + _metrics_bytes(route) + _nexthops_bytes(route, indices)


def _encapsulation_bytes(hop: Route | Nexthop) -> bytes:
    return rtnl_encap.encode(
        hop.encapsulation, hop.encapsulation_data, kind_attribute=_RTA_ENCAP_TYPE, data_attribute=_RTA_ENCAP
    )


def _gateway_bytes(gateway: str, family: int) -> list[bytes]:
    if not gateway:
        return []
    value = ip_bytes(gateway)
    version = 4 if len(value) == 4 else 6
    if version == family:
        return [attribute(_RTA_GATEWAY, value)]
    return [attribute(_RTA_VIA, u16(INET[version]) + value)]


def _metrics_bytes(route: Route) -> bytes:
    if not route.metrics and not route.congestion_control:
        return b""
    numbers = {name: kind for kind, name in _METRICS.items()}
    parts = [attribute(numbers[name], u32(value)) for name, value in route.metrics.items()]
    if route.congestion_control:
        parts.append(attribute(_RTAX_CC_ALGO, string(route.congestion_control)))
    return nested(_RTA_METRICS, *parts) if parts else b""


def _nexthops_bytes(route: Route, indices: Mapping[str, int]) -> bytes:
    hops: list[bytes] = []
    for hop in route.nexthops:
        parts = b"".join(_gateway_bytes(hop.gateway, route.family))
        if hop.realms:
            parts += attribute(_RTA_FLOW, u32(hop.realms))
        parts += _encapsulation_bytes(hop)
        flags = sum(_ROUTE_FLAGS[name] for name in hop.flags)
        length = _NEXTHOP.size + len(parts)
        hops.append(_NEXTHOP.pack(length, flags, hop.weight - 1, indices.get(hop.ifname, 0)) + parts)
    return nested(_RTA_MULTIPATH, *hops) if hops else b""


def _scope(name: str) -> int:
    return _SCOPE_NUMBERS[name] if name in _SCOPE_NUMBERS else int(name)


_SCOPE_NUMBERS = {name: value for value, name in SCOPES.items()}
_ROUTE_TYPE_NUMBERS = {name: value for value, name in ROUTE_TYPES.items()}


def decode_rule(body: bytes, unread: list[Unread]) -> Rule:
    """One RTM_NEWRULE."""
    family, dst_length, src_length, tos, table, _, _, action, flags = RULE.unpack_from(body)
    found = parse(body, RULE.size)
    numbers: dict[str, int] = {}
    values: dict[str, str] = {}
    priority = number(found.pop(_FRA_PRIORITY, b""))
    table = number(found.pop(_FRA_TABLE)) if _FRA_TABLE in found else table
    for kind, value in found.items():
        if kind in _RULE_NUMBERS:
            name, _ = _RULE_NUMBERS[kind]
            if not (name.startswith("suppress") and number(value) == FOREVER):
                numbers[name] = number(value)
        elif kind in _RULE_BIG_ENDIAN:
            numbers[_RULE_BIG_ENDIAN[kind][0]] = number(value, "be")
        elif kind in _RULE_NAMES:
            values[_RULE_NAMES[kind]] = text(value)
        elif kind in _RULE_RANGES:
            name, layout = _RULE_RANGES[kind]
            values[name] = "{}-{}".format(*struct.unpack(layout, value))
        elif kind == _FRA_DST:
            values["dst"] = f"{ip_text(value)}/{dst_length}"
        elif kind == _FRA_SRC:
            values["src"] = f"{ip_text(value)}/{src_length}"
        elif kind != 18:  # FRA_PAD
            subject = f"IPv{_VERSION[family]} rule {priority}"
            unread.append(Unread(code="rule-attribute", subject=subject, what=f"has the unknown attribute {kind}"))
    return Rule(
        family=_VERSION[family],
        priority=priority,
        action=_ACTIONS.get(action, str(action)),
        table=table,
        tos=tos,
        invert=bool(flags & _FIB_RULE_INVERT),
        selectors=numbers,
        values=values,
    )


def encode_rule(rule: Rule) -> bytes:
    """The body of the RTM_NEWRULE or RTM_DELRULE for ``rule``."""
    lengths = {name: rule.values[name].partition("/")[2] if name in rule.values else "0" for name in ("dst", "src")}
    action = {name: value for value, name in _ACTIONS.items()}[rule.action]
    flags = _FIB_RULE_INVERT if rule.invert else 0
    table = rule.table if rule.table < 256 else 0
    header = RULE.pack(
        INET[rule.family], int(lengths["dst"]), int(lengths["src"]), rule.tos, table, 0, 0, action, flags
    )
    parts = [attribute(_FRA_PRIORITY, u32(rule.priority)), attribute(_FRA_TABLE, u32(rule.table))]
    for kind, (name, size) in _RULE_NUMBERS.items():
        if name in rule.selectors:
            parts.append(attribute(kind, {1: u8, 2: u16, 4: u32}[size](rule.selectors[name])))
    for kind, (name, size) in _RULE_BIG_ENDIAN.items():
        if name in rule.selectors:
            parts.append(attribute(kind, rule.selectors[name].to_bytes(size, "big")))
    for kind, name in _RULE_NAMES.items():
        if name in rule.values:
            parts.append(attribute(kind, string(rule.values[name])))
    for kind, (name, layout) in _RULE_RANGES.items():
        if name in rule.values:
            parts.append(attribute(kind, struct.pack(layout, *map(int, rule.values[name].split("-")))))
    for kind, name in ((_FRA_DST, "dst"), (_FRA_SRC, "src")):
        if name in rule.values:
            parts.append(attribute(kind, ip_bytes(rule.values[name].partition("/")[0])))
    return header + b"".join(parts)


def decode_neighbour(body: bytes, names: Mapping[int, str], silent: Mapping[int, str | None]) -> Neighbour | None:
    """One RTM_NEWNEIGH; None for an entry that was learnt, or that the kernel made by itself.

    ``silent`` are the links on which nobody asks for addresses, with their own: there every neighbour is ``noarp``, and
    one that the kernel made has the link's own address or none (arp_constructor, ndisc_constructor).
    """
    if not is_set(body):
        return None
    _, index, state, flags, _ = NEIGHBOUR.unpack_from(body)
    proxy = bool(flags & NTF_PROXY)
    found = parse(body, NEIGHBOUR.size)
    address, mac = found[_NDA_DST], found.get(_NDA_LLADDR, b"")
    set_flags = {name for name, bit in _NEIGHBOUR_FLAGS.items() if flags & bit}
    set_flags |= {name for name, bit in _NEIGHBOUR_FLAGS_EXT.items() if number(found.get(_NDA_FLAGS_EXT, b"")) & bit}
    own = index in silent and (not any(mac) or netlink.mac_text(mac) == silent[index])
    by_nature = own or mac[:1] == b"\xff" or _is_multicast(address) or not names.get(index)
    if state & _NUD_NOARP and by_nature and not set_flags - {"router"}:
        return None
    # Whether one that is kept alive, or that another tells of, is fresh or stale at the moment is not kept.
    kept = next((name for bit, name in _NEIGHBOUR_STATES.items() if state & bit), "reachable")
    managed = "managed" in set_flags
    return Neighbour(
        ifname=names.get(index, ""),
        address=ip_text(address),
        mac="" if proxy or managed else netlink.mac_text(mac),
        proxy=proxy,
        flags=tuple(sorted(set_flags)),
        protocol=number(found.get(_NDA_PROTOCOL, b"")),
        state="permanent" if proxy else "" if managed else kept,
    )


def _is_multicast(address: bytes) -> bool:
    return address[0] == 0xFF if len(address) == 16 else address[0] >> 4 == 0xE


def is_set(body: bytes) -> bool:
    """Whether one RTM_NEWNEIGH or RTM_DELNEIGH may be about an entry that somebody set."""
    _, _, state, flags, _ = NEIGHBOUR.unpack_from(body)
    if state & NUD_PERMANENT or flags & (NTF_PROXY | _NEIGHBOUR_FLAGS["extern_learn"]):
        return True
    found = parse(body, NEIGHBOUR.size)
    noarp = bool(state & _NUD_NOARP) and not _is_multicast(found.get(_NDA_DST, b"\xff"))
    return noarp or bool(number(found.get(_NDA_FLAGS_EXT, b"")) & _NEIGHBOUR_FLAGS_EXT["managed"])


def encode_neighbour(neighbour: Neighbour, indices: Mapping[str, int]) -> bytes:
    """The body of the RTM_NEWNEIGH or RTM_DELNEIGH for ``neighbour``."""
    address = ip_bytes(neighbour.address)
    flags = sum(_NEIGHBOUR_FLAGS.get(name, 0) for name in neighbour.flags) | (NTF_PROXY if neighbour.proxy else 0)
    extended = sum(_NEIGHBOUR_FLAGS_EXT.get(name, 0) for name in neighbour.flags)
    numbers = {name: bit for bit, name in _NEIGHBOUR_STATES.items()}
    state = 0 if neighbour.proxy else numbers.get(neighbour.state, 0)
    family = INET[4 if len(address) == 4 else 6]
    parts = [attribute(_NDA_DST, address)]
    if neighbour.mac:
        parts.append(attribute(_NDA_LLADDR, netlink.mac_bytes(neighbour.mac)))
    if extended:
        parts.append(attribute(_NDA_FLAGS_EXT, u32(extended)))
    if neighbour.protocol:
        parts.append(attribute(_NDA_PROTOCOL, u8(neighbour.protocol)))
    return NEIGHBOUR.pack(family, indices.get(neighbour.ifname, 0), state, flags, 0) + b"".join(parts)
