"""Who takes a group over: the moments of a dump and of a restore at which another side has a say.

A dump gives its image away through a `Handover`, asks it to agree, tells it of the commit, and tells it when nothing of
the group is left here; a restore that is only a half of something has an `Arrival`, which holds the group where it
stands verified, and lets it go. The two classes here are those of a dump into a file and of a restore from one, in
which nobody else is asked anything; a stream and a migration have their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from ckpt.image import created
from ckpt.image.writer import Writable, storage_error
from ckpt.model.process import Process

Progress = Callable[[str, int, int | None], None]
"""Called with a word for the stage, and how much of how much is done, in bytes."""

Destination = Callable[[], AbstractContextManager[Writable]]
"""Opens where an image goes; what was written is whole and safe when the block has ended without an error."""


def write_all(out: Writable, data: bytes | memoryview) -> None:
    """All of ``data`` to ``out``; StorageError where that fails."""
    left = memoryview(data)
    while left:
        try:
            left = left[out.write(left) or 0 :]  # type: ignore[arg-type]  # a file takes any buffer
        except OSError as error:
            raise storage_error(error, "the image could not be written", len(data) - len(left)) from error


class Handover:
    """A dump into a file: the image is the group, once it has its name."""

    @contextlib.contextmanager
    def image(self, path: Path, *, force: bool, pages: int) -> Iterator[Writable]:
        """Where the image is written, with about ``pages`` bytes of memory; it is safe at the end of the block."""
        with created(path, force=force) as out:
            yield out

    def label(self, path: Path) -> str:
        """What messages call the image."""
        return str(path)

    def frozen(self) -> None:
        """The group stands still. Raises when that is not wanted any more."""

    def agree(self) -> None:
        """The image is whole. Returns when the other side has it and waits for our word; what it raises undoes all."""

    def commit(self, processes: tuple[Process, ...]) -> None:
        """Write down that the group is not ours any more; on return it is so. What it raises undoes all."""

    def away(self) -> None:
        """Nothing of the group is left here, neither task nor address."""

    def discard(self, path: Path) -> None:
        """The dump failed after all: the image is of a group that runs on."""
        path.unlink(missing_ok=True)


class StreamHandover(Handover):
    """A dump to a ``destination`` that is no file of ours, for instance standard output."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    @contextlib.contextmanager
    def image(self, path: Path, *, force: bool, pages: int) -> Iterator[Writable]:
        """What ``path`` would name is not used."""
        with self._destination() as out:
            yield out

    def label(self, path: Path) -> str:
        """It has no name."""
        return "the image"

    def discard(self, path: Path) -> None:
        """It is not ours to take back."""


class Arrival:
    """A restore from an image that waits: nobody else has the group."""

    moves = False
    """Whether the group is still somewhere else: then it must not even answer for its addresses until it may run here,
    and `hold` waits for another's word."""

    def hold(self, pid: int, start_time: int) -> None:
        """The group is whole below ``pid`` and nothing of it runs. Returns when it may; what it raises undoes all."""

    def running(self) -> None:
        """It is about to run, and nothing can keep it from that any more. Never raises."""

    def released(self) -> None:
        """It runs and is reachable. Never raises."""
