"""The one door to msgpack: every flag and limit it is used with stands here.

A record's map goes through ``pack`` and ``unpack``; a frame's head (everything before its payload) through
``pack_head`` and ``unpack_head``. Decoding never trusts a length: a value is first walked over without building
anything (``skip``), which proves that every element it claims is really there, and only then built. msgpack itself
would reserve a list of the claimed length at each level of nesting. Extension types and maps with a key twice are
refused: two readers must not understand one image differently.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack

from ckpt.image.defect import Defect, Place
from ckpt.image.layout import MAX_DEPTH, MAX_HEAD, MAX_SECTION

_MAX_ITEMS = 16  # elements of a frame's array; the widest frame has seven
# Bytes that are no UTF-8 stay what they are: Linux paths and command lines are bytes.
_UNICODE = "surrogateescape"


def _refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} of {len(data)} bytes")


def _unique(pairs: list[tuple[object, object]]) -> dict[object, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key twice")
    return made


def _unpacker(size: int, items: int) -> Any:
    # max_buffer_size 0 would mean "no limit" to msgpack, hence at least 1.
    return msgpack.Unpacker(
        max_buffer_size=max(size, 1),
        max_array_len=items,
        max_map_len=items,
        max_ext_len=0,
        raw=False,
        use_list=True,
        strict_map_key=True,
        unicode_errors=_UNICODE,
        object_pairs_hook=_unique,
        ext_hook=_refuse_extension,
    )


def pack(value: object) -> bytes:
    """``value`` (None, bool, int, float, str, bytes, and lists and maps of these) as msgpack.

    Raises OverflowError for an int beyond 64 bits.
    """
    packed: bytes = msgpack.Packer(use_bin_type=True, unicode_errors=_UNICODE).pack(value)
    return packed


def unpack(data: bytes | bytearray, place: Place, limit: int = MAX_SECTION) -> object:
    """The one msgpack value that fills ``data``; raises ImageError where it is not that, or is beyond the limits."""
    if len(data) > limit:
        raise place.error(Defect.LIMIT, f"{len(data)} bytes of msgpack, at most {limit}")
    try:
        probe = _unpacker(len(data), limit)
        probe.feed(data)
        probe.skip()
        if probe.tell() != len(data):
            raise place.error(Defect.MALFORMED, f"{len(data) - probe.tell()} bytes follow the msgpack value")
        unpacker = _unpacker(len(data), limit)
        unpacker.feed(data)
        value: object = unpacker.unpack()
    except (msgpack.UnpackException, ValueError, TypeError) as error:
        raise place.error(Defect.MALFORMED, f"not msgpack as the format has it: {_reason(error)}") from error
    _bound_depth((value,), MAX_DEPTH + 1, place)
    return value


def _bound_depth(values: Iterable[object], left: int, place: Place) -> None:
    if not left:
        raise place.error(Defect.LIMIT, f"nested more than {MAX_DEPTH} deep")
    for value in values:
        if isinstance(value, dict):
            _bound_depth(value.values(), left - 1, place)
        elif isinstance(value, list):
            _bound_depth(value, left - 1, place)


def _reason(error: Exception) -> str:
    # In our words: msgpack's own differ from one version to the next.
    if isinstance(error, msgpack.OutOfData):
        return "it ends too early"
    if isinstance(error, msgpack.FormatError):
        return "an invalid type byte"
    if isinstance(error, msgpack.StackError):
        return "nested too deep"
    return "a type, a length or a key that is not allowed"


def pack_head(items: Iterable[object], missing: int) -> bytes:
    """The start of an array: ``items`` packed, its length counting also the ``missing`` elements that follow."""
    packed = [pack(item) for item in items]
    return bytes([0x90 | (len(packed) + missing)]) + b"".join(packed)


def unpack_head(data: bytes, missing: int, place: Place, limit: int = MAX_HEAD) -> tuple[list[object], int] | None:
    """The elements of the array at the start of ``data`` but the last ``missing``, and how many bytes they fill.

    None when ``data`` ends before they do and is shorter than ``limit``, the most bytes that a head may have.
    """
    if not data:
        return None
    window = data[:limit]
    count = (window[0] & 0x0F) - missing
    if window[0] & 0xF0 != 0x90 or count < 1:
        raise place.error(Defect.MALFORMED, f"no frame begins with byte 0x{window[0]:02X}")
    unpacker = _unpacker(limit, _MAX_ITEMS)
    unpacker.feed(window)
    try:
        unpacker.read_array_header()
        items = [unpacker.unpack() for _ in range(count)]
    except msgpack.OutOfData as error:
        if len(window) < limit:
            return None
        raise place.error(Defect.LIMIT, f"a frame's head of more than {limit} bytes") from error
    except (msgpack.UnpackException, ValueError, TypeError) as error:
        raise place.error(Defect.MALFORMED, f"not msgpack as the format has it: {_reason(error)}") from error
    return items, unpacker.tell()
