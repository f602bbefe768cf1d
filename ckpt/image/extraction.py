"""Puts the files of an image into a directory, as CRIU wants them.

The directory is held open and every file is made in it by a plain name: new, never through a link, mode 0600. Nothing
but the name and the bytes comes from the image. What fails half-way removes the files that it made.

Large pieces are written by a thread, while the image is read on. One is enough: the kernel lets only one at a time
write to a file, and CRIU's files of memory come one after the other.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from ckpt.errors import CkptError, ExistsError, NotFoundError, PermissionDeniedError
from ckpt.image.stream import Event, FileClosed, FileData, FileOpened
from ckpt.image.writer import storage_error

_WORTH_A_THREAD: Final = 64 * 1024  # bytes of a piece
_MOST_WAITING: Final = 3  # pieces


def extract(events: Iterable[Event], directory: int | Path, done: Callable[[], None] = lambda: None) -> dict[str, int]:
    """Make the files of ``events`` in ``directory`` (a path, or a descriptor that stays open); their lengths by name.

    ``done`` is called after each chunk. The files are whole and checked only once this has returned. Raises
    NotFoundError and PermissionDeniedError for the directory, ExistsError(code="file-exists") for a file that is
    there already, StorageError (``storage-full``, ``storage-write``), and whatever ``events`` raises.
    """
    lengths: dict[str, int] = {}
    with ExitStack() as opened, ExitStack() as undo:
        fd = directory if isinstance(directory, int) else _open_directory(directory, opened)
        files: dict[int, int] = {}
        opened.callback(_close_all, files)
        writing = opened.enter_context(_Writing())
        for event in events:
            match event:
                case FileOpened(file, name):
                    files[file] = _create(name, fd)
                    undo.callback(_remove, name, fd)
                    lengths[name] = 0
                case FileData(file, name, data):
                    writing.put(files[file], data, lengths[name], name)
                    lengths[name] += len(data)
                    done()
                case FileClosed(file, _, _):
                    writing.finish()
                    os.close(files.pop(file))
        undo.pop_all()
    return lengths


def _open_directory(directory: Path, opened: ExitStack) -> int:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _failure(error, str(directory)) from error
    opened.callback(os.close, fd)
    return fd


def _create(name: str, directory: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, 0o600, dir_fd=directory)
    except OSError as error:
        raise _failure(error, name) from error


class _Writing:
    """Writes pieces of files where they belong; what one raises is raised by a later call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "ckpt-extract")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def put(self, fd: int, data: bytes | bytearray, offset: int, name: str) -> None:
        """Have ``data`` written to ``fd`` at ``offset``."""
        if len(data) < _WORTH_A_THREAD:
            _write(fd, data, offset, name)
            return
        self._waiting.append(self._pool.submit(_write, fd, data, offset, name))
        while len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Return when all is written."""
        while self._waiting:
            self._waiting.popleft().result()


def _write(fd: int, data: bytes | bytearray, offset: int, name: str) -> None:
    left = memoryview(data)
    while left:
        try:
            count = os.pwrite(fd, left, offset)
        except OSError as error:
            raise storage_error(error, f"{name} could not be extracted", os.fstat(fd).st_size) from error
        left, offset = left[count:], offset + count


def _failure(error: OSError, name: str) -> CkptError:
    if isinstance(error, FileExistsError):
        return ExistsError(f"{name} exists", code="file-exists", hint="extract into an empty directory")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(f"there is no directory {name}", code="directory-missing")
    if isinstance(error, PermissionError):
        brief = f"{name} could not be extracted"
        return PermissionDeniedError(brief, code="directory-permission", details=error.strerror)
    return storage_error(error, f"{name} could not be extracted", 0)


def _close_all(files: dict[int, int]) -> None:
    for fd in files.values():
        os.close(fd)


def _remove(name: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
