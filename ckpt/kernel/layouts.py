"""Take apart many messages of one sort, most of which have the same attributes with the same lengths.

A link has some sixty attributes, and the next link has the same ones at the same places. So where they are is worked
out once (a ``struct`` that splits the whole message, at the speed of C), and of every further message it is only seen
whether all its attributes are those.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ckpt.kernel.netlink import Attributes, parse

_HEAD = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF

_Split = Callable[[bytes], tuple[bytes, ...]]


class Layouts:
    """The layouts of the messages of one dump, whose fixed header has the size ``offset``."""

    def __init__(self, offset: int = 0) -> None:
        self._offset = offset
        # Of a link the first attribute is its name: the length of that tells those of one size apart.
        self._known: dict[tuple[int, bytes], tuple[_Split, tuple[bytes, ...], tuple[int, ...]]] = {}

    def parse(self, data: bytes) -> Attributes:
        """As ``netlink.parse``."""
        key = len(data), data[self._offset : self._offset + 4]
        layout = self._known.get(key)
        if layout is not None:
            split, heads, kinds = layout
            parts = split(data)
            if parts[::2] == heads:
                return dict(zip(kinds, parts[1::2], strict=True))
        self._known[key] = self._learn(data)
        return parse(data, self._offset)

    def _learn(self, data: bytes) -> tuple[_Split, tuple[bytes, ...], tuple[int, ...]]:
        heads: list[bytes] = []
        kinds: list[int] = []
        layout = [f"={self._offset}x"]
        place, end = self._offset, len(data)
        while place + 4 <= end:
            length, kind = _HEAD.unpack_from(data, place)
            if length < 4:
                break
            heads.append(data[place : place + 4])
            kinds.append(kind & _TYPE_MASK)
            following = min(place + (length + 3 & ~3), end)
            inside = min(length, end - place)
            layout.append(f"4s{inside - 4}s{following - place - inside}x")
            place = following
        layout.append(f"{end - place}x")
        return struct.Struct("".join(layout)).unpack, tuple(heads), tuple(kinds)
