"""What differs between what is there and what is wanted, and the order in which to add what is missing. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import TypeVar

from ckpt.model.network import (
    Address,
    Neighbour,
    Route,
    Rule,
)

_Record = TypeVar("_Record", Address, Route, Rule, Neighbour)


def difference(
    wanted: Sequence[_Record], now: Sequence[_Record], *, only: bool
) -> tuple[tuple[_Record, ...], tuple[_Record, ...]]:
    """What to remove from ``now`` and what to add to it, each in its order."""
    wanted_keys, now_keys = [_key(one) for one in wanted], [_key(one) for one in now]
    known, there = set(wanted_keys), set(now_keys)
    extra = tuple(one for one, key in zip(now, now_keys, strict=True) if key not in known) if only else ()
    missing = tuple(one for one, key in zip(wanted, wanted_keys, strict=True) if key not in there)
    return extra, missing


_RTPROT_KERNEL = 2
_UNSETTABLE = frozenset({"temporary", "dadfailed", "deprecated", "optimistic", "stable-privacy"})


def _names_but(record: type[Address | Route | Rule], *left_out: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(record) if field.name not in left_out)


# Taken as tuples: of ten thousand routes, the text of each takes longer than the kernel takes to make it.
_OF_ADDRESS = attrgetter(*_names_but(Address, "flags", "valid_lifetime", "preferred_lifetime"))
_OF_ROUTE = attrgetter(*_names_but(Route, "expires", "metrics"))
_OF_RULE = attrgetter(*_names_but(Rule, "selectors", "values"))


def _key(record: Address | Route | Rule | Neighbour) -> Hashable:
    """What makes a record the same as another: all of it but time that runs, and flags that cannot be set."""
    if isinstance(record, Route):
        return _OF_ROUTE(record), record.expires is None, *sorted(record.metrics.items())
    if isinstance(record, Address):
        flags = frozenset(record.flags) - _UNSETTABLE
        return _OF_ADDRESS(record), flags, record.valid_lifetime is None, record.preferred_lifetime is None
    if isinstance(record, Rule):
        return _OF_RULE(record), *sorted(record.selectors.items()), *sorted(record.values.items())
    return record


def order_addresses(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """The order in which to add: the kernel lists IPv4 addresses as they came, IPv6 ones the newest first."""
    listed = tuple(addresses)
    four = tuple(one for one in listed if ":" not in one.address)
    six = tuple(one for one in listed if ":" in one.address)
    return four + six[::-1]


def is_kernels_own(route: Route) -> bool:
    """Whether only the kernel can have made the route: an IPv6 one that comes with an address."""
    return route.family == 6 and route.protocol == _RTPROT_KERNEL and route.priority == 0


def apart(routes: Iterable[Route]) -> Iterable[tuple[Route, ...]]:
    """``routes`` in runs in which none has the destination of another: their order within a run says nothing."""
    run: dict[tuple[str, int], Route] = {}
    for route in routes:
        if (route.destination, route.table) in run:
            yield tuple(run.values())
            run = {}
        run[route.destination, route.table] = route
    if run:
        yield tuple(run.values())


def order_routes(routes: Iterable[Route]) -> tuple[Route, ...]:
    """The order in which to add: what a gateway may be resolved through before what has one."""

    def rank(route: Route) -> tuple[bool, int]:
        through = bool(route.gateway) or any(hop.gateway for hop in route.nexthops)
        nearness = {"host": 0, "link": 1}.get(route.scope, 2)
        return through, nearness

    return tuple(sorted(routes, key=rank))
