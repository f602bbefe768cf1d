"""What differs between two checkpoints: which objects came, went or changed, and which of their fields.

Two images, or an image and a live group, come in as records; differences come out as records, section by section. The
walk knows nothing of what the fields mean: it follows records, sequences and mappings wherever they lead, so a field
or a record type that is added to the model is compared without a word here. What it is told, in tables that name the
record types by their names, is how an object is known (so that objects are matched by what they are, never by where
they stand) and what differs between any two reads although nobody changed anything: counters, queue lengths, time
that runs, and numbers that the host gives out. A record type without an entry is known by the fields that it cannot
do without.

Pure: nothing is read here, and nothing is shown.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ckpt.model.checkpoint import Checkpoint
from ckpt.model.network import MAIN_TABLE, ConntrackEntry, FlowTuple, Network, Route
from ckpt.model.process import Process
from ckpt.model.socket import Socket
from ckpt.records import dataclass


class Change(enum.StrEnum):
    """What became of an object from the first checkpoint to the second."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One field of an object: ``field`` is its path (``options[stp_state]``, ``files[7].path``).

    None is also what an element that is not there has. ``lines`` is a line diff, for text of several lines.
    """

    field: str
    before: object
    after: object
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One object. ``before`` is what was removed and ``after`` what was added; of one that changed, see ``fields``."""

    section: str
    name: str
    change: Change
    before: object = None
    after: object = None
    fields: tuple[FieldChange, ...] = ()


def diff(before: Checkpoint, after: Checkpoint, *, everything: bool = False) -> tuple[Difference, ...]:
    """What of ``before`` is otherwise in ``after``, in the order of the sections and of the objects' names.

    With ``everything`` also what differs by nature, and what says of the host rather than of the group.
    """
    if not everything:
        before, after = _seen_from_within(before), _seen_from_within(after)
    walk = _Walk(everything=everything)
    return tuple(
        difference
        for field in dataclasses.fields(Checkpoint)
        if everything or field.name not in _OF_THE_HOST
        for difference in walk.section(field.name, getattr(before, field.name), getattr(after, field.name))
    )


# -- what objects are known by ---------------------------------------------------------------------------------------


def _route(route: Route) -> tuple[str, ...]:
    return (
        "" if route.type == "unicast" else route.type,
        route.destination,
        "" if route.table == MAIN_TABLE else f"table {route.table}",
        f"metric {route.priority}" if route.priority else "",
        f"tos {route.tos}" if route.tos else "",
        f"from {route.source}" if route.source else "",
    )


def _flow(entry: ConntrackEntry) -> tuple[str, ...]:
    def end(address: str, port: int) -> str:
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    flow: FlowTuple = entry.original
    return (
        f"protocol {entry.protocol}",
        f"zone {entry.zone}" if entry.zone else "",
        f"{end(flow.source, flow.source_port)} to {end(flow.destination, flow.destination_port)}",
        f"id {flow.icmp_id}" if flow.icmp_id >= 0 else "",
    )


def _socket(socket: Socket) -> tuple[str, ...]:
    # Of several owners the one that had it first; what a child inherits comes later.
    places = sorted((owner.ns_pid, owner.fd) for owner in socket.owners)
    if places:
        return (f"PID {places[0][0]}", f"fd {places[0][1]}")
    return (socket.family, socket.type, str(socket.local or socket.path or ""), str(socket.remote or ""))


_KNOWN_BY: Mapping[str, Callable[[Any], tuple[str, ...]]] = {
    "Process": lambda process: (f"PID {process.ns_pid}",),
    "Thread": lambda thread: (str(thread.ns_ids[-1] if thread.ns_ids else thread.tid),),
    "OpenFile": lambda file: (str(file.fd),),
    "MappedFile": lambda file: (file.path,),
    "FileLock": lambda lock: (lock.kind, str(lock.start)),
    "Mount": lambda mount: (mount.target,),
    "InheritedFile": lambda file: (file.path,),
    "Owner": lambda owner: (f"PID {owner.ns_pid}", f"fd {owner.fd}"),
    "Socket": _socket,
    "Link": lambda link: (link.ifname,),
    "Address": lambda address: (address.address, f"dev {address.ifname}"),
    "Route": _route,
    "Rule": lambda rule: (f"ipv{rule.family}", f"priority {rule.priority}"),
    "Neighbour": lambda neighbour: (
        "proxy" if neighbour.proxy else "",
        neighbour.address,
        f"dev {neighbour.ifname}",
    ),
    "NftTable": lambda table: (table.family, table.name),
    "ConntrackEntry": _flow,
    "Expectation": lambda expected: (f"protocol {expected.protocol}", str(expected.flow), f"of {expected.master}"),
    "LegacyTable": lambda table: (f"ipv{table.family}", table.name),
    "IpSet": lambda one: (one.name,),
    "NamedObject": lambda one: (one.kind, one.name),
    "XfrmState": lambda state: (state.source, f"to {state.destination}", f"spi {state.spi:#x}", f"{state.protocol}"),
    "XfrmPolicy": lambda policy: (f"index {policy.index}",),
    "Filter": lambda one: (
        f"dev {one.ifname} {one.parent}" if one.ifname else f"block {one.block}",
        f"chain {one.chain}" if one.chain else "",
        f"priority {one.priority}",
        f"{one.kind} {one.handle:x}",
    ),
    "Chain": lambda one: (f"dev {one.ifname} {one.parent}" if one.ifname else f"block {one.block}", str(one.number)),
    "Qdisc": lambda one: (f"dev {one.ifname}", one.handle),
    "TrafficClass": lambda one: (f"dev {one.ifname}", one.handle),
    "ForwardingEntry": lambda one: (
        one.mac,
        f"dev {one.ifname}",
        one.owner,
        f"vlan {one.vlan}" if one.vlan else "",
        f"dst {one.destination}" if one.destination else "",
    ),
    "MulticastEntry": lambda one: (
        f"group {one.group}",
        f"source {one.source}" if one.source else "",
        f"dev {one.ifname}",
        f"vlan {one.vlan}" if one.vlan else "",
    ),
    "CarriedFile": lambda file: (file.path,),
    "NestedNetwork": lambda nested: (nested.key,),
    "Unread": lambda unread: (unread.code, unread.subject),
}
"""How an object is called, which is also what it is matched by, as words; empty ones are left out."""


def name_of(record: object) -> str:
    """What ``record`` is known by among others of its type."""
    known = _KNOWN_BY.get(type(record).__name__)
    if known is not None:
        return " ".join(filter(None, known(record)))
    if not _is_record(record):
        return str(record)
    needed = [field for field in _fields_of(record) if _is_required(field)]
    return " ".join(_word(field.name, getattr(record, field.name)) for field in needed)


def _word(field: str, value: object) -> str:
    if _is_record(value):
        return name_of(value)
    return value if isinstance(value, str) else f"{field} {value}"


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


# -- what differs by nature ------------------------------------------------------------------------------------------

_OF_THE_HOST = frozenset({"source", "carried"})
"""Sections that say where the checkpoint was made, and what of the host's files was taken along."""

_BY_NATURE = frozenset(
    {
        *(("Process", field) for field in ("pid", "pgid", "sid", "start_time", "state", "memory")),
        *(("Thread", field) for field in ("tid", "state")),
        # Where an open file stands and how large it is are its contents; info is counters and timers.
        *(("OpenFile", field) for field in ("position", "size", "mount_id", "inode", "device", "info")),
        *(("MappedFile", field) for field in ("inode", "device")),
        *(("Executable", field) for field in ("inode", "device")),
        *(("FileLock", field) for field in ("pid", "inode")),
        *(("Socket", field) for field in ("inode", "netns", "accept_queue", "pending", "receive_queue", "send_queue")),
        ("Owner", "pid"),
        ("Group", "root_pid"),
        ("NestedNetwork", "inode"),
        *(("InheritedFile", field) for field in ("key", "position")),
        ("Counterpart", "ifindex"),
        ("ConntrackEntry", "timeout"),
        ("Expectation", "timeout"),
        # The text of the table says the same, for people, and these hold the time that elements have left.
        ("NftTable", "objects"),
        ("XfrmState", "used"),
    }
)
"""Fields, by their record's type, that are other at each read, on each host, or after each restore."""

_RUNNING = frozenset({("Address", "valid_lifetime"), ("Address", "preferred_lifetime"), ("Route", "expires")})
"""Fields that hold the time that remains. That there is a limit is a difference, and that it has been reached."""

_TABLE_COUNTS = re.compile(r"\[\d+:\d+\]")
_MEMBER_COUNTS = re.compile(r" (timeout|packets|bytes) \d+")

_NFT_COUNTS = (
    (re.compile(r"\bpackets \d+ bytes \d+"), "packets … bytes …"),
    (re.compile(r" used \d+ \w+"), ""),
    (re.compile(r"\bexpires [0-9a-z]+"), "expires …"),
)


def _without_counts(text: str) -> str:
    for pattern, instead in _NFT_COUNTS:
        text = pattern.sub(instead, text)
    return text


_STEADY: Mapping[tuple[str, str], Callable[[Any], object]] = {
    ("NftTable", "text"): _without_counts,
    ("LegacyTable", "text"): lambda text: _TABLE_COUNTS.sub("[…]", text),
    ("IpSet", "members"): lambda members: tuple(sorted(_MEMBER_COUNTS.sub("", member) for member in members)),
    ("OpenFile", "path"): lambda path: re.sub(r":\[\d+\]$", ":[…]", path),
    ("Socket", "peer"): bool,
    # The host's own end of a link makes its own.
    ("Counterpart", "addresses"): lambda found: tuple(item for item in found if item.scope != "link"),
}
"""What of a field is compared, and shown, where only a part of it differs by nature."""


def _seen_from_within(checkpoint: Checkpoint) -> Checkpoint:
    """``checkpoint`` with processes and namespaces called by numbers of the group's own, and connections settled."""
    known = {process.pid: process.ns_pid for process in checkpoint.processes}
    numbers: dict[tuple[str, int], int] = {}
    counts: Counter[str] = Counter()

    def number(kind: str, inode: int) -> int:
        if (kind, inode) not in numbers:
            counts[kind] += 1
            numbers[kind, inode] = counts[kind]
        return numbers[kind, inode]

    def renamed(process: Process) -> Process:
        return dataclasses.replace(
            process,
            ns_pids=process.ns_pids[-1:],
            ppid=known.get(process.ppid, 0),
            ns_pgids=process.ns_pgids[-1:],
            ns_sids=process.ns_sids[-1:],
            tracer=known.get(process.tracer, 0),
            threads=tuple(dataclasses.replace(thread, ns_ids=thread.ns_ids[-1:]) for thread in process.threads),
            namespaces={kind: number(kind, inode) for kind, inode in sorted(process.namespaces.items())},
        )

    return dataclasses.replace(
        checkpoint,
        processes=tuple(map(renamed, checkpoint.processes)),
        sockets=tuple(map(_without_binding, checkpoint.sockets)),
    )


def _without_binding(socket: Socket) -> Socket:
    """A connection without the options that only mattered while it was bound: CRIU sets them to bind it anew.

    Its segment size is that of the path, and while CRIU holds it that of the peer (tcp_getsockopt, TCP_MAXSEG).
    """
    if not socket.holds_connection:
        return socket
    options = dataclasses.replace(socket.options, reuse_address=False, reuse_port=False, v6only=None, mss=None)
    return dataclasses.replace(socket, options=options)


# -- the walk --------------------------------------------------------------------------------------------------------


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields_of(record: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(record)


_LINES = frozenset({("Filtering", "virtual_services")})
"""Fields whose lines of text are objects, each known by all that it says."""


def _is_collection(value: object) -> bool:
    """Whether ``value`` holds objects of their own: a mapping, or a sequence of records."""
    return isinstance(value, Mapping) or (isinstance(value, tuple) and bool(value) and all(map(_is_record, value)))


class _Walk:
    """Follows two structures of one shape side by side."""

    def __init__(self, *, everything: bool) -> None:
        self._everything = everything

    def section(self, name: str, before: Any, after: Any) -> Iterator[Difference]:
        """A part of a checkpoint: its objects, if it is a collection, or its own fields and the collections in it."""
        before, after = _both(before, after)
        if before == after:
            return
        if not _is_record(before):
            yield from self._objects(name, before, after)
            return
        inner: list[Difference] = []
        own: list[FieldChange] = []
        for field, old, new in self._pairs(before, after):
            if _is_collection(old) or _is_collection(new) or _is_record(old) or _is_record(new):
                # The network's parts are known by their own names.
                inner += self.section(field if isinstance(before, Network) else f"{name}.{field}", old, new)
            elif (type(before).__name__, field) in _LINES:
                inner += self._objects(f"{name}.{field}", old, new)
            else:
                own += self._value(field, old, new)
        if own:
            yield Difference(section=name, name=name, change=Change.CHANGED, fields=tuple(own))
        yield from inner

    def _objects(self, section: str, before: Any, after: Any) -> Iterator[Difference]:
        for name, old, new in self._matched(before, after):
            if old is None or new is None:
                change = Change.ADDED if old is None else Change.REMOVED
                yield Difference(section=section, name=name, change=change, before=old, after=new)
            elif fields := tuple(self._value("" if _is_record(old) else "value", old, new)):
                yield Difference(section=section, name=name, change=Change.CHANGED, fields=fields)

    def _value(self, place: str, before: Any, after: Any) -> Iterator[FieldChange]:
        if before == after:
            return
        if _is_record(before) and type(before) is type(after):
            for field, old, new in self._pairs(before, after):
                yield from self._value(f"{place}.{field}" if place else field, old, new)
        elif (_is_collection(before) or _is_collection(after)) and type(before) is type(after):
            for name, old, new in self._matched(before, after):
                yield from self._value(f"{place}[{name}]", old, new)
        else:
            yield FieldChange(field=place, before=before, after=after, lines=_line_diff(before, after))

    def _pairs(self, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
        """The fields of two records of one type that are to be compared."""
        kind = type(before).__name__
        for field in _fields_of(before):
            old, new = getattr(before, field.name), getattr(after, field.name)
            if not self._everything:
                key = (kind, field.name)
                if key in _BY_NATURE or (key in _RUNNING and _phase(old) == _phase(new)):
                    continue
                steady = _STEADY.get(key)
                if steady is not None:
                    old, new = steady(old), steady(new)
            yield field.name, old, new

    def _matched(self, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
        """The elements of two collections that are one object, by its name; None where one has it not."""
        if isinstance(before, Mapping):
            for key in sorted(before.keys() | after.keys(), key=_natural):
                yield key, before.get(key), after.get(key)
            return
        old, new = _by_name(before), _by_name(after)
        for name in sorted(old.keys() | new.keys(), key=_natural):
            for pair in self._paired(old.get(name, []), new.get(name, [])):
                yield name, *pair

    def _paired(self, old: list[Any], new: list[Any]) -> Iterator[tuple[Any, Any]]:
        """Objects of one name: those that are equal belong together, the rest go in order."""
        if len(old) > 1 or len(new) > 1:
            common = Counter(map(whole, old)) & Counter(map(whole, new))
            old, new = _left(old, common), _left(new, common)
        for place in range(max(len(old), len(new))):
            yield old[place] if place < len(old) else None, new[place] if place < len(new) else None


def _both(before: Any, after: Any) -> tuple[Any, Any]:
    """With an empty one in place of a network that only one of the two has."""
    if isinstance(after, Network) and before is None:
        return Network(complete=after.complete), after
    if isinstance(before, Network) and after is None:
        return before, Network(complete=before.complete)
    return before, after


def _phase(remaining: int | None) -> bool | None:
    return None if remaining is None else remaining > 0


def _by_name(records: Sequence[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for record in records:
        found.setdefault(name_of(record), []).append(record)
    return found


def whole(value: Any) -> Any:
    """All of a record's value in a form that is hashable, the same for equal ones whatever order a mapping is in."""
    if dataclasses.is_dataclass(value):
        return tuple(whole(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return frozenset((key, whole(item)) for key, item in value.items())
    return tuple(map(whole, value)) if isinstance(value, tuple) else value


def _left(records: list[Any], taken: Counter[Any]) -> list[Any]:
    """``records`` without as many of each as were ``taken``."""
    remaining = taken.copy()
    left = []
    for record in records:
        if remaining[whole(record)] > 0:
            remaining[whole(record)] -= 1
        else:
            left.append(record)
    return left


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A sort key by which eth2 comes before eth10. No number is made of the digits: a hostile name may have many."""
    words = re.split(r"([0-9]+)", name)
    return [
        (len(word.lstrip("0")) if place % 2 else 0, word.lstrip("0") if place % 2 else word)
        for place, word in enumerate(words)
    ], name


def _line_diff(before: object, after: object) -> tuple[str, ...]:
    if not (isinstance(before, str) and isinstance(after, str)) or "\n" not in before + after:
        return ()
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=2)
    return tuple(line for place, line in enumerate(lines) if place > 1)
