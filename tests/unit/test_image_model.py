"""Every record of the model can travel in an image: made of what an image holds, and equal after the journey."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt.image import schema, wire
from ckpt.image.defect import Place
from ckpt.model.checkpoint import Checkpoint

PLACE = Place("a.ckpt")
_SCALARS: dict[object, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(codec="utf-8"), max_size=8) | st.just("/tmp/\udcff"),
    int: st.integers(-(2**63), 2**64 - 1),
    bool: st.booleans(),
    float: st.floats(allow_nan=False),
    bytes: st.binary(max_size=8),
}


def records(hint: Any) -> Iterator[type]:
    """Every record type that a field of type ``hint`` can hold, also deep inside."""
    for argument in typing.get_args(hint):
        yield from records(argument)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
        for field in typing.get_type_hints(hint).values():
            yield from records(field)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Anything that a field of type ``hint`` can hold."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.none() | values(arguments[0])
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if origin is Mapping:
        return st.dictionaries(values(str), values(arguments[1]), max_size=2)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        fields = {field.name: values(hints[field.name]) for field in dataclasses.fields(hint)}
        return st.deferred(lambda: st.builds(typing.cast("type", hint), **fields))
    return _SCALARS[hint]


RECORDS = sorted(set(records(Checkpoint)), key=lambda record: record.__qualname__)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__qualname__)
def test_record_of_the_model_is_equal_after_its_journey(record: type) -> None:
    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(values(record))
    def journey(sent: Any) -> None:
        packed = wire.pack(schema.encode(sent))
        assert schema.decode(record, wire.unpack(packed, PLACE), "record", PLACE) == sent

    journey()
