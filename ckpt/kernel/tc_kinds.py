"""What the kinds of traffic control show that is not theirs to keep, and what they want that they do not show.

Most kinds take back the bytes that they gave. Here are the exceptions, as pure functions over those bytes: counters,
times and reference counts are cleared on the way in (``cleared_*``), and what a kind needs beside them is worked out
on the way out (``completed_*``). ``why_not_*`` tells of what does not travel, or not exactly.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from ckpt.kernel.netlink import NLA_F_NESTED, attribute, number, pairs, parse, text, u32
from ckpt.kernel.rewriting import Change, each, rewrite
from ckpt.kernel.tc_tables import damping_table
from ckpt.records import dataclass

CLASSES = frozenset({"htb", "hfsc", "drr", "qfq"})
"""The disciplines whose classes are made one by one; those of all others come with the discipline."""

_EXACT = CLASSES | {
    "bfifo", "cake", "cbs", "clsact", "codel", "etf", "ets", "fq", "fq_codel", "fq_pie", "hhf", "ingress", "mq",
    "mqprio", "multiq", "netem", "noqueue", "pfifo", "pfifo_fast", "pfifo_head_drop", "pie", "prio", "sfb", "sfq",
    "skbprio", "tbf",
}  # fmt: skip
_DAMPED = frozenset({"red", "choke"})

# ---- disciplines --------------------------------------------------------------------------------------------------


def _codel_time(microseconds: int) -> int:
    """What a CoDel shows of a time that it was given: it counts in units of 1024 ns."""
    return (microseconds * 1000 >> 10 << 10) // 1000


def _tick_time(microseconds: int) -> int:
    """What a PIE shows of a time that it was given: it counts in units of 64 ns."""
    return (microseconds * 1000 >> 6 << 6) // 1000


_TIMES: Mapping[str, Mapping[int, Callable[[int], int]]] = {
    "codel": {1: _codel_time, 3: _codel_time, 5: _codel_time},
    "fq_codel": {1: _codel_time, 3: _codel_time, 7: _codel_time},
    "pie": {1: _tick_time},
    "fq_pie": {3: _tick_time},
}


def _giving(shown: Callable[[int], int]) -> Callable[[bytes], bytes]:
    """The value to set so that the value in the bytes is shown; setting that itself would lose a unit each time."""

    def change(value: bytes) -> bytes:
        wanted = number(value)
        return u32(next((one for one in range(wanted, wanted + 3) if shown(one) == wanted), wanted))

    return change


_HTB_INIT, _HTB_COUNTED = 2, 16
_HTB_VERSION_SHIFT = 16  # it shows its whole version, and asks for the first part
_SFQ_STATISTICS = 24
_SFQ_SIZE = 72


def cleared_qdisc(kind: str, options: bytes) -> bytes:
    """TCA_OPTIONS of a discipline without what it counts."""
    if kind == "htb":
        return rewrite(options, {_HTB_INIT: lambda value: value[:_HTB_COUNTED] + bytes(len(value) - _HTB_COUNTED)})
    if kind == "sfq" and len(options) == _SFQ_SIZE:
        return options[:-_SFQ_STATISTICS] + bytes(_SFQ_STATISTICS)
    return options


def completed_qdisc(kind: str, options: bytes) -> bytes:
    """TCA_OPTIONS as the discipline takes them."""
    if kind in _TIMES:
        return rewrite(options, {one: _giving(shown) for one, shown in _TIMES[kind].items()})
    if kind == "htb":
        return rewrite(options, {_HTB_INIT: lambda value: u32(number(value[:4]) >> _HTB_VERSION_SHIFT) + value[4:]})
    if kind == "sfq" and len(options) == _SFQ_SIZE:
        return _sfq_with_flows(options)
    if kind == "tbf":
        return options + _tbf_bytes(options)
    if kind in _DAMPED:
        return options + attribute(_RED_STAB, damping_table())
    return options


_SFQ_LIMIT, _SFQ_FLOWS = 8, 16


def _sfq_with_flows(options: bytes) -> bytes:
    """Left to itself an SFQ has more flows than packets; a limit that is given cuts their number."""
    limit, flows = (number(options[offset : offset + 4]) for offset in (_SFQ_LIMIT, _SFQ_FLOWS))
    return options if flows <= limit else options[:_SFQ_LIMIT] + bytes(4) + options[_SFQ_LIMIT + 4 :]


_RED_STAB = 2
_TBF_PARMS, _TBF_RATE64, _TBF_PRATE64, _TBF_BURST, _TBF_PBURST = 1, 4, 5, 6, 7
_TBF = struct.Struct("=BBHhHI BBHhHI III")
_ETHERNET = 1
_NANOSECONDS = 10**9


def _tbf_bytes(options: bytes) -> bytes:
    """The two bursts in bytes. They are shown as times in units of 64 ns, which may say a byte less than was set.

    The kernel multiplies and shifts where others would divide, and so do we: at slow rates the two differ by bytes.
    """
    found = parse(options)
    fields = _TBF.unpack_from(found[_TBF_PARMS])
    result = b""
    for first, ticks, wide, kind in (
        (0, fields[13], _TBF_RATE64, _TBF_BURST),
        (6, fields[14], _TBF_PRATE64, _TBF_PBURST),
    ):
        overhead, rate = fields[first + 2], number(found[wide]) if wide in found else fields[first + 5]
        if not rate or fields[first + 1] != _ETHERNET:
            continue
        multiplier, shift = _scale(rate)
        size = -(-((ticks + 1) << 6 + shift) // multiplier) - 1 - overhead if multiplier else 0
        if 0 < size < 1 << 32:
            result += attribute(kind, u32(size))
    return result


def _scale(rate: int) -> tuple[int, int]:
    """Multiplier and shift that make nanoseconds of bytes at ``rate`` (psched_ratecfg_precompute__)."""
    factor, shift = _NANOSECONDS, 0
    while not factor // rate >> 31 and not factor >> 63:
        factor, shift = factor << 1, shift + 1
    return factor // rate & 0xFFFFFFFF, shift


def why_not_qdisc(kind: str, options: bytes) -> tuple[str, bool]:
    """Why a discipline travels not, or not exactly (and then whether it can be made at all); empty when it does."""
    if kind in _DAMPED:
        return f"is of kind {kind}, whose damping while idle the kernel does not show: it is estimated", True
    if kind == "netem" and len(options) >= _NETEM.size and _NETEM.unpack_from(options)[5]:
        return "varies its delay; the distribution, if it has one, is not shown by the kernel, and lost", True
    if kind not in _EXACT:
        return f"is of kind {kind}, which is not known to take back what it shows", False
    return "", True


_NETEM = struct.Struct("=IIIIII")

# ---- filters ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _FilterKind:
    """The numbers of a kind's attributes; 0 for what it does not have."""

    actions: int
    police: int = 0
    flags: int = 0
    matches: int = 0
    counted: tuple[int, ...] = ()


_FILTERS = {
    "u32": _FilterKind(actions=7, police=6, flags=11, counted=(9, 12)),
    "flower": _FilterKind(actions=3, flags=22, counted=(86,)),
    "matchall": _FilterKind(actions=2, flags=3, counted=(4, 5)),
    "bpf": _FilterKind(actions=1, police=2, flags=9),
    "fw": _FilterKind(actions=4, police=2),
    "basic": _FilterKind(actions=3, police=4, matches=2, counted=(5, 6)),
    "route": _FilterKind(actions=6, police=5),
    "flow": _FilterKind(actions=9, police=10, matches=11),
    "cgroup": _FilterKind(actions=1, police=2, matches=3),
}
_FLOWER_ETH_TYPE, _FLOWER_VLAN = 8, {23, 24, 25}
_SETTABLE_FLAGS = 1 | 2 | 16  # skip_hw, skip_sw, verbose: the others say what hardware did
_BPF_OPS = 5
_ACTION_BPF_OPS = 4
_MATCH_LIST, _MATCH_IPSET, _MATCH_XT = 2, 8, 9

ACT_KIND, _ACT_OPTIONS = 1, 2
_ACT_COUNTED: dict[int, Change] = dict.fromkeys((4, 5, 9, 10))


def cleared_filter(kind: str, options: bytes) -> bytes:
    """TCA_OPTIONS of a filter without counters, times, references and what hardware did."""
    known = _FILTERS.get(kind)
    if known is None:
        return options
    changes: dict[int, Change] = dict.fromkeys(known.counted)
    changes[known.actions] = each(cleared_action)
    if known.police:
        changes[known.police] = lambda value: _cleared_action_options("police", value)
    if known.flags:
        changes[known.flags] = lambda value: u32(number(value) & _SETTABLE_FLAGS)
    return rewrite(options, changes)


def completed_filter(kind: str, options: bytes, protocol: int) -> bytes:
    """TCA_OPTIONS as the filter of that Ethernet type takes them."""
    known = _FILTERS.get(kind)
    if known is None:
        return options
    changes: dict[int, Change] = {known.actions: each(completed_action)}
    if known.police:
        changes[known.police] = _completed_police
    appended = b""
    if kind == "flower" and parse(options).keys() & _FLOWER_VLAN:
        # It shows the type of what is in the innermost tag, and asks for that of the outermost.
        changes[_FLOWER_ETH_TYPE] = None
        appended = attribute(_FLOWER_ETH_TYPE, struct.pack(">H", protocol))
    return rewrite(options, changes, appended=appended)


def why_not_filter(kind: str, options: bytes) -> str:
    """Why a filter cannot be made again, empty when it can."""
    known = _FILTERS.get(kind)
    if known is None:
        return f"is of kind {kind}, which is not known to take back what it shows"
    found = parse(options)
    if kind == "bpf" and _BPF_OPS not in found:
        return "runs a BPF program, of which only the name is shown"
    if known.matches:
        listed = parse(found.get(known.matches, b"")).get(_MATCH_LIST, b"")
        kinds = {struct.unpack_from("=HH", value)[1] for _, value in pairs(listed)}
        if kinds & {_MATCH_IPSET, _MATCH_XT}:
            return "matches by an ipset or by an iptables match, which are known by numbers of the kernel's own"
    reasons = [why_not_action(action) for _, action in pairs(found.get(known.actions, b""))]
    return next((reason for reason in reasons if reason), "")


# ---- actions ------------------------------------------------------------------------------------------------------

# The attributes that hold a kind's struct, which begins with tc_gen; and those of times, counters and padding.
_ACTIONS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    **dict.fromkeys(
        ("gact", "mirred", "skbedit", "vlan", "bpf", "simple", "sample", "tunnel_key", "mpls", "skbmod", "gate"),
        ((2,), (1,)),
    ),
    **dict.fromkeys(("csum", "nat", "connmark", "ife"), ((1,), (2,))),
    "pedit": ((2, 4), (1,)),
    "ct": ((1,), (2, 15)),
    "ctinfo": ((3,), (1, 2, 8, 9, 10)),
    "police": ((1,), (6,)),
}
ACTION_KINDS = tuple(_ACTIONS)

_GEN = struct.Struct("=IIiii")
_GEN_REFERENCES = 12
_POLICE_REFERENCES = 44
_POLICE_PARMS, _POLICE_RATE, _POLICE_PEAKRATE = 1, 2, 3
_POLICE_RATE_OFFSET, _POLICE_PEAKRATE_OFFSET = 20, 32
_RATE_TABLE = bytes(1024)
_SOME_CELL_LOG = 3


def action_kind(action: bytes) -> str:
    """TCA_ACT_KIND."""
    return text(parse(action).get(ACT_KIND, b""))


def action_counts(action: bytes) -> tuple[int, int, int]:
    """The index of an action as it was read, how often it is held, and how many of these are filters."""
    kind = action_kind(action)
    numbers, _ = _ACTIONS[kind]
    options = parse(parse(action).get(_ACT_OPTIONS, b""))
    value = next(options[one] for one in numbers if one in options)
    offset = _POLICE_REFERENCES if kind == "police" else _GEN_REFERENCES
    held, bound = struct.unpack_from("=ii", value, offset)
    return number(value[:4]), held, bound


def cleared_action(action: bytes) -> bytes:
    """One action's attributes without counters, times and references."""
    kind = action_kind(action)
    return rewrite(action, {**_ACT_COUNTED, _ACT_OPTIONS: lambda value: _cleared_action_options(kind, value)})


def _cleared_action_options(kind: str, options: bytes) -> bytes:
    if kind not in _ACTIONS:
        return options
    numbers, counted = _ACTIONS[kind]
    offset = _POLICE_REFERENCES if kind == "police" else _GEN_REFERENCES

    def unreferenced(value: bytes) -> bytes:
        return value[:offset] + bytes(8) + value[offset + 8 :]

    return rewrite(options, {**dict.fromkeys(counted), **dict.fromkeys(numbers, unreferenced)})


def completed_action(action: bytes) -> bytes:
    """One action's attributes as the kernel takes them: its options marked as nested, as some kinds demand."""
    parts = []
    for kind, value in pairs(action):
        if kind == _ACT_OPTIONS:
            options = _completed_police(value) if action_kind(action) == "police" else value
            parts.append(attribute(kind | NLA_F_NESTED, options))
        else:
            parts.append(attribute(kind, value))
    return b"".join(parts)


def _completed_police(options: bytes) -> bytes:
    """A policer demands a table for each rate, which it reads no more, and a cell size, which it does not show."""

    def with_cells(value: bytes) -> bytes:
        changed = bytearray(value)
        for offset in (_POLICE_RATE_OFFSET, _POLICE_PEAKRATE_OFFSET):
            if any(value[offset : offset + 12]):
                changed[offset] = changed[offset] or _SOME_CELL_LOG
        return bytes(changed)

    parms = parse(options)[_POLICE_PARMS]
    tables = b""
    if any(parms[_POLICE_RATE_OFFSET : _POLICE_RATE_OFFSET + 12]):
        tables += attribute(_POLICE_RATE, _RATE_TABLE)
    if any(parms[_POLICE_PEAKRATE_OFFSET : _POLICE_PEAKRATE_OFFSET + 12]):
        tables += attribute(_POLICE_PEAKRATE, _RATE_TABLE)
    return rewrite(options, {_POLICE_PARMS: with_cells}, appended=tables)


def why_not_action(action: bytes) -> str:
    """Why an action cannot be made again, empty when it can."""
    kind = action_kind(action)
    if kind not in _ACTIONS:
        return f"has an action of kind {kind}, which is not known to take back what it shows"
    if kind == "bpf" and _ACTION_BPF_OPS not in parse(parse(action).get(_ACT_OPTIONS, b"")):
        return "has an action that runs a BPF program, of which only the name is shown"
    return ""
