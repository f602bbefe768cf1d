"""CRIU's files of an image, where CRIU can read them.

The small ones are unpacked, because they may be amended: into memory, or beside the image if that can be written. Those
of memory stay where they are: CRIU reads them out of the image itself, by way of `fuse`, each piece checked before it
is handed out. So memory that is restored is read once and never needs room beside itself. Where the image comes out of
a pipe, or the kernel has no FUSE, all are unpacked, and the whole image is checked first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ckpt import registry
from ckpt.errors import CkptError, StorageError
from ckpt.image import Reader
from ckpt.image.lookup import Lookup
from ckpt.incoming import ImageSource
from ckpt.kernel import criu, fuse, remains, tmpfs
from ckpt.kernel.syscalls import keep_freed_memory
from ckpt.places import IMAGES

_log = logging.getLogger(__name__)

_NAME_BYTES = 64

Read = Callable[[int, int], None]
"""Called with how many bytes were read of how many, by one thread at a time."""


def serves(source: ImageSource) -> bool:
    """Whether the memory in ``source`` can be read where it lies."""
    return isinstance(source, Reader) and os.access("/dev/fuse", os.R_OK | os.W_OK)


class Unpacking:
    """The files of the image ``source`` for a restore, in ``directory``; they are there until ``passing`` ends.

    ``image`` is its path, or what messages call it. ``memory`` is what is known of the bytes of memory in it, and
    ``carried`` of those of other files.
    """

    def __init__(
        self,
        source: ImageSource,
        image: Path,
        operation: registry.Operation,
        passing: contextlib.ExitStack,
        *,
        memory: int | None,
        carried: int,
        read: Read,
    ) -> None:
        self._image = image
        self._operation = operation
        self._passing = passing
        self._served: dict[str, _Reported] = {}
        keep_freed_memory()
        if isinstance(source, Reader) and memory and (served := _directory()) is not None:
            self._mount = passing.enter_context(served)
            self.directory = self._made(carried)
            self._served = _lookups(source, memory, passing, read)
            source.extract_small(self.directory, self._served)
        else:
            self.directory = self._made(None if memory is None else memory + carried)
            source.extract(self.directory, progress=read)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[int, int]]:
        """Descriptors of the directory that CRIU reads from, and of the one that it may write its log to.

        Where it failed because of what it was to read, that is raised instead.
        """
        with criu.images_directory(self.directory) as work:
            if not self._served:
                yield work, work
                return
            with self._mount:
                self._mount.serve(self._served, work)
                try:
                    yield self._mount.mount, work
                except criu.CriuError as error:
                    if isinstance(self._mount.failure, CkptError):
                        raise self._mount.failure from error
                    raise

    def _made(self, size: int | None) -> Path:
        return self._in_memory(size) or self._on_disk(size)

    def _in_memory(self, size: int | None) -> Path | None:
        """A directory that touches no disk; None where there is no room, or nobody knows how much it takes."""
        images = None if size is None else tmpfs.in_memory(tmpfs.room_for(size), self._passing)
        if images is None:
            return None
        # No path leads there. By the mark CRIU is found, should ckpt be killed and CRIU not end by itself.
        mark = registry.state_dir() / f".{self._operation.id}.criu-{secrets.token_hex(4)}"
        self._operation.note(directories=[str(mark)])
        (images / remains.mark(mark)).touch()
        return images

    def _on_disk(self, size: int | None) -> Path:
        failure: OSError | None = None
        for place in self._places(size):
            directory = place / f".{self._image.name[-_NAME_BYTES:]}.criu-{secrets.token_hex(4)}"
            self._operation.note(directories=[str(directory)])
            try:
                directory.mkdir(mode=0o700)
            except OSError as error:
                failure = error
                continue
            self._passing.callback(shutil.rmtree, directory, ignore_errors=True)
            return directory
        raise StorageError("there is no directory to unpack CRIU's files in", code="storage-write") from failure

    def _places(self, size: int | None) -> Iterator[Path]:
        if self._image.is_absolute():
            yield self._image.parent
        elif _has_room(passing := registry.directory(""), size):
            # It need not touch a disk.
            yield passing
        IMAGES.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield IMAGES
        yield Path(tempfile.gettempdir())


class _Reported:
    """A file that is looked up, and told of."""

    def __init__(self, file: Lookup, done: Callable[[int], None]) -> None:
        self.length = file.length
        self._file = file
        self._done = done

    def read(self, offset: int, size: int) -> Sequence[memoryview]:
        pieces = self._file.read(offset, size)
        self._done(sum(len(piece) for piece in pieces))
        return pieces


def _lookups(source: Reader, memory: int, passing: contextlib.ExitStack, read: Read) -> dict[str, _Reported]:
    pool = passing.enter_context(ThreadPoolExecutor(len(os.sched_getaffinity(0)), "ckpt-image"))
    turn = threading.Lock()
    so_far = 0

    def done(size: int) -> None:
        nonlocal so_far
        with turn:
            so_far += size
            read(min(so_far, memory), memory)

    return {name: _Reported(source.lookup(name, pool), done) for name in source.files if name.startswith("pages-")}


def _directory() -> fuse.Directory | None:
    try:
        return fuse.Directory()
    except OSError as error:
        _log.info("memory is unpacked first: %s", error.strerror)
        return None


def _has_room(directory: Path, size: int | None) -> bool:
    """Whether CRIU's files fit there well, the more so as it may be memory that they lie in."""
    found = os.statvfs(directory)
    return size is not None and found.f_bavail * found.f_frsize > tmpfs.room_for(size)
