"""Record to map and back, for every frozen dataclass whose fields have the types that an image may hold.

``encode`` turns a record into msgpack's own types; ``decode`` is its mirror and checks every value against the field's
declared type, so that a record that was decoded is as good as one that was made here. Types are read once per class
from its annotations, into what to do with each field: an image of many connections has a hundred thousand of them. A
field that holds its default is left out, and a field that is unknown is refused: so a newer ckpt may add a field with a
default, and an image is refused by an older one only if it really uses the field.

Nothing is converted silently: the one latitude is an int where a float is declared.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ckpt.image.defect import Defect, Place

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T")
_Decoder = Callable[[object], object]
_Encoder = Callable[[Any], object]

_NAMES = {dict: "map", list: "array", type(None): "nil"}
_SCALARS = (str, int, bool, bytes)


class _MisfitError(Exception):
    """A value that does not fit; ``path`` leads from the record to it, and grows as this is raised through."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.path = path


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    """``scalar`` is the type of a value that is taken as it is; ``encode`` None leaves one as it is."""

    name: str
    scalar: type | None
    decode: _Decoder
    encode: _Encoder | None
    default: object


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """What a record has, in the order of declaration."""

    fields: Mapping[str, _Field]
    required: frozenset[str]


def encode(record: DataclassInstance) -> dict[str, object]:
    """``record``'s fields that differ from their defaults, as a map of msgpack's types, in the order of declaration."""
    encoded: dict[str, object] = {}
    for name, field in _plan(type(record)).fields.items():
        value = getattr(record, name)
        if field.default is dataclasses.MISSING or value != field.default:
            encoded[name] = value if value is None or field.encode is None else field.encode(value)
    return encoded


def decode(record: type[_T], value: object, path: str, place: Place) -> _T:
    """The ``record`` that ``value`` (a map, as from msgpack) describes.

    ``path`` names the value in messages. Raises ImageError(code="image-field"), for instance
    ``network.links[3].mtu: expected int, got str``, also when the record's own ``__post_init__`` raises ValueError.
    """
    try:
        return cast("_T", _decode(cast("type[DataclassInstance]", record), value))
    except _MisfitError as misfit:
        raise place.error(Defect.FIELD, f"{path}{misfit.path}: {misfit.what}") from misfit


def _decode(record: type[DataclassInstance], value: object) -> object:
    if not isinstance(value, dict):
        raise _expected("map", value)
    plan = _plan(record)
    fields = plan.fields
    if not value.keys() <= fields.keys():
        raise _MisfitError("unknown field", f".{min(map(str, value.keys() - fields.keys()))}")
    if not plan.required <= value.keys():
        raise _MisfitError("missing", f".{next(name for name in fields if name in plan.required - value.keys())}")
    arguments: dict[str, Any] = {}
    name = ""
    try:
        for name, item in value.items():
            field = fields[name]
            arguments[name] = item if type(item) is field.scalar else field.decode(item)
    except _MisfitError as misfit:
        misfit.path = f".{name}{misfit.path}"
        raise
    try:
        return record(**arguments)
    except ValueError as error:
        raise _MisfitError(str(error)) from error


def _expected(what: str, value: object) -> _MisfitError:
    return _MisfitError(f"expected {what}, got {_NAMES.get(type(value), type(value).__name__)}")


@functools.cache
def _plan(record: type[DataclassInstance]) -> _Plan:
    if not dataclasses.is_dataclass(record):
        raise TypeError(f"{record.__name__} is no dataclass")
    hints = typing.get_type_hints(record)
    fields = {
        field.name: _Field(
            field.name,
            hints[field.name] if hints[field.name] in _SCALARS else None,
            *_codec(hints[field.name]),
            _default(field),
        )
        for field in dataclasses.fields(record)
        if field.init
    }
    return _Plan(fields, frozenset(name for name, field in fields.items() if field.default is dataclasses.MISSING))


def _default(field: dataclasses.Field[Any]) -> object:
    """A default to compare with: no record ever gets this very one."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@functools.cache
def _codec(hint: Any) -> tuple[_Decoder, _Encoder | None]:
    """What checks and converts a value to the annotated type ``hint``, and what makes msgpack's types of it again."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _optional(hint, arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
        return _array(*_codec(arguments[0]))
    if origin is not None and issubclass(origin, Mapping) and arguments[0] is str:
        return _map(*_codec(arguments[1]))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return functools.partial(_decode, hint), encode
    if hint is float:
        return _float, None
    if hint in _SCALARS:
        return _scalar(hint), None
    raise TypeError(f"no image can hold a field of type {hint}")


def _optional(hint: object, arguments: tuple[Any, ...]) -> tuple[_Decoder, _Encoder | None]:
    wanted = [argument for argument in arguments if argument is not type(None)]
    if len(wanted) != 1 or len(arguments) != 2:
        raise TypeError(f"no image can hold a field of type {hint}")
    inner, encoder = _codec(wanted[0])
    return lambda value: None if value is None else inner(value), encoder


def _array(inner: _Decoder, encoder: _Encoder | None) -> tuple[_Decoder, _Encoder]:
    def decode_array(value: object) -> object:
        if not isinstance(value, list):
            raise _expected("array", value)
        made: list[object] = []
        try:
            made.extend(map(inner, value))
        except _MisfitError as misfit:
            misfit.path = f"[{len(made)}]{misfit.path}"
            raise
        return tuple(made)

    if encoder is None:
        return decode_array, list
    return decode_array, lambda value: [encoder(item) for item in value]


def _map(inner: _Decoder, encoder: _Encoder | None) -> tuple[_Decoder, _Encoder]:
    def decode_map(value: object) -> object:
        if not isinstance(value, dict):
            raise _expected("map", value)
        made: dict[str, object] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise _MisfitError(f"expected str as a key, got {type(key).__name__}")
            try:
                made[key] = inner(item)
            except _MisfitError as misfit:
                misfit.path = f"[{key!r}]{misfit.path}"
                raise
        return made

    if encoder is None:
        return decode_map, dict
    return decode_map, lambda value: {key: encoder(item) for key, item in value.items()}


def _enum(hint: type[enum.Enum]) -> tuple[_Decoder, _Encoder]:
    base: type = int if issubclass(hint, int) else str
    members = {member.value: member for member in hint}

    def decode_enum(value: object) -> object:
        if type(value) is not base:
            raise _expected(base.__name__, value)
        if value not in members:
            raise _MisfitError(f"{value!r} is none of {', '.join(map(str, members))}")
        return members[value]

    return decode_enum, attrgetter("value")


def _scalar(hint: type) -> _Decoder:
    def decode_scalar(value: object) -> object:
        if type(value) is not hint:  # not isinstance: True is no int here
            raise _expected(hint.__name__, value)
        return value

    return decode_scalar


def _float(value: object) -> object:
    if type(value) not in (int, float):
        raise _expected("float", value)
    return float(cast("float", value))
