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
from ckpt.model.checkpoint import Booking, Checkpoint, ContextRecord, PlacedAddress
from ckpt.model.context import Member, PortRange

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
        if hint is ContextRecord:
            fields |= _context_fields()
        return st.deferred(lambda: st.builds(typing.cast("type", hint), **fields))
    return _SCALARS[hint]


def _context_fields() -> dict[str, st.SearchStrategy[Any]]:
    """What makes a set: this record alone refuses what is none."""
    address = st.sampled_from(("10.0.0.5", "fd00::5"))
    protocol = st.sampled_from(("", "tcp", "udp"))
    ports = st.builds(PortRange, low=st.integers(1, 99), high=st.integers(100, 65535), protocol=protocol)
    some_ports = st.lists(ports, max_size=2).map(tuple)
    member = st.builds(Member, address=address, prefix=st.none() | st.integers(0, 32), ports=some_ports)
    place = st.builds(PlacedAddress, address=address, ifname=values(str), mac=values(str | None), given=st.booleans())
    number = values(int)
    booking = st.builds(
        Booking, address=address, port=number, protocol=number, primary=address, wild=number, sockets=number
    )
    return {
        "members": st.lists(member, min_size=1, max_size=2).map(tuple),
        "loopback4": st.just("127.64.0.1"),
        "loopback6": st.just("fd63:6b70:7400::1"),
        "places": st.lists(place, max_size=2).map(tuple),
        "bookings": st.lists(booking, max_size=2).map(tuple),
    }


RECORDS = sorted(set(records(Checkpoint)), key=lambda record: record.__qualname__)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__qualname__)
def test_record_of_the_model_is_equal_after_its_journey(record: type) -> None:
    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(values(record))
    def journey(sent: Any) -> None:
        packed = wire.pack(schema.encode(sent))
        assert schema.decode(record, wire.unpack(packed, PLACE), "record", PLACE) == sent

    journey()
