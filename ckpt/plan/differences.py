"""What differs between what is there and what is wanted, and the order in which to add what is missing. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
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
    numbers: dict[Hashable, int] = {}
    numbered = [numbers.setdefault(_key(one), len(numbers)) for one in now]
    # Most of ten thousand routes lead where none leads yet: of these not more is looked at than the place.
    places = set(map(_PLACE[type(now[0])], now)) if now else set()
    seen = bytearray(len(numbers))
    missing: list[_Record] = []
    for one in wanted:
        number = numbers.get(_key(one)) if places and _PLACE[type(one)](one) in places else None
        if number is None:
            missing.append(one)
        else:
            seen[number] = True
    extra = tuple(one for one, number in zip(now, numbered, strict=True) if not seen[number]) if only else ()
    return extra, tuple(missing)


_RTPROT_KERNEL = 2
_UNSETTABLE = frozenset({"temporary", "dadfailed", "deprecated", "optimistic", "stable-privacy"})


def _names_but(record: type[Address | Route | Rule], *left_out: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(record) if field.name not in left_out)


# Taken as tuples: of ten thousand routes, the text of each takes longer than the kernel takes to make it.
_OF_ADDRESS = attrgetter(*_names_but(Address, "flags", "valid_lifetime", "preferred_lifetime"))
_OF_ROUTE = attrgetter(*_names_but(Route, "expires", "metrics"))
_OF_RULE = attrgetter(*_names_but(Rule, "selectors", "values"))


_PLACE: Mapping[type, Callable[[object], Hashable]] = {
    Address: attrgetter("address"),
    Route: attrgetter("destination", "table"),
    Rule: attrgetter("priority"),
    Neighbour: attrgetter("address"),
}


def _key(record: Address | Route | Rule | Neighbour) -> Hashable:
    """What makes a record the same as another: all of it but time that runs, and flags that cannot be set."""
    if isinstance(record, Route):
        metrics = tuple(sorted(record.metrics.items())) if record.metrics else ()
        return _OF_ROUTE(record), record.expires is None, metrics
    if isinstance(record, Address):
        flags = frozenset(record.flags) - _UNSETTABLE
        return _OF_ADDRESS(record), flags, record.valid_lifetime is None, record.preferred_lifetime is None
    if isinstance(record, Rule):
        return _OF_RULE(record), *sorted(record.selectors.items()), *sorted(record.values.items())
    return record


def order_addresses(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """The order in which to add: the kernel lists IPv4 addresses as they came, IPv6 ones the newest first.

    It works on at those of IPv6, which come first therefore.
    """
    listed = tuple(addresses)
    four = tuple(one for one in listed if ":" not in one.address)
    six = tuple(one for one in listed if ":" in one.address)
    return six[::-1] + four


def is_kernels_own(route: Route) -> bool:
    """Whether only the kernel can have made the route: an IPv6 one that comes with an address."""
    return route.protocol == _RTPROT_KERNEL and route.priority == 0 and route.family == 6


def leads_through_ipv6(route: Route) -> bool:
    """Whether a gateway has an IPv6 address, whatever the destination is."""
    return ":" in route.gateway or any(":" in hop.gateway for hop in route.nexthops)


def apart(routes: Iterable[Route]) -> Iterable[tuple[Route, ...]]:
    """``routes`` in runs in which none has the destination of another: their order within a run says nothing."""
    listed = tuple(routes)
    places = list(map(_PLACE[Route], listed))
    if len(set(places)) == len(places):
        places.clear()
    begin, seen = 0, set[Hashable]()
    for at, place in enumerate(places):
        if place in seen:
            yield listed[begin:at]
            begin, seen = at, set()
        seen.add(place)
    if listed:
        yield listed[begin:]


_NEARNESS = {"host": 0, "link": 1}


def order_routes(routes: Iterable[Route]) -> tuple[Route, ...]:
    """The order in which to add: what a gateway may be resolved through before what has one."""
    ranked: dict[tuple[bool, int], list[Route]] = {}
    for route in routes:
        through = bool(route.gateway) or any(hop.gateway for hop in route.nexthops)
        ranked.setdefault((through, _NEARNESS.get(route.scope, 2)), []).append(route)
    return tuple(route for rank in sorted(ranked) for route in ranked[rank])
