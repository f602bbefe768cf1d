"""The hash tables of u32 filters, whose numbers nobody chooses.

Each priority of a hook has a root table, made with it and numbered by a counter of the hook: 800:, 801:, 802: … in
order of their making. Filters name these numbers, so they must come again, also where tables that were once between
them have gone. So priorities are made in the order of their roots, each by a table of no use (the placeholder), with
priorities of no use for the numbers that are missing; then these are deleted, and the filters made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from ckpt.kernel.netlink import attribute, u32
from ckpt.model.traffic import Filter

_TABLE_MASK = 0xFFF00000
_TABLE_SHIFT = 20
_FIRST_ROOT = 0x800
_HIGHEST_CHOSEN = 0x7FF
_LOWEST_PRIORITY = 0xFFFF
_DIVISOR = 4


class _Priority(NamedTuple):
    """What u32 calls a tp: the filters of one priority and protocol in one chain of one hook."""

    ifname: str
    block: int
    parent: str
    chain: int
    priority: int
    protocol: int


class Order(NamedTuple):
    """What to do, in this order."""

    prepared: tuple[Filter, ...] = ()
    unprepared: tuple[Filter, ...] = ()
    made: tuple[Filter, ...] = ()
    removed: tuple[Filter, ...] = ()


def ordered(filters: Iterable[Filter]) -> Order:
    """The filters in an order in which they can be made, and what has to be made, and deleted, beside them."""
    others = [one for one in filters if one.kind != "u32"]
    hooks: dict[tuple[str, int, str], dict[_Priority, list[Filter]]] = {}
    for one in filters:
        if one.kind == "u32":
            key = _Priority(one.ifname, one.block, one.parent, one.chain, one.priority, one.protocol)
            hooks.setdefault(counted_at(one), {}).setdefault(key, []).append(one)
    whole = Order(made=tuple(others))
    for priorities in hooks.values():
        whole = Order(*(before + more for before, more in zip(whole, _of_hook(priorities), strict=True)))
    return whole


def counted_at(one: Filter) -> tuple[str, int, str]:
    """What shares a counter of tables: a shared block, or all of a discipline, its classes and sides included."""
    return one.ifname, one.block, one.parent.partition(":")[0]


def mixed(filters: Iterable[Filter]) -> tuple[Filter, ...]:
    """One filter of each priority that is there more than once where tables are counted together.

    The kernel lists the filters of all of these for each.
    """
    seen: dict[tuple[tuple[str, int, str], int], set[tuple[str, int]]] = {}
    found = []
    for one in filters:
        if one.kind == "u32":
            places = seen.setdefault((counted_at(one), one.priority), set())
            if (one.parent, one.chain) not in places and places:
                found.append(one)
            places.add((one.parent, one.chain))
    return tuple(found)


def _of_hook(priorities: Mapping[_Priority, list[Filter]]) -> Order:
    by_root = sorted(priorities.values(), key=_root)
    tables = [one for found in by_root for one in _tables(found)]
    nodes = [one for found in by_root for one in found if not _is_table(one)]
    made = tuple(tables + nodes)
    roots = [(_root(found) >> _TABLE_SHIFT) - _FIRST_ROOT for found in by_root]
    if len(roots) == 1 and roots == [0]:
        return Order(made=made)
    used = {one.handle >> _TABLE_SHIFT for found in by_root for one in found}
    free = iter(number for number in range(_HIGHEST_CHOSEN, 0, -1) if number not in used)
    taken = {one.priority for found in by_root for one in found}
    spare = iter(priority for priority in range(_LOWEST_PRIORITY, 0, -1) if priority not in taken)
    prepared, temporary, removed = [], [], []
    wanted = dict(zip(roots, by_root, strict=True))
    for count in range(roots[-1] + 1):
        placeholder = _table(wanted.get(count, by_root[0])[0], next(free))
        if count in wanted:
            removed.append(placeholder)
        else:
            placeholder = replace(placeholder, priority=next(spare))
            temporary.append(replace(placeholder, handle=0))
        prepared.append(placeholder)
    return Order(tuple(prepared), tuple(temporary), made, tuple(removed))


def _is_table(one: Filter) -> bool:
    return one.handle & ~_TABLE_MASK == 0


def _table(like: Filter, number: int) -> Filter:
    return replace(like, handle=number << _TABLE_SHIFT, options=attribute(_DIVISOR, u32(1)))


def _tables(found: list[Filter]) -> list[Filter]:
    """The tables that somebody made, oldest first; the kernel lists the newest first, and the root last of all."""
    return [one for one in found if _is_table(one)][-2::-1]


def _root(found: list[Filter]) -> int:
    return [one.handle for one in found if _is_table(one)][-1]
