"""Rules of routing: from rtnetlink to records, and back to messages."""

from __future__ import annotations

import struct

from ckpt.kernel.netlink import attribute, ip_bytes, ip_text, number, parse, string, text, u8, u16, u32
from ckpt.kernel.rtnl_family import INET, VERSION
from ckpt.model.network import Rule, Unread

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

RULE = struct.Struct("=BBBBBBBBI")

_ACTIONS = {1: "to_table", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_FRA_DST, _FRA_SRC, _FRA_PRIORITY, _FRA_TABLE = 1, 2, 6, 15
_FIB_RULE_INVERT = 2
_UNSET = 0xFFFFFFFF
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
            if not (name.startswith("suppress") and number(value) == _UNSET):
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
            subject = f"IPv{VERSION[family]} rule {priority}"
            unread.append(Unread(code="rule-attribute", subject=subject, what=f"has the unknown attribute {kind}"))
    return Rule(
        family=VERSION[family],
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
