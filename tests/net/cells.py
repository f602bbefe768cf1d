"""The table of what contexts are tested for: semantics × protocol × family of sockets × what one is bound to.

A test says with ``shows`` which cells it is about; its parameters say the rest. The end of a session tells how many of
all cells passed, and names those that did not; a test of its own holds that each has a test.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

SEMANTICS = {2: "bind", 3: "lookup", 4: "source", 6: "loopback"}
"""Of the six, those that are about sockets of one kind and another, by their numbers in docs/contexts.md."""

PROTOCOLS = ("tcp", "udp")
FAMILIES = ("v4", "v6", "mapped", "dual")
PLACES = ("specific", "any", "loopback")

Cell = tuple[str, str, str, str]
ALL: frozenset[Cell] = frozenset(itertools.product(SEMANTICS.values(), PROTOCOLS, FAMILIES, PLACES))

KEY = "cells"
"""What a test's cells are called, in its function and in the report of it."""

_Test = TypeVar("_Test", bound=Callable[..., None])


def shows(where: str, *semantics: int) -> Callable[[_Test], _Test]:
    """Mark a test of ``semantics`` for sockets bound to ``where``; a parameter ``where`` has to say the same."""

    def mark(test: _Test) -> _Test:
        test.__dict__.setdefault(KEY, []).extend((where, SEMANTICS[one]) for one in semantics)
        return test

    return mark


def of(test: Callable[..., None], parameters: Mapping[str, Any]) -> Iterator[Cell]:
    """The cells that ``test`` shows with its ``parameters``."""
    for where, semantics in getattr(test, KEY, ()):
        if parameters.get("where", where) == where:
            yield semantics, parameters["protocol"], parameters["family"], where


def with_tests(functions: Iterable[object]) -> set[Cell]:
    """The cells for which there is a test among ``functions``, by their decorators."""
    found: set[Cell] = set()
    for function in functions:
        if callable(function) and hasattr(function, KEY):
            marks = [mark.args for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
            for values in itertools.product(*(mark[1] for mark in marks)):
                found.update(of(function, dict(zip((mark[0] for mark in marks), values, strict=True))))
    return found


def lines(passed: Iterable[Cell]) -> list[str]:
    """What is told at the end: each semantics' cells, those that did not pass by name; nothing when none did."""
    found = set(passed)
    if not found:
        return []
    counted, all_ = Counter(cell[0] for cell in found), Counter(cell[0] for cell in ALL)
    told = ", ".join(f"{name} {counted[name]} of {all_[name]}" for name in SEMANTICS.values())
    return [f"{len(found)} of {len(ALL)}: {told}", *(f"not {' '.join(cell)}" for cell in sorted(ALL - found))]
