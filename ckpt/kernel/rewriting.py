"""Change some attributes of a message that is otherwise kept as it came: bytes in, bytes out.

What is not named stays bit for bit, its type's flags included, so that a message of a kind that is hardly known can be
cleared of counters on the way in, and be given what the kernel wants but does not show on the way out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping

from ckpt.kernel.netlink import NLA_F_NESTED

_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF

Change = Callable[[bytes], bytes] | None
"""What becomes of an attribute's value; None takes the attribute out."""


def rewrite(data: bytes, changes: Mapping[int, Change], *, start: int = 0, appended: bytes = b"") -> bytes:
    """``data`` with the attributes of the types in ``changes`` changed; before ``start`` is a fixed header."""
    parts = [data[:start]]
    for kind, value in _flagged(data, start):
        change = changes.get(kind & _TYPE_MASK, _same)
        if change is not None:
            parts.append(_attribute(kind, change(value)))
    return b"".join(parts) + appended


def each(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A change of a list: ``change`` applied to every element; each is marked as nested."""

    def change_all(data: bytes) -> bytes:
        return b"".join(_attribute(kind | NLA_F_NESTED, change(value)) for kind, value in _flagged(data, 0))

    return change_all


def zeros(value: bytes) -> bytes:
    """A change that keeps only the length."""
    return bytes(len(value))


def _same(value: bytes) -> bytes:
    return value


def _flagged(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    offset = start
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    length = len(value) + _ATTRIBUTE.size
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)
