"""Record to map and back, for every frozen dataclass whose fields have the types that an image may hold.

``encode`` turns a record into msgpack's own types; ``decode`` is its mirror and checks every value against the field's
declared type, so that a record that was decoded is as good as one that was made here. Types are read once per class
from its annotations. A field that holds its default is left out, and a field that is unknown is refused: so a newer
ckpt may add a field with a default, and an image is refused by an older one only if it really uses the field.

Nothing is converted silently: the one latitude is an int where a float is declared.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ckpt.image.defect import Defect, Place

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T")
_Decoder = Callable[[object, str, Place], object]

_NAMES = {dict: "map", list: "array", type(None): "nil"}


@dataclasses.dataclass(frozen=True, slots=True)
class _Field:
    name: str
    decode: _Decoder
    default: Callable[[], object] | None


def encode(record: DataclassInstance) -> dict[str, object]:
    """``record``'s fields that differ from their defaults, as a map of msgpack's types, in the order of declaration."""
    encoded: dict[str, object] = {}
    for field in _fields(type(record)):
        value = getattr(record, field.name)
        if field.default is None or value != field.default():
            encoded[field.name] = _encode_value(value)
    return encoded


def _encode_value(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return encode(value)
    if isinstance(value, tuple):
        return [_encode_value(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _encode_value(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, int, float, bytes)):
        return value
    raise TypeError(f"a record holds {type(value).__name__}, which no image can")


def decode(record: type[_T], value: object, path: str, place: Place) -> _T:
    """The ``record`` that ``value`` (a map, as from msgpack) describes.

    ``path`` names the value in messages. Raises ImageError(code="image-field"), for instance
    ``network.links[3].mtu: expected int, got str``, also when the record's own ``__post_init__`` raises ValueError.
    """
    if not isinstance(value, dict):
        raise _expected("map", value, path, place)
    fields = _fields(cast("type[DataclassInstance]", record))
    unknown = value.keys() - {field.name for field in fields}
    if unknown:
        raise place.error(Defect.FIELD, f"{path}.{min(map(str, unknown))}: unknown field")
    arguments: dict[str, object] = {}
    for field in fields:
        if field.name in value:
            arguments[field.name] = field.decode(value[field.name], f"{path}.{field.name}", place)
        elif field.default is None:
            raise place.error(Defect.FIELD, f"{path}.{field.name}: missing")
    try:
        return record(**arguments)
    except ValueError as error:
        raise place.error(Defect.FIELD, f"{path}: {error}") from error


def _expected(what: str, value: object, path: str, place: Place) -> Exception:
    got = _NAMES.get(type(value), type(value).__name__)
    return place.error(Defect.FIELD, f"{path}: expected {what}, got {got}")


@functools.cache
def _fields(record: type[DataclassInstance]) -> tuple[_Field, ...]:
    if not dataclasses.is_dataclass(record):
        raise TypeError(f"{record.__name__} is no dataclass")
    hints = typing.get_type_hints(record)
    return tuple(
        _Field(field.name, _decoder(hints[field.name]), _default(field))
        for field in dataclasses.fields(record)
        if field.init
    )


def _default(field: dataclasses.Field[Any]) -> Callable[[], object] | None:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    if field.default is not dataclasses.MISSING:
        value = field.default
        return lambda: value
    return None


@functools.cache
def _decoder(hint: Any) -> _Decoder:
    """The function that checks and converts a value to the annotated type ``hint``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _optional(hint, arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
        return _array(_decoder(arguments[0]))
    if origin is not None and issubclass(origin, Mapping) and arguments[0] is str:
        return _map(_decoder(arguments[1]))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return functools.partial(_record, hint)
    if hint is float:
        return _float
    if hint in (str, int, bool, bytes):
        return _scalar(hint)
    raise TypeError(f"no image can hold a field of type {hint}")


def _record(hint: type, value: object, path: str, place: Place) -> object:
    return decode(hint, value, path, place)


def _optional(hint: object, arguments: tuple[Any, ...]) -> _Decoder:
    wanted = [argument for argument in arguments if argument is not type(None)]
    if len(wanted) != 1 or len(arguments) != 2:
        raise TypeError(f"no image can hold a field of type {hint}")
    inner = _decoder(wanted[0])
    return lambda value, path, place: None if value is None else inner(value, path, place)


def _array(inner: _Decoder) -> _Decoder:
    def decode_array(value: object, path: str, place: Place) -> object:
        if not isinstance(value, list):
            raise _expected("array", value, path, place)
        return tuple(inner(item, f"{path}[{number}]", place) for number, item in enumerate(value))

    return decode_array


def _map(inner: _Decoder) -> _Decoder:
    def decode_map(value: object, path: str, place: Place) -> object:
        if not isinstance(value, dict):
            raise _expected("map", value, path, place)
        for key in value:
            if not isinstance(key, str):
                raise _expected("str as a key", key, path, place)
        return {key: inner(item, f"{path}[{key!r}]", place) for key, item in value.items()}

    return decode_map


def _enum(hint: type[enum.Enum]) -> _Decoder:
    base: type = int if issubclass(hint, int) else str

    def decode_enum(value: object, path: str, place: Place) -> object:
        if type(value) is not base:
            raise _expected(base.__name__, value, path, place)
        try:
            return hint(value)
        except ValueError as error:
            known = ", ".join(str(member.value) for member in hint)
            raise place.error(Defect.FIELD, f"{path}: {value!r} is none of {known}") from error

    return decode_enum


def _scalar(hint: type) -> _Decoder:
    def decode_scalar(value: object, path: str, place: Place) -> object:
        if type(value) is not hint:  # not isinstance: True is no int here
            raise _expected(hint.__name__, value, path, place)
        return value

    return decode_scalar


def _float(value: object, path: str, place: Place) -> object:
    if type(value) not in (int, float):
        raise _expected("float", value, path, place)
    return float(cast("float", value))
