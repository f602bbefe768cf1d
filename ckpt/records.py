"""Frozen dataclasses that cost little to define.

The standard library writes and compiles six methods for each frozen dataclass. Of the two hundred that a command loads
it uses the methods of a few, and it is half of what loading takes. Here each class has the very fields that the
standard library gives it, so `fields`, `replace` and `asdict` know it; what compares, hashes and shows it is the same
for all, and its ``__init__`` is compiled when the first record is made.

To a type checker this is the standard library's decorator, of which it takes what is used here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(
        *, frozen: bool = False, slots: bool, kw_only: bool = False, repr: bool = True
    ) -> Callable[[type[Any]], type[Any]]:
        """As `dataclasses.dataclass`; always with slots."""
        define = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)

        def decorate(cls: type[Any]) -> type[Any]:
            made = define(cls)
            fields = dataclasses.fields(made)
            if not all(one.init and one.repr and one.compare for one in fields):
                raise TypeError(f"{cls.__name__} has a field that is not as others; use dataclasses.dataclass")
            names = [one.name for one in fields]
            made.__init__ = _first_init(made)
            _compare(made, names, frozen)
            if frozen:
                made.__setattr__ = _refuse_setting
                made.__delattr__ = _refuse_deleting
            if repr:
                made.__repr__ = _show
            return made

        return decorate


def _first_init(cls: type[Any]) -> Callable[..., None]:
    """An ``__init__`` that puts the real one in its place."""

    def initialise(self: Any, *args: object, **kwargs: object) -> None:
        if cls.__init__ is initialise:
            cls.__init__ = _init(cls)
        cls.__init__(self, *args, **kwargs)

    return initialise


def _init(cls: Any) -> Callable[..., None]:
    """The ``__init__`` that takes and sets the fields of ``cls``, by their slots: that passes by what is frozen."""
    names: dict[str, Any] = {"_absent": dataclasses.MISSING}
    wanted, body = [[], ["*"]], []
    for one in dataclasses.fields(cls):
        names[f"_set_{one.name}"] = getattr(cls, one.name).__set__
        value, parameter = one.name, one.name
        if one.default_factory is not dataclasses.MISSING:
            names[f"_make_{one.name}"] = one.default_factory
            parameter = f"{one.name}=_absent"
            value = f"_make_{one.name}() if {one.name} is _absent else {one.name}"
        elif one.default is not dataclasses.MISSING:
            names[f"_default_{one.name}"] = one.default
            parameter = f"{one.name}=_default_{one.name}"
        wanted[one.kw_only is True].append(parameter)
        body.append(f"    _set_{one.name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        body.append("    self.__post_init__()")
    parameters = ", ".join(["self", *wanted[False], *(wanted[True] if len(wanted[True]) > 1 else [])])
    exec("\n".join([f"def __init__({parameters}):", *(body or ["    pass"])]), names)
    made = cast("Callable[..., None]", names["__init__"])
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__module__ = cls.__module__
    return made


def _compare(cls: Any, names: list[str], frozen: bool) -> None:
    values: Callable[[Any], object] = attrgetter(*names) if names else lambda _: ()

    def equals(self: Any, other: Any) -> Any:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def hashed(self: Any) -> int:
        return hash(values(self))

    cls.__eq__ = equals
    cls.__hash__ = hashed if frozen else None


def _show(self: Any) -> str:
    said = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in dataclasses.fields(self))
    return f"{self.__class__.__qualname__}({said})"


def _refuse_setting(self: object, name: str, value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deleting(self: object, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
