"""Every class of object that a network holds is compared by `diff`: what came, went or changed is named by object.

The classes and their fields are taken from the model, so that one that comes later is tried too.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from ckpt.diff import _BY_NATURE, _RUNNING, Change, diff, name_of
from ckpt.model.checkpoint import Checkpoint, NestedNetwork
from ckpt.model.network import Network
from tests.unit.test_diff import CHECKPOINT

EMPTY = Network(complete=True)


def value(hint: Any, number: int) -> Any:
    """Something that a field of type ``hint`` can hold, other for each ``number`` (1 or 2)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return value(arguments[0], number)
    if origin is tuple:
        return (value(arguments[0], number),)
    if origin is Mapping:
        return {"key": value(arguments[1], number)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return list(hint)[number]
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return typing.cast("Any", hint)(
            **{one.name: value(hints[one.name], number) for one in dataclasses.fields(hint)}
        )
    return {str: f"text{number}", int: number + 3, bool: number == 1, bytes: bytes([number])}[hint]


def collections(record: type, place: str = "") -> Iterator[tuple[str, Any]]:
    """The fields that hold objects, by their path, with the type of these."""
    for name, hint in typing.get_type_hints(record).items():
        argument = (*typing.get_args(hint), None)[0]
        if dataclasses.is_dataclass(hint):
            yield from collections(typing.cast("type", hint), f"{name}.")
        elif (typing.get_origin(hint) is tuple and dataclasses.is_dataclass(argument)) or name == "virtual_services":
            yield f"{place}{name}", argument


OBJECTS = dict(collections(Network))


def holding(path: str, *objects: Any) -> Checkpoint:
    """A checkpoint of which the network has these objects."""
    part, _, name = path.rpartition(".")
    changes: dict[str, Any] = {name: objects}
    if part:
        changes = {part: replace(getattr(EMPTY, part), **changes)}
    return replace(CHECKPOINT, network=replace(EMPTY, **changes))


def test_classes_of_objects_are_those_of_the_model() -> None:
    assert len(OBJECTS) > 25
    assert {"links", "bridging.forwarding", "filtering.virtual_services", "traffic.filters"} <= OBJECTS.keys()


@pytest.mark.parametrize("path", OBJECTS)
def test_object_that_came_or_went_is_named(path: str) -> None:
    one = value(OBJECTS[path], 1)
    without, with_it = holding(path), holding(path, one)
    [came] = diff(without, with_it)
    assert (came.section, came.name, came.change, came.after) == (path, name_of(one), Change.ADDED, one)
    [went] = diff(with_it, without)
    assert (went.section, went.name, went.change, went.before) == (path, name_of(one), Change.REMOVED, one)
    assert came.name


FIELDS = [
    (path, field.name)
    for path, record in OBJECTS.items()
    if dataclasses.is_dataclass(record)
    for field in dataclasses.fields(record)
]


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_every_field_of_an_object_is_compared(path: str, field: str) -> None:
    record = OBJECTS[path]
    key = (record.__name__, field)
    one = value(record, 1)
    other = replace(one, **{field: value(typing.get_type_hints(record)[field], 2)})
    found = diff(holding(path, one), holding(path, other))
    if key in _BY_NATURE | _RUNNING:
        assert found == ()
        assert diff(holding(path, one), holding(path, other), everything=True)
    elif name_of(one) != name_of(other):
        assert [(item.section, item.change) for item in found] == [(path, Change.REMOVED), (path, Change.ADDED)]
    else:
        [changed] = found
        assert (changed.section, changed.name, changed.change) == (path, name_of(one), Change.CHANGED)
        assert {item.field.partition("[")[0].partition(".")[0] for item in changed.fields} == {field}


@pytest.mark.parametrize("path", OBJECTS)
def test_object_of_a_nested_namespace_is_named(path: str) -> None:
    one = holding(path, value(OBJECTS[path], 1))
    assert one.network is not None
    nested = [
        replace(CHECKPOINT, nested=(NestedNetwork(key="n", inode=1, network=net),)) for net in (EMPTY, one.network)
    ]
    [found] = diff(*nested)
    assert (found.section, found.name, found.change) == ("nested", "n", Change.CHANGED)
    assert found.fields[0].field.startswith(f"network.{path}")
