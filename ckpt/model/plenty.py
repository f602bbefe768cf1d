"""Records that are made by the ten thousand.

A frozen record (`ckpt.records`) sets each of its fields by a call, and so to make a route of twenty fields takes nearly
twice as long as it need. Made here it begins as an object that is not frozen, and has become the record when its
``__init__`` returns: of the very class, and as frozen as any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, field, fields, make_dataclass
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar, cast

_Record = TypeVar("_Record")


def in_plenty(record: type[_Record]) -> type[_Record]:
    """What makes records of the frozen, slotted dataclass ``record`` as that does itself, and quicker.

    To be asked for where it is used: it is made once, and not by a command that reads no network.
    """
    return cast(type[_Record], _open_record(cast(Any, record)))


def replacing(record: type[_Record]) -> Callable[..., _Record]:
    """What does with a record of that class what ``dataclasses.replace`` does, and quicker; as ``in_plenty``."""
    return cast(Callable[..., _Record], _replacing(cast(Any, record)))


@cache
def _open_record(record: Any) -> type[Any]:
    def become(self: object) -> None:
        # Allowed since both have the same slots and nothing else.
        self.__class__ = record

    listed = [(one.name, one.type, field(**_default(one))) for one in fields(record)]
    return make_dataclass(
        record.__name__, listed, slots=True, kw_only=True, namespace={"__post_init__": become, "__module__": __name__}
    )


@cache
def _replacing(record: Any) -> Callable[..., Any]:
    names = [one.name for one in fields(record)]
    make, values = _open_record(record), attrgetter(*names)

    def replace(one: Any, **changes: object) -> Any:
        return make(**(dict(zip(names, values(one), strict=True)) | changes))

    return replace


def _default(one: Any) -> dict[str, Any]:
    if one.default is not MISSING:
        return {"default": one.default}
    return {"default_factory": one.default_factory} if one.default_factory is not MISSING else {}
