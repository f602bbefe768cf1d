"""The image of a dump, as it is written while CRIU is at work.

The records go first, since who restores from a pipe needs them first: they are read when the group has been frozen and
before CRIU looks at it. Then CRIU dumps, and the memory comes through pipes (`kernel.criu_pages`) and goes on into the
image, compressed and digested by threads, so that it is on no disk but in the image. What else CRIU has written lies in
its directory, and follows when it is done; the image is whole then, and gets its name.

Of a group that is to run on nothing is written before it does so: it would stand still for longer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from ckpt import carrying, sections
from ckpt.carrying import Carried
from ckpt.handover import Handover, Progress
from ckpt.image import FileWriter, Summary, Writer
from ckpt.kernel.criu_pages import PagePipes
from ckpt.kernel.syscalls import keep_freed_memory
from ckpt.model.checkpoint import Checkpoint

_PIPES = 200
"""Images of memory that come through pipes; an image may have 256 files open."""

_BESIDE = 16
"""Pieces of memory that are no task's own: shared between tasks, or of System V."""


class Writing:
    """The image at ``path`` under way; a context manager, that takes back what did not become whole.

    ``images`` is the directory that CRIU writes in.
    """

    def __init__(
        self, handover: Handover, path: Path, images: Path, *, force: bool, codec: str, progress: Progress
    ) -> None:
        self._handover = handover
        self._path = path
        self._images = images
        self._force = force
        self._codec = codec
        self._progress = progress
        self._stack = contextlib.ExitStack()
        self._pipes: PagePipes | None = None
        self._pages = self._done = 0
        self.summary: Summary | None = None
        """Of an image that has its name, or all of which is where it was to go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            error = InterruptedError("the image is not whole")
            with contextlib.suppress(InterruptedError):
                self._stack.__exit__(type(error), error, None)
        else:
            self._stack.__exit__(kind, error, traceback)

    def begin(self, checkpoint: Checkpoint) -> None:
        """Write the records."""
        keep_freed_memory()
        self._pages = sum(process.memory.private for process in checkpoint.processes)
        out = self._stack.enter_context(self._handover.image(self._path, force=self._force, pages=self._pages))
        self._writer = self._stack.enter_context(Writer(out, self._codec, label=self._handover.label(self._path)))
        sections.write(self._writer, checkpoint)

    def await_pages(self, processes: int) -> None:
        """From now on CRIU dumps the memory of so many processes."""
        pipes = PagePipes(self._images, min(processes + _BESIDE, _PIPES), self._open)
        self._pipes = self._stack.enter_context(pipes)

    def fileno(self) -> int:
        """What is readable when ``take`` has something to do; -1 as long as no memory can come."""
        return self._pipes.fileno() if self._pipes else -1

    def take(self) -> None:
        """Write memory that has come."""
        if self._pipes is not None:
            self._pipes.take()

    def abandon(self) -> None:
        """Take no more memory: CRIU fails, should it have more."""
        if self._pipes is not None:
            self._pipes.close()
            self._pipes = None

    def finish(self, carried: Carried, still: Callable[[], None] = lambda: None) -> Summary:
        """Write the rest; ``still`` raises, before the image gets its name, when the group is not what it was."""
        if self._pipes is not None:
            self._pipes.finish()
            self._pipes = None
        with os.scandir(self._images) as entries:
            files = sorted((entry.name, entry.path, entry.stat().st_size) for entry in entries)
        total = self._done + sum(size for *_, size in files)
        for name, path, size in files:
            with open(path, "rb", buffering=0) as source:
                self._writer.add_file(name, source)
            self._done += size
            self._progress("writing", self._done, total)
        carrying.write(self._writer, carried)
        summary = self._writer.finish()
        still()
        self._stack.close()
        self.summary = summary
        return summary

    def _open(self, name: str) -> _Counted:
        return _Counted(self._writer.open_file(name), self._count)

    def _count(self, more: int) -> None:
        self._done += more
        self._progress("writing", self._done, max(self._pages, self._done))


class _Counted:
    """A file of an image whose bytes are counted as they come."""

    def __init__(self, file: FileWriter, count: Callable[[int], None]) -> None:
        self._file = file
        self._count = count

    def take(self, fd: int) -> int:
        """As the file's own."""
        taken = self._file.take(fd)
        self._count(taken)
        return taken

    def close(self) -> None:
        """As the file's own."""
        self._file.close()
