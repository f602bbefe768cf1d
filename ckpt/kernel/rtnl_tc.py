"""Traffic control: read from rtnetlink, and made again.

Disciplines without a handle are the kernel's own and are left to it. Of the rest, everything is asked for by what it
hangs on: classes by link, filters and chains by discipline and class, actions by kind. What ``tc_kinds`` says of a kind
decides what of its bytes is kept, and what is added when they are set.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from ckpt.kernel import netlink, tc_kinds, tc_tables, tc_u32
from ckpt.kernel.netlink import Attributes, KernelRefusal, Netlink, attribute, nested, number, pairs, parse, string, u32
from ckpt.model.network import Unread
from ckpt.model.traffic import Action, Chain, Filter, Qdisc, Traffic, TrafficClass

_RTM_NEWQDISC, _RTM_GETQDISC = 36, 38
_RTM_NEWTCLASS, _RTM_GETTCLASS = 40, 42
_RTM_NEWTFILTER, RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_RTM_NEWACTION, _RTM_GETACTION = 48, 50
_RTM_NEWCHAIN, _RTM_GETCHAIN = 100, 102

_HEADER = struct.Struct("=BxxxiIII")
_ACTION_HEADER = bytes(4)
_KIND, _OPTIONS, _STATISTICS, _STAB = 1, 2, 7, 8
_CHAIN, _INGRESS_BLOCK, _EGRESS_BLOCK = 11, 13, 14
_STATISTICS_RATES = {2, 5}
_STAB_BASE, _STAB_DATA = 1, 2
_ACTION_TABLE = 1

_ROOT, _INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
_LISTED = {
    _RTM_GETQDISC: "queueing disciplines",
    _RTM_GETTCLASS: "classes",
    _RTM_GETTFILTER: "filters",
    _RTM_GETCHAIN: "chains of filters",
}
_CLSACT_SIDES = (0xFFFFFFF2, 0xFFFFFFF3)
_MAJOR = 0xFFFF0000
_ANY_BLOCK = -1
_ETH_P_8021Q = 0x8100
_NAMES = {_ROOT: "root", _INGRESS: "ingress"}


def handle_text(handle: int) -> str:
    """A handle or a parent as ``tc`` writes it."""
    return _NAMES.get(handle) or f"{handle >> 16:x}:{f'{handle & 0xFFFF:x}' if handle & 0xFFFF else ''}"


def handle_number(text: str) -> int:
    """The mirror of ``handle_text``."""
    for value, name in _NAMES.items():
        if text == name:
            return value
    major, _, minor = text.partition(":")
    return int(major, 16) << 16 | int(minor or "0", 16)


class TrafficReader:
    """Reads all traffic control of a namespace; collects in ``unread`` what cannot be made again."""

    def __init__(self, connection: Netlink, names: Mapping[int, str], unread: list[Unread]) -> None:
        self._connection = connection
        self._names = names
        self._unread = unread

    def read(self) -> Traffic:
        """All of it, each part in an order in which it can be made."""
        qdiscs = self._qdiscs()
        indices = {ifname: index for index, ifname in self._names.items()}
        classes = tuple(
            one
            for ifname in dict.fromkeys(qdisc.ifname for qdisc in qdiscs if qdisc.kind in tc_kinds.CLASSES)
            for one in self._classes(indices[ifname])
        )
        hooks = list(self._hooks(qdiscs, classes, indices))
        filters: dict[Filter, None] = {}
        chains: dict[Chain, None] = {}
        for index, parent in hooks:
            filters.update(dict.fromkeys(self._filters(index, parent)))
            chains.update(dict.fromkeys(self._chains(index, parent)))
        for one in tc_u32.mixed(filters):
            reason = "has u32 filters of a priority that its discipline has elsewhere, which the kernel lists together"
            self._note("tc-filter", f"{one.parent or f'block {one.block}'} of {one.ifname}", reason)
        used = {(one.ifname, one.block, one.parent, one.chain) for one in filters}
        return Traffic(
            actions=self._actions(),
            qdiscs=qdiscs,
            classes=classes,
            chains=tuple(
                one
                for one in chains
                if one.kind or (one.number and (one.ifname, one.block, one.parent, one.number) not in used)
            ),
            filters=tuple(filters),
        )

    def _dump(self, kind: int, header: bytes, answer: int) -> list[tuple[tuple[int, ...], Attributes]]:
        try:
            messages = self._connection.dump(kind, header)
        except KernelRefusal as error:
            _, index, _, hook, _ = _HEADER.unpack(header)
            where = f"{handle_text(hook)} of {self._names[index]}" if index else "all links"
            self._note("tc-unreadable", where, f"the kernel cannot list its {_LISTED[kind]}: {error.strerror}")
            return []
        found = [(_HEADER.unpack_from(body), parse(body, _HEADER.size)) for one, body in messages if one == answer]
        return [(fields, attributes) for fields, attributes in found]

    def _qdiscs(self) -> tuple[Qdisc, ...]:
        found: list[Qdisc] = []
        for (_, index, handle, parent, _), attributes in self._dump(
            _RTM_GETQDISC, _HEADER.pack(0, 0, 0, 0, 0), _RTM_NEWQDISC
        ):
            if not handle or index not in self._names:
                continue
            kind, options = netlink.text(attributes[_KIND]), attributes.get(_OPTIONS, b"")
            subject = f"qdisc {handle_text(handle)} of {self._names[index]}"
            reason, possible = tc_kinds.why_not_qdisc(kind, options)
            if reason:
                self._note("tc-inexact" if possible else "tc-kind", subject, reason)
            if parse(attributes.get(_STATISTICS, b"")).keys() & _STATISTICS_RATES:
                self._note("tc-estimator", subject, "has a rate estimator, whose interval the kernel does not show")
            found.append(
                Qdisc(
                    ifname=self._names[index],
                    kind=kind,
                    handle=handle_text(handle),
                    parent=handle_text(parent),
                    options=tc_kinds.cleared_qdisc(kind, options),
                    ingress_block=number(attributes.get(_INGRESS_BLOCK, b"")),
                    egress_block=number(attributes.get(_EGRESS_BLOCK, b"")),
                    size_table=parse(attributes.get(_STAB, b"")).get(_STAB_BASE, b""),
                )
            )
        return _parents_first(found)

    def _classes(self, index: int) -> list[TrafficClass]:
        found = []
        for (_, _, handle, parent, _), attributes in self._dump(
            _RTM_GETTCLASS, _HEADER.pack(0, index, 0, 0, 0), _RTM_NEWTCLASS
        ):
            kind = netlink.text(attributes[_KIND])
            # A class with the number of its discipline is the discipline's own root class.
            if kind in tc_kinds.CLASSES and handle & ~_MAJOR:
                found.append(
                    TrafficClass(
                        ifname=self._names[index],
                        kind=kind,
                        handle=handle_text(handle),
                        parent=handle_text(parent),
                        options=attributes.get(_OPTIONS, b""),
                    )
                )
        depth = {one.handle: one.parent for one in found}
        return sorted(found, key=lambda one: (_depth(one.handle, depth), handle_number(one.handle)))

    @staticmethod
    def _hooks(
        qdiscs: tuple[Qdisc, ...], classes: tuple[TrafficClass, ...], indices: Mapping[str, int]
    ) -> Iterator[tuple[int, int]]:
        """Everything that filters can hang on: disciplines, both sides of clsact, classes."""
        for qdisc in qdiscs:
            if qdisc.kind == "clsact":
                yield from ((indices[qdisc.ifname], side) for side in _CLSACT_SIDES)
            else:
                yield indices[qdisc.ifname], handle_number(qdisc.handle)
        for one in classes:
            yield indices[one.ifname], handle_number(one.handle)

    def _filters(self, index: int, hook: int) -> Iterator[Filter]:
        messages = self._dump(_RTM_GETTFILTER, _HEADER.pack(0, index, 0, hook, 0), _RTM_NEWTFILTER)
        filled = {_priority(fields, found) for fields, found in messages if _OPTIONS in found}
        for fields, attributes in messages:
            # Each priority is listed once without a filter in it; that alone says something where there is none.
            if _OPTIONS not in attributes and _priority(fields, attributes) in filled:
                continue
            _, found, handle, parent, information = fields
            kind, options = netlink.text(attributes[_KIND]), attributes.get(_OPTIONS, b"")
            shared = found == _ANY_BLOCK
            where = f"block {parent}" if shared else f"{handle_text(parent)} of {self._names[found]}"
            if reason := tc_kinds.why_not_filter(kind, options):
                self._note("tc-filter", f"filter {handle:x} at {where}", reason)
            yield Filter(
                kind=kind,
                priority=information >> 16,
                protocol=socket.ntohs(information & 0xFFFF),
                handle=handle,
                parent="" if shared else handle_text(parent),
                ifname="" if shared else self._names[found],
                block=parent if shared else 0,
                chain=number(attributes.get(_CHAIN, b"")),
                options=tc_kinds.cleared_filter(kind, options),
            )

    def _chains(self, index: int, hook: int) -> Iterator[Chain]:
        for (_, found, _, parent, _), attributes in self._dump(
            _RTM_GETCHAIN, _HEADER.pack(0, index, 0, hook, 0), _RTM_NEWCHAIN
        ):
            shared = found == _ANY_BLOCK
            # Of both sides of clsact the kernel says only the discipline.
            kind = netlink.text(attributes.get(_KIND, b""))
            yield Chain(
                parent="" if shared else handle_text(hook),
                number=number(attributes.get(_CHAIN, b"")),
                ifname="" if shared else self._names[found],
                block=parent if shared else 0,
                kind=kind,
                options=tc_kinds.cleared_filter(kind, attributes.get(_OPTIONS, b"")),
            )

    def _actions(self) -> tuple[Action, ...]:
        found: list[Action] = []
        for kind in tc_kinds.ACTION_KINDS:
            request = _ACTION_HEADER + nested(_ACTION_TABLE, nested(1, attribute(tc_kinds.ACT_KIND, string(kind))))
            try:
                messages = self._connection.dump(_RTM_GETACTION, request)
            except KernelRefusal:
                continue  # a kind that this kernel does not have, or that nobody uses
            for _, body in messages:
                for _, action in pairs(parse(body, len(_ACTION_HEADER)).get(_ACTION_TABLE, b"")):
                    index, held, bound = tc_kinds.action_counts(action)
                    if held <= bound:
                        continue  # it came with its filters, and does so again
                    if reason := tc_kinds.why_not_action(action):
                        self._note("tc-filter", f"action {index} of kind {kind}", reason)
                    found.append(Action(kind=kind, index=index, attributes=tc_kinds.cleared_action(action)))
        return tuple(found)

    def _note(self, code: str, subject: str, what: str) -> None:
        self._unread.append(Unread(code=code, subject=subject, what=what))


def _priority(fields: tuple[int, ...], attributes: Attributes) -> tuple[int, int]:
    return fields[4], number(attributes.get(_CHAIN, b""))


def _depth(handle: str, parents: Mapping[str, str]) -> int:
    depth = 0
    while handle in parents and depth <= len(parents):
        handle, depth = parents[handle], depth + 1
    return depth


def _parents_first(qdiscs: list[Qdisc]) -> tuple[Qdisc, ...]:
    parents = {
        f"{one.ifname} {one.handle}": f"{one.ifname} {handle_text(handle_number(one.parent) & _MAJOR)}"
        for one in qdiscs
    }
    return tuple(sorted(qdiscs, key=lambda one: (_depth(f"{one.ifname} {one.handle}", parents), one.ifname)))


# ---- made again ---------------------------------------------------------------------------------------------------


def _make(connection: Netlink, kind: int, header: tuple[int, ...], name: str, parts: list[bytes], flags: int) -> None:
    body = _HEADER.pack(0, *header) + (attribute(_KIND, string(name)) if name else b"") + b"".join(parts)
    connection.request(kind, body, flags)


_NEW = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL


def make_qdisc(connection: Netlink, qdisc: Qdisc, indices: Mapping[str, int]) -> None:
    """Attach ``qdisc`` in place of what is there. Raises KernelRefusal."""
    parts = []
    if qdisc.options:
        parts.append(nested(_OPTIONS, tc_kinds.completed_qdisc(qdisc.kind, qdisc.options)))
    for kind, block in ((_INGRESS_BLOCK, qdisc.ingress_block), (_EGRESS_BLOCK, qdisc.egress_block)):
        if block:
            parts.append(attribute(kind, u32(block)))
    if qdisc.size_table:
        table = tc_tables.size_table(qdisc.size_table)
        data = attribute(_STAB_DATA, table) if table else b""
        parts.append(nested(_STAB, attribute(_STAB_BASE, qdisc.size_table), data))
    parent = handle_number(qdisc.parent)
    header = (indices[qdisc.ifname], handle_number(qdisc.handle), parent, 0)
    flags = _NEW if parent == _INGRESS else netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
    _make(connection, _RTM_NEWQDISC, header, qdisc.kind, parts, flags)


def make_class(connection: Netlink, one: TrafficClass, indices: Mapping[str, int]) -> None:
    """Make a class. Raises KernelRefusal."""
    header = (indices[one.ifname], handle_number(one.handle), handle_number(one.parent), 0)
    parts = [nested(_OPTIONS, one.options)] if one.options else []
    _make(connection, _RTM_NEWTCLASS, header, one.kind, parts, _NEW)


def make_chain(connection: Netlink, chain: Chain, indices: Mapping[str, int]) -> None:
    """Make a chain. Raises KernelRefusal."""
    parts = [attribute(_CHAIN, u32(chain.number))]
    if chain.options:
        parts.append(nested(_OPTIONS, tc_kinds.completed_filter(chain.kind, chain.options, _ETH_P_8021Q)))
    _make(connection, _RTM_NEWCHAIN, (*_hook(chain, indices), 0), chain.kind, parts, _NEW)


def _hook(one: Chain | Filter, indices: Mapping[str, int]) -> tuple[int, int, int]:
    """Link, handle and parent of a header."""
    handle = one.handle if isinstance(one, Filter) else 0
    if one.block:
        return _ANY_BLOCK, handle, one.block
    return indices[one.ifname], handle, handle_number(one.parent)


def request_filter(connection: Netlink, one: Filter, indices: Mapping[str, int], *, delete: bool = False) -> None:
    """Make a filter, or delete it. Raises KernelRefusal."""
    parts = [attribute(_CHAIN, u32(one.chain))]
    if one.options and not delete:
        parts.append(nested(_OPTIONS, tc_kinds.completed_filter(one.kind, one.options, one.protocol)))
    header = (*_hook(one, indices), one.priority << 16 | socket.htons(one.protocol))
    kind, flags = (RTM_DELTFILTER, 0) if delete else (_RTM_NEWTFILTER, _NEW)
    _make(connection, kind, header, one.kind, parts, flags)


def make_action(connection: Netlink, action: Action) -> None:
    """Make an action. Raises KernelRefusal."""
    table = nested(_ACTION_TABLE, nested(1, tc_kinds.completed_action(action.attributes)))
    connection.request(_RTM_NEWACTION, _ACTION_HEADER + table, _NEW)


def making(traffic: Traffic, indices: Mapping[str, int]) -> Iterator[tuple[str, Callable[[Netlink], None]]]:
    """What makes all of ``traffic``, in order: the name of each object and the request for it."""
    for action in traffic.actions:
        yield f"action {action.index} of kind {action.kind}", partial(make_action, action=action)
    for qdisc in traffic.qdiscs:
        yield f"qdisc {qdisc.handle} of {qdisc.ifname}", partial(make_qdisc, qdisc=qdisc, indices=indices)
        for one in traffic.classes:
            if one.ifname == qdisc.ifname and one.handle.partition(":")[0] == qdisc.handle[:-1]:
                yield f"class {one.handle} of {one.ifname}", partial(make_class, one=one, indices=indices)
    for chain in traffic.chains:
        yield f"chain {chain.number} at {_place(chain)}", partial(make_chain, chain=chain, indices=indices)
    order = tc_u32.ordered(traffic.filters)
    for stage, delete in zip(order, (False, True, False, True), strict=True):
        for wanted in stage:
            request = partial(request_filter, one=wanted, indices=indices, delete=delete)
            yield f"filter {wanted.handle:x} of priority {wanted.priority} at {_place(wanted)}", request


def _place(one: Chain | Filter) -> str:
    return f"block {one.block}" if one.block else f"{one.parent} of {one.ifname}"


def differing(wanted: Traffic, now: Traffic) -> list[str]:
    """What of ``wanted`` the kernel shows otherwise, or not at all, by name."""
    exact = [one for one in wanted.qdiscs if not tc_kinds.why_not_qdisc(one.kind, one.options)[0]]
    lines = [f"qdisc {one.handle} of {one.ifname} ({one.kind})" for one in exact if one not in now.qdiscs]
    lines += [f"class {one.handle} of {one.ifname}" for one in wanted.classes if one not in now.classes]
    missing = [one for one in wanted.filters if one not in now.filters]
    return [*lines, *(f"filter {one.handle:x} at {_place(one)} ({one.kind})" for one in missing)]
