"""An image that comes out of a pipe, where a restore expects one that lies in a file.

A restore needs the records first and all of CRIU's files after them, which is the image's own order: so it can be
read once, from first byte to last, and be unpacked as it comes. Nothing of it is stored but what CRIU reads, unless it
is to be kept. That it was whole is known when it has been unpacked, before anything is made of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Container
from pathlib import Path
from typing import Protocol, Self, TypeVar

from ckpt.errors import CkptError
from ckpt.handover import write_all
from ckpt.image import StreamReader, Summary, created, extract
from ckpt.image.frames import Readable
from ckpt.image.layout import Header
from ckpt.image.writer import Writable

_T = TypeVar("_T")


class ImageSource(Protocol):
    """What a restore asks of an image, be it in a file or on its way."""

    @property
    def header(self) -> Header:
        """The image's header."""

    @property
    def sections(self) -> Container[str]:
        """The names of its sections."""

    def section(self, name: str, record: type[_T]) -> _T:
        """The section ``name`` as a ``record``."""

    def extract(self, directory: Path, progress: Callable[[int, int], None]) -> Summary:
        """Make every file in ``directory``, checking the whole image."""


class StreamedImage:
    """The image that ``stream`` brings; its records are read at once. ``keep`` is a file that it shall lie in, too.

    ``size`` is how long it will be, for the progress; 0 where nobody knows.
    """

    def __init__(
        self, stream: Readable, label: str, *, known: Collection[str], size: int = 0, keep: Path | None = None
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._size = size
        source = stream if keep is None else _Copied(stream, self._stack.enter_context(created(keep)))
        try:
            self._reader = StreamReader(source, label=label, known=known)
        except BaseException:
            self._give_up()
            raise

    @property
    def header(self) -> Header:
        """As it was read."""
        return self._reader.header

    @property
    def sections(self) -> Container[str]:
        """The names of the sections before the files, which are all that this ckpt writes."""
        return self._reader.sections.names

    def section(self, name: str, record: type[_T]) -> _T:
        """The section ``name`` as a ``record``."""
        return self._reader.section(name, record)

    def extract(self, directory: Path, progress: Callable[[int, int], None]) -> Summary:
        """Unpack it as it comes; on return it was whole, and the copy to keep has its name."""

        def report() -> None:
            progress(self._reader.position, max(self._size, self._reader.position))

        extract(self._reader.events(), directory, report)
        report()
        self._stack.close()
        assert self._reader.summary is not None  # the events have ended
        return self._reader.summary

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_up()

    def _give_up(self) -> None:
        """Remove a copy that is not whole. Again, or when it is, is nothing."""
        reason = InterruptedError("it was not read to its end")
        with contextlib.suppress(InterruptedError, CkptError):
            self._stack.__exit__(InterruptedError, reason, None)


class _Copied:
    """A stream whose bytes are written to ``out`` as they are read."""

    def __init__(self, stream: Readable, out: Writable) -> None:
        self._stream = stream
        self._out = out

    def readinto(self, buffer: memoryview, /) -> int | None:
        """As the stream's own."""
        count = self._stream.readinto(buffer)
        write_all(self._out, buffer[: count or 0])
        return count
