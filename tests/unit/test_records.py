"""Records are dataclasses in all that anybody can tell, but for what they cost."""

from __future__ import annotations

import dataclasses
from dataclasses import FrozenInstanceError, field
from typing import Any, ClassVar

import pytest

from ckpt.records import dataclass


def positional() -> type[Any]:
    """A class for a decorator, of fields by their place."""

    class Positional:
        """Has every kind of field that records have."""

        KIND: ClassVar[str] = "kind"
        name: str
        size: int = 3
        parts: tuple[int, ...] = field(default_factory=lambda: (1, 2))

    return Positional


class _Checked:
    """A field that is looked at."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("negative")


@pytest.fixture
def pair() -> tuple[Any, Any]:
    """Ours and the standard library's."""
    theirs = dataclasses.dataclass(frozen=True, slots=True)
    return dataclass(frozen=True, slots=True)(positional()), theirs(positional())


def test_a_record_is_made_and_shown_as_the_standard_librarys_is(pair: tuple[Any, Any]) -> None:
    for arguments, named in (
        (("a",), {}),
        (("a", 4), {"parts": ()}),
        ((), {"name": "b", "size": 5}),
    ):
        ours, theirs = (cls(*arguments, **named) for cls in pair)
        assert repr(ours) == repr(theirs)
        assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)


def test_a_record_is_compared_and_hashed_by_its_fields(pair: tuple[Any, Any]) -> None:
    record, other = pair
    assert record("a") == record("a", 3)
    assert record("a") != record("a", 4)
    assert record("a") != other("a")
    assert len({record("a"), record("a", 3), record("b")}) == 2


def test_a_record_is_replaced_and_matched(pair: tuple[Any, Any]) -> None:
    record = pair[0]
    one = dataclasses.replace(record("a"), size=9)
    assert (one.name, one.size) == ("a", 9)
    match one:
        case record(name, size):
            assert (name, size) == ("a", 9)
        case _:
            pytest.fail("it is not matched")


def test_a_frozen_record_stays_as_it_is(pair: tuple[Any, Any]) -> None:
    one = pair[0]("a")
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'size'"):
        one.size = 4
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'size'"):
        del one.size
    assert not hasattr(one, "__dict__")


def test_a_wrong_argument_is_refused_at_the_first_record_too() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Named:
        """One field."""

        name: str

    make: Any = Named
    for arguments, named in ((("a",), {}), ((), {}), ((), {"name": "a", "other": 1})):
        with pytest.raises(TypeError, match=r"Named\.__init__\(\)"):
            make(*arguments, **named)
    assert Named(name="a").name == "a"


def test_a_record_may_look_at_its_fields() -> None:
    checked: Any = dataclass(frozen=True, slots=True, kw_only=True)(_Checked)
    with pytest.raises(ValueError, match="negative"):
        checked(size=-1)
    assert checked(size=1).size == 1


def test_a_record_inherits_fields_and_their_order() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Base:
        """First."""

        name: str
        size: int = 1

    @dataclass(frozen=True, slots=True, kw_only=True)
    class More(Base):
        """Then."""

        extra: str

    one = More(extra="x", name="a")
    assert dataclasses.astuple(one) == ("a", 1, "x")
    assert one != Base(name="a")


def test_a_record_that_changes_cannot_be_hashed() -> None:
    @dataclass(slots=True)
    class Open:
        """It changes."""

        size: int = 0

    one = Open()
    one.size += 1
    assert one == Open(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_a_field_that_is_not_compared_is_refused() -> None:
    with pytest.raises(TypeError, match="not as others"):

        @dataclass(frozen=True, slots=True)
        class Odd:
            """Half compared."""

            size: int = field(default=0, compare=False)
