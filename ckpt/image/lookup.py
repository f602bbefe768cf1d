"""The bytes of an image's file by their place in it, checked and decompressed when they are asked for.

Who asks mostly goes forward: the chunks that come next are made ready by threads meanwhile, and those that lie behind
are forgotten. Every byte that is handed out was checked against its frame's digest.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

Data = bytes | bytearray

_AHEAD: Final = 3  # chunks
_BEHIND: Final = 1


class Lookup:
    """A file of ``length`` bytes. ``raw`` gives the length of a chunk, by its number, and ``load`` its bytes.

    ``load`` is called by threads of ``pool``.
    """

    def __init__(
        self, length: int, raw: Callable[[int], int], load: Callable[[int], Data], pool: ThreadPoolExecutor
    ) -> None:
        self.length = length
        self._raw = raw
        self._load = load
        self._pool = pool
        self._starts = [0]  # of the chunks so far, and where the next one begins
        self._ready: dict[int, Future[Data]] = {}
        self._turn = threading.Lock()

    def read(self, offset: int, size: int) -> Sequence[memoryview]:
        """So many bytes from ``offset`` on, less only at the end; raises what ``raw`` and ``load`` raise."""
        pieces = []
        end = min(offset + size, self.length)
        while offset < end:
            start, data = self._chunk(offset)
            pieces.append(memoryview(data.result())[offset - start : end - start])
            offset += len(pieces[-1])
        return pieces

    def _chunk(self, offset: int) -> tuple[int, Future[Data]]:
        """Where the chunk begins that has the byte at ``offset``, and its bytes to be."""
        with self._turn:
            self._reach(offset)
            number = bisect.bisect_right(self._starts, offset) - 1
            wanted = range(number - _BEHIND, number + _AHEAD + 1)
            self._ready = {one: ready for one, ready in self._ready.items() if one in wanted}
            for one in range(number, number + _AHEAD + 1):
                if one not in self._ready and self._starts[min(one, len(self._starts) - 1)] < self.length:
                    self._reach(self._starts[one])
                    self._ready[one] = self._pool.submit(self._load, one)
            return self._starts[number], self._ready[number]

    def _reach(self, offset: int) -> None:
        while self._starts[-1] <= offset:
            self._starts.append(self._starts[-1] + self._raw(len(self._starts) - 1))
