"""Writes an image: records and CRIU's files in, one stream of frames out.

Data flows in one direction and in order. ``FileWriter.write`` gathers a file's bytes into chunks; each chunk goes to
a small pool of threads that compresses and digests it (both leave the interpreter free); the frames come out of a
queue in the order in which they went in, and are written by the thread that called. The queue is short and the bytes
that open files hold back are bounded, so memory does not grow with the group. The stream needs nothing but ``write``:
a pipe will do. What a failure leaves is an image without an end, which every reader refuses.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol

from ckpt import __version__
from ckpt.errors import CkptError, StorageError
from ckpt.image import frames, layout, schema, wire
from ckpt.image.codec import check_codec, compress
from ckpt.image.defect import Defect, Place
from ckpt.image.layout import ChunkHead, CloseHead, FileHead, Head, Header, IndexHead, SectionHead, Summary
from ckpt.image.ledger import Ledger

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_MOST_THREADS: Final = 4
_MAX_HELD: Final = 16 * layout.MIB  # bytes that all open files together hold back for their next chunks

_Sealed = tuple[Head, bytes, bytes | bytearray, bytes]  # head, the frame's bytes up to its payload, payload, digest


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
        self._held = 0
        self._queue: deque[Future[_Sealed]] = deque()
        threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._in_flight = threads + 1
        self._pool = ThreadPoolExecutor(threads, "ckpt-image")
        self.scratch = memoryview(bytearray(layout.CHUNK))
        self.header = Header(
            id=secrets.token_hex(16), created=time.time(), ckpt=__version__, digest=layout.DIGEST, codec=codec
        )
        raw = frames.seal_header(self.header)
        self._seed = layout.digest(raw)
        self._ledger = Ledger(self.header, self._seed)
        self._write(raw)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

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
        with self.open_file(name) as file:
            while data := _read(source):
                file.write(data)

    def finish(self) -> Summary:
        """Write what is still to come, the index and the trailer; what the image came to. The stream stays open."""
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
        self._pool.shutdown()
        return self._ledger.summary(trailer, self._written)

    def put_chunk(self, file: int, raw: bytes | bytearray) -> None:
        """Queue ``raw``, which nobody changes any more, as the next chunk of the file ``file`` (for FileWriter)."""
        self._admit(ChunkHead(file, len(raw), self._codec), 0, self._place)
        number, codec, level = self._number, self._codec, self._level

        def seal() -> _Sealed:
            used, stored = compress(codec, level, raw)
            head = ChunkHead(file, len(raw), used)
            sealed, digest = frames.seal(self._seed, number, head, stored)
            return head, sealed, stored, digest

        self._queue.append(self._pool.submit(seal))
        self._drain(self._in_flight)

    def put_close(self, file: FileWriter, head: CloseHead) -> None:
        """Queue the end of ``file`` (for FileWriter)."""
        self._put(head, b"", self._place)
        self._open.remove(file)

    def hold(self, more: int) -> None:
        """The open files hold back ``more`` bytes (fewer, when negative); when it gets too much, the largest goes."""
        self._held += more
        if self._held > _MAX_HELD:
            max(self._open, key=lambda file: file.held).flush()

    def _put(self, head: Head, payload: bytes, place: Place) -> None:
        self._admit(head, len(payload), place)
        sealed, digest = frames.seal(self._seed, self._number, head, payload)
        done: Future[_Sealed] = Future()
        done.set_result((head, sealed, payload, digest))
        self._queue.append(done)
        self._drain(self._in_flight)

    def _admit(self, head: Head, length: int, place: Place) -> None:
        self._ledger.admit(head, length, place)
        self._number += 1

    def _drain(self, leave: int) -> None:
        while len(self._queue) > leave or (self._queue and self._queue[0].done()):
            head, sealed, payload, digest = self._queue.popleft().result()
            offset = self._written
            self._write(sealed)
            self._write(payload)
            self._ledger.record(head, offset, len(payload), digest)

    def _write(self, data: bytes | bytearray) -> None:
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


class FileWriter:
    """A file inside an image being written. Use it as a context manager, or call ``close``."""

    def __init__(self, writer: Writer, number: int, name: str) -> None:
        self.name = name
        self._writer = writer
        self._number = number
        self._buffer = bytearray()
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
        return len(self._buffer)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append ``data``, which may be changed afterwards; how many bytes it has."""
        if self._closed:
            raise ValueError("write to a closed file")
        view = memoryview(data).cast("B")
        for start in range(0, len(view), layout.CHUNK):
            self._append(view[start : start + layout.CHUNK])
        return len(view)

    def take(self, fd: int) -> int:
        """Append what one read from ``fd`` gives; how many bytes, 0 at its end."""
        try:
            count = os.readv(fd, [self._writer.scratch])
        except OSError as error:
            raise _read_error(error) from error
        return self.write(self._writer.scratch[:count])

    def _append(self, view: memoryview) -> None:
        room = layout.CHUNK - len(self._buffer)
        for part in (view[:room], view[room:]):
            self._buffer += part
            self._writer.hold(len(part))
            if len(self._buffer) == layout.CHUNK:
                self.flush()

    def flush(self) -> None:
        """Make a chunk of what is held back."""
        if self._buffer:
            raw, self._buffer = self._buffer, bytearray()  # given away, not copied
            self._length += len(raw)
            self._chunks += 1
            self._writer.hold(-len(raw))
            self._writer.put_chunk(self._number, raw)

    def close(self) -> None:
        """End the file. Again is nothing."""
        if not self._closed:
            self.flush()
            self._closed = True
            self._writer.put_close(self, CloseHead(self._number, self._length, self._chunks))


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
