"""Writes an image: records and CRIU's files in, one stream of frames out.

Data flows in one direction and in order. ``FileWriter`` gathers a file's bytes into chunks, and reads them to where
they stay until they are written; each chunk goes to a small pool of threads that compresses and digests it (both leave
the interpreter free); the frames come out of a queue in the order in which they went in. Into a file they are written
by one more thread, so that who brings memory does not wait for the file system; into anything else by the thread that
called, which a signal can interrupt where nobody reads. The queue is short and the memory that open files hold is
bounded and used again, so it does not grow with the group. Small files, of which CRIU writes one for each connection,
are worth no thread's while: they are sealed at once, and written many together. The stream needs nothing but ``write``:
a pipe will do. What a failure leaves is an image without an end, which every reader refuses.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import stat
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol

from ckpt import __version__
from ckpt.errors import CkptError, StorageError
from ckpt.image import frames, layout, schema, wire
from ckpt.image.codec import check_codec, compress
from ckpt.image.defect import Defect, Place
from ckpt.image.frames import Payload
from ckpt.image.layout import ChunkHead, CloseHead, FileHead, Head, Header, IndexHead, SectionHead, Summary
from ckpt.image.ledger import Ledger
from ckpt.records import dataclass

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_MOST_THREADS: Final = 4
_MAX_HOLDING: Final = 16  # open files that hold back bytes for their next chunks, each in a buffer of its own
_LAG: Final = 2  # chunks that may wait for the file system, besides those that are compressed
_SMALL: Final = 64 * layout.KIB  # bytes of a file that is written with others
_TOGETHER: Final = 256 * layout.KIB  # bytes of such files in one write

_Sealed = tuple[Head, bytes, Payload, bytes]  # head, the frame's bytes up to its payload, payload, digest


class Writable(Protocol):
    """What an image can be written to: any raw or buffered binary stream."""

    def write(self, data: bytes, /) -> int | None: ...


class Source(Protocol):
    """What a file's bytes can be taken from: any raw or buffered binary stream."""

    def read(self, size: int, /) -> bytes | None: ...


class Writer:
    """An image being written to ``out``; see the module. Not for several threads at once.

    ``codec`` is zstd, lz4 or none, ``level`` the codec's own (None: what suits a group that stands still). The header
    is written at once. Use it as a context manager: an image left before ``finish`` stays without an end. Errors of
    ``out`` become StorageError: code ``storage-full`` when there is no space, ``storage-closed`` when nobody reads the
    pipe any more, ``storage-write`` otherwise.
    """

    def __init__(
        self, out: Writable, codec: str = "zstd", level: int | None = None, *, label: str = "the image"
    ) -> None:
        self._codec = codec
        self._level = check_codec(codec, level)
        self._out = out
        self._place = Place(label)
        self._written = 0
        self._number = 0
        self._files = 0
        self._open: set[FileWriter] = set()
        self._holding: dict[FileWriter, None] = {}
        self._free: list[memoryview] = []
        self._queue: deque[_Pending] = deque()
        self._small: list[_Sealed] = []
        self._small_bytes = 0
        threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(threads, "ckpt-image")
        self._out_pool = ThreadPoolExecutor(1, "ckpt-image-out") if _is_file(out) else None
        self._in_flight = threads + 1 + (_LAG if self._out_pool else 0)
        self._failed = False
        self.header = Header(
            id=secrets.token_hex(16), created=time.time(), ckpt=__version__, digest=layout.DIGEST, codec=codec
        )
        raw = frames.seal_header(self.header)
        self._seed = layout.digest(self.header.digest, raw)
        self._ledger = Ledger(self.header, self._seed)
        self._write(raw)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(cancel=True)

    @property
    def written(self) -> int:
        """Bytes given to the stream so far."""
        return self._written

    def section(self, name: str, record: DataclassInstance | dict[str, object], *, optional: bool = False) -> None:
        """Write ``record`` (a dataclass, or a map of msgpack's types) as the section ``name``.

        ``optional``: a reader that does not know the section may pass over it. Raises ImageError for a name that is
        not allowed or is taken, and for a record beyond 16 MiB.
        """
        place = self._place.inside(f"section {name[:64]!r}")
        try:
            payload = wire.pack(record if isinstance(record, dict) else schema.encode(record))
        except OverflowError as error:
            raise place.error(Defect.LIMIT, "an integer beyond 64 bits") from error
        if len(payload) > layout.MAX_SECTION:
            raise place.error(Defect.LIMIT, f"a section of {len(payload)} bytes, at most {layout.MAX_SECTION}")
        self._put(SectionHead(name, optional), payload, place)

    def open_file(self, name: str) -> FileWriter:
        """Begin the file ``name``. Up to 256 may be open at once; each must be closed before ``finish``."""
        self._put(FileHead(self._files, name), b"", self._place.inside(f"file {name[:64]!r}"))
        file = FileWriter(self, self._files, name)
        self._files += 1
        self._open.add(file)
        return file

    def add_file(self, name: str, source: Source) -> None:
        """Write all of ``source`` as the file ``name``."""
        begin = _read(source)
        rest = _read(source) if len(begin) < _SMALL else b""
        if len(begin) < _SMALL and not rest:
            self._add_small(name, begin)
            return
        with self.open_file(name) as file:
            file.write(begin)
            file.write(rest)
            while data := _read(source):
                file.write(data)

    def finish(self) -> Summary:
        """Write what is still to come, the index and the trailer; what the image came to. The stream stays open."""
        self._queue_small()
        self._drain(0)
        offset = self._written
        payload = wire.pack(schema.encode(self._ledger.index()))
        place = self._place.inside("index")
        if len(payload) > IndexHead.LIMIT:
            raise place.error(Defect.LIMIT, f"an index of {len(payload)} bytes, at most {IndexHead.LIMIT}")
        self._put(IndexHead(), payload, place)
        self._drain(0)
        trailer = self._ledger.trailer(offset)
        self._write(frames.seal_trailer(trailer))
        self._end(cancel=False)
        return self._ledger.summary(trailer, self._written)

    def put_chunk(self, file: int, raw: memoryview, buffer: memoryview) -> None:
        """Queue ``raw``, a part of ``buffer`` that nobody changes any more, as the next chunk (for FileWriter)."""
        self._queue_small()
        self._admit(ChunkHead(file, len(raw), self._codec), 0, self._place)
        number, codec, level = self._number, self._codec, self._level

        def seal() -> list[_Sealed]:
            used, stored = compress(codec, level, raw)
            head = ChunkHead(file, len(raw), used)
            sealed, digest = frames.seal(self._seed, number, head, stored)
            return [(head, sealed, stored, digest)]

        self._queue_frames(self._pool.submit(seal), buffer)

    def put_close(self, file: FileWriter, head: CloseHead) -> None:
        """Queue the end of ``file`` (for FileWriter)."""
        self._put(head, b"", self._place)
        self._open.remove(file)

    def take_buffer(self, file: FileWriter) -> memoryview:
        """Room for a chunk of ``file``, which holds it until ``put_chunk``; when too many do, one gives up its own."""
        if len(self._holding) >= _MAX_HOLDING:
            max(self._holding, key=lambda file: file.held).flush()
        self._holding[file] = None
        # Memory of the kernel's, not of the interpreter's, which would have it cleared anew for each chunk.
        return self._free.pop() if self._free else memoryview(mmap.mmap(-1, layout.CHUNK))

    def give_up(self, file: FileWriter) -> None:
        """``file`` holds no buffer any more (for FileWriter)."""
        del self._holding[file]

    def spare(self, buffer: memoryview) -> None:
        """``buffer`` was not needed (for FileWriter)."""
        self._free.append(buffer)

    def _add_small(self, name: str, data: bytes) -> None:
        number = self._files
        self._seal_small(FileHead(number, name), b"", self._place.inside(f"file {name[:64]!r}"))
        self._files += 1
        if data:
            codec, stored = compress(self._codec, self._level, memoryview(data))
            self._seal_small(ChunkHead(number, len(data), codec), stored, self._place)
        self._seal_small(CloseHead(number, len(data), 1 if data else 0), b"", self._place)
        if self._small_bytes >= _TOGETHER:
            self._queue_small()

    def _seal_small(self, head: Head, payload: Payload, place: Place) -> None:
        frame = self._sealed(head, payload, place)
        self._small.append(frame)
        self._small_bytes += len(frame[1]) + len(payload)

    def _queue_small(self) -> None:
        """Have the small files written that are not yet; whatever comes after them calls this first."""
        if self._small:
            small, self._small, self._small_bytes = self._small, [], 0
            self._queue_frames(_done(small))

    def _put(self, head: Head, payload: bytes, place: Place) -> None:
        self._queue_small()
        self._queue_frames(_done([self._sealed(head, payload, place)]))

    def _sealed(self, head: Head, payload: Payload, place: Place) -> _Sealed:
        self._admit(head, len(payload), place)
        sealed, digest = frames.seal(self._seed, self._number, head, payload)
        return head, sealed, payload, digest

    def _admit(self, head: Head, length: int, place: Place) -> None:
        self._ledger.admit(head, length, place)
        self._number += 1

    def _queue_frames(self, sealed: Future[list[_Sealed]], buffer: memoryview | None = None) -> None:
        if self._out_pool is None:
            self._queue.append(_Pending(sealed, lambda: self._finish_frames(sealed, buffer)))
        else:
            writing = self._out_pool.submit(self._finish_frames, sealed, buffer)
            self._queue.append(_Pending(writing, writing.result))
        self._drain(self._in_flight)

    def _drain(self, leave: int) -> None:
        while len(self._queue) > leave or (self._queue and self._queue[0].awaited.done()):
            self._queue.popleft().finish()

    def _finish_frames(self, sealed: Future[list[_Sealed]], buffer: memoryview | None) -> None:
        """Write frames when they are ready; those after one that failed are not."""
        if self._failed:
            return
        try:
            ready = sealed.result()
            offset = self._written
            if len(ready) == 1:
                # Its payload may be large.
                for piece in ready[0][1:3]:
                    self._write(piece)
            else:
                self._write(b"".join(piece for frame in ready for piece in frame[1:3]))
            for head, begin, payload, digest in ready:
                self._ledger.record(head, offset, len(payload), digest)
                offset += len(begin) + len(payload)
        except BaseException:
            self._failed = True
            raise
        if buffer is not None:
            self._free.append(buffer)

    def _end(self, *, cancel: bool) -> None:
        for pool in (self._out_pool, self._pool):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=cancel)

    def _write(self, data: Payload) -> None:
        left = memoryview(data)
        while left:
            try:
                count = self._out.write(left)  # type: ignore[arg-type]  # every stream takes any buffer
            except OSError as error:
                raise storage_error(error, f"{self._place.image} could not be written", self._written) from error
            if not count:
                raise StorageError(
                    f"{self._place.image} could not be written",
                    code="storage-write",
                    details="the stream does not block",
                )
            left = left[count:]
            self._written += count


@dataclass(frozen=True, slots=True)
class _Pending:
    """A frame on its way: ``finish`` sees to it that it is written, at once when what is ``awaited`` is done."""

    awaited: Future[list[_Sealed]] | Future[None]
    finish: Callable[[], None]


class FileWriter:
    """A file inside an image being written. Use it as a context manager, or call ``close``."""

    def __init__(self, writer: Writer, number: int, name: str) -> None:
        self.name = name
        self._writer = writer
        self._number = number
        self._buffer: memoryview | None = None
        self._filled = 0
        self._length = 0
        self._chunks = 0
        self._closed = False

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    @property
    def held(self) -> int:
        """Bytes held back for the next chunk."""
        return self._filled

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append ``data``, which may be changed afterwards; how many bytes it has."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            room = self._room()
            count = min(len(room), len(left))
            room[:count] = left[:count]
            left = left[count:]
            self._fill(count)
        return size

    def take(self, fd: int) -> int:
        """Append what one read from ``fd`` gives; how many bytes, 0 at its end."""
        try:
            count = os.readv(fd, [self._room()])
        except OSError as error:
            raise _read_error(error) from error
        self._fill(count)
        return count

    def _room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._closed:
            raise ValueError("write to a closed file")
        if self._buffer is None:
            self._buffer = self._writer.take_buffer(self)
        return self._buffer[self._filled :]

    def _fill(self, count: int) -> None:
        self._filled += count
        if self._filled == layout.CHUNK:
            self.flush()

    def flush(self) -> None:
        """Make a chunk of what is held back."""
        if self._buffer is None:
            return
        buffer, raw = self._buffer, self._buffer[: self._filled]
        self._buffer, self._filled = None, 0
        self._writer.give_up(self)
        if raw:
            self._length += len(raw)
            self._chunks += 1
            self._writer.put_chunk(self._number, raw, buffer)
        else:
            self._writer.spare(buffer)

    def close(self) -> None:
        """End the file. Again is nothing."""
        if not self._closed:
            self.flush()
            self._closed = True
            self._writer.put_close(self, CloseHead(self._number, self._length, self._chunks))


def _done(sealed: list[_Sealed]) -> Future[list[_Sealed]]:
    done: Future[list[_Sealed]] = Future()
    done.set_result(sealed)
    return done


def _is_file(out: Writable) -> bool:
    """Whether nobody has to read what is written, that it goes on."""
    try:
        return stat.S_ISREG(os.fstat(out.fileno()).st_mode)  # type: ignore[attr-defined]  # few streams have it
    except (AttributeError, OSError, ValueError):
        return False


def _read(source: Source) -> bytes:
    try:
        data = source.read(layout.CHUNK)
    except OSError as error:
        raise _read_error(error) from error
    if data is None:
        raise StorageError("reading a CRIU image failed", code="storage-read", details="the stream does not block")
    return data


def _read_error(error: OSError) -> StorageError:
    return StorageError("reading a CRIU image failed", code="storage-read", details=error.strerror)


_FULL: Final = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file is too large",
}


def storage_error(error: OSError, brief: str, written: int) -> CkptError:
    """What an OSError while writing means; ``written`` bytes were written before."""
    if error.errno in _FULL:
        details = f"{_FULL[error.errno]} after {written} bytes, and more was to come"
        return StorageError(brief, code="storage-full", details=details, hint="make room, or write it elsewhere")
    if error.errno == errno.EPIPE:
        return StorageError(brief, code="storage-closed", details=f"nobody reads the pipe after {written} bytes")
    return StorageError(brief, code="storage-write", details=error.strerror)
