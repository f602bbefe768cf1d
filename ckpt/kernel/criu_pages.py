"""CRIU's images of memory, taken out of pipes while CRIU writes them.

CRIU opens ``pages-N.img`` in its images' directory to write it, N counting from 1, splices the pages of one task or of
one piece of shared memory into it, and closes it again; it never seeks in it and never looks at it a second time
(do_open_image in criu/image.c, write_pages_loc in criu/page-xfer.c). So a FIFO that has the name by then does as well,
and memory goes on without having been in a file. When the FIFO is not read any more, CRIU's dump fails and is undone
(EPIPE; SIGPIPE it ignores since 3.15, 7d79a58f4bd1). What CRIU opens beyond the FIFOs that there are is a file.

But to open a FIFO that nobody reads CRIU would wait for ever, with the group frozen, should ckpt be killed before. So
the FIFO has lost its name in the file system, and what has the name that CRIU wants is a link to our descriptor of it:
when ckpt has gone it leads nowhere, and CRIU fails.

The protocol of `criu dump --stream` would be the other way. It cannot be had with notifications, without which there is
nothing to hold a dump by: to a request CRIU never connects to a streamer (setup_images_and_workdir in
criu/cr-service.c).

Pages in a pipe are the group's own, not copies: they have to be taken before it goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

_log = logging.getLogger(__name__)

_ROOM = 1 << 20
"""Bytes that each FIFO holds: the limit for users (fs.pipe-max-size), below which CRIU and its reader wait often."""


class Sink(Protocol):
    """Where the bytes of one file go."""

    def take(self, fd: int) -> int:
        """Read once from ``fd``; how many bytes there were, 0 at the end."""

    def close(self) -> None:
        """There is no more."""


class PagePipes:
    """FIFOs in ``directory`` for so many images of memory; what comes is put into a sink of its own by ``sink``.

    A context manager: at its end no FIFO is left, and a CRIU that still writes into one fails.
    """

    def __init__(self, directory: Path, count: int, sink: Callable[[str], Sink]) -> None:
        self._directory = directory
        self._sink = sink
        self._epoll = select.epoll()
        self._names: dict[int, str] = {}
        self._sinks: dict[int, Sink] = {}
        try:
            for number in range(1, count + 1):
                self._make(f"pages-{number}.img")
        except OSError as error:
            # Not every file system has FIFOs, and there may be no more descriptors.
            _log.info("memory goes through files: %s", error.strerror)

    def _make(self, name: str) -> None:
        path = self._directory / f"{name}.pipe"
        os.mkfifo(path, 0o600)
        try:
            # Of such a descriptor it is told only when somebody has written to the FIFO, or has had it open.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            path.unlink()
        try:
            os.symlink(f"/proc/{os.getpid()}/fd/{fd}", self._directory / name)
        except OSError:
            os.close(fd)
            raise
        self._names[fd] = name
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _ROOM)
        self._epoll.register(fd, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """What is readable when ``take`` has something to do."""
        return self._epoll.fileno()

    def take(self) -> bool:
        """Pass on what has come, without waiting for more; whether something had."""
        found = self._epoll.poll(0)
        for fd, _ in found:
            if fd not in self._sinks:
                self._sinks[fd] = self._sink(self._names[fd])
            if not self._sinks[fd].take(fd):
                self._sinks.pop(fd).close()
                self._remove(fd)
        return bool(found)

    def finish(self) -> None:
        """Pass on the rest; nobody writes any more."""
        while self.take():
            pass
        self.close()

    def close(self) -> None:
        """Close the FIFOs, and remove their names. Again is nothing."""
        for fd in list(self._names):
            self._remove(fd)
        self._epoll.close()

    def _remove(self, fd: int) -> None:
        name = self._names.pop(fd)
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            (self._directory / name).unlink()
