"""Reads an image that lies in a file, in any order.

Opening takes the header, the trailer and the index that it points to, and nothing else, however large the image is.
Sections and files are then read where the index says; each frame is checked against its digest, and against what the
index says of it, before a byte of it is handed out. What has to see everything (``verify``, ``extract``) goes through
the image from first to last instead, as ``StreamReader`` does for a pipe. Where the end of an image is not what it
should be, the frames are walked to find out what is wrong and where.
"""

from __future__ import annotations

import io
import itertools
import os
import stat
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from ckpt.errors import CkptError, ImageError, NotFoundError, PermissionDeniedError, StorageError
from ckpt.image import layout, schema
from ckpt.image.codec import decompress
from ckpt.image.defect import Defect, Place
from ckpt.image.extraction import extract
from ckpt.image.frames import Frame, FrameReader, Source, Trailer, describe, parse_trailer
from ckpt.image.layout import ChunkHead, FileEntry, Index, IndexHead, SectionHead, Summary
from ckpt.image.ledger import check_file_name, check_section_name, unpack_offsets
from ckpt.image.lookup import Lookup
from ckpt.image.stream import Event, FileClosed, FileData, FileOpened, Sections, StreamReader, decode_map
from ckpt.records import dataclass

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_T = TypeVar("_T")

Progress = Callable[[int, int], None]
"""Called with the bytes of the image that were read and their total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """A file in an image: ``length`` bytes, of which the image holds ``stored``, in ``chunks`` chunks."""

    name: str
    length: int
    stored: int
    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionInfo:
    """A section in an image: ``length`` bytes of msgpack."""

    name: str
    optional: bool
    length: int


class Reader:
    """The image at ``path``; a context manager, or ``close`` it. Its methods may be used by several threads.

    ``known`` are the sections that this ckpt understands: an image with another that is not optional is refused; None
    takes any. Raises NotFoundError, PermissionDeniedError, StorageError, and ImageError for every defect of the parts
    read so far.
    """

    def __init__(self, path: str | os.PathLike[str], *, known: Collection[str] | None = None) -> None:
        self.path = Path(path)
        self.place = Place(str(path))
        self._fd = _open(self.path, self.place)
        try:
            self.size = os.fstat(self._fd).st_size
            self._frames, self.header = FrameReader.at_start(Source(At(self._fd)), self.place)
            self._index = self._read_index()
            self._sections = {entry.name: entry for entry in self._index.sections}
            self._files = {entry.name: (number, entry) for number, entry in enumerate(self._index.files)}
            check = Sections(self.place, known)
            for entry in self._index.sections:
                check.refuse_unknown(entry.name, entry.optional)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the image. Again is nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def sections(self) -> Mapping[str, SectionInfo]:
        """The sections by name, in the image's order."""
        return {
            entry.name: SectionInfo(name=entry.name, optional=entry.optional, length=entry.length)
            for entry in self._index.sections
        }

    @property
    def files(self) -> Mapping[str, FileInfo]:
        """The files by name, in the image's order."""
        return {
            entry.name: FileInfo(
                name=entry.name, length=entry.length, stored=entry.stored, chunks=len(entry.chunks) // 8
            )
            for entry in self._index.files
        }

    def section_map(self, name: str) -> Mapping[str, object]:
        """The section ``name`` as it is, decoded but of no type; raises ImageError(code="image-section-missing")."""
        if name not in self._sections:
            raise self.place.error(Defect.SECTION_MISSING, f"section {name}")
        entry = self._sections[name]
        frame, place = self._frame(entry.offset)
        if frame.head != SectionHead(name, entry.optional) or frame.length != entry.length:
            raise place.error(Defect.INDEX, f"the index has section {name} here")
        return decode_map(frame.payload, place)

    def section(self, name: str, record: type[_T]) -> _T:
        """The section ``name`` as a ``record``; raises ImageError (``image-section-missing``, ``image-field``)."""
        return schema.decode(record, self.section_map(name), name, self.place)

    def open(self, name: str) -> ImageFile:
        """The file ``name``, to be read from its beginning; raises ImageError(code="image-file-missing")."""
        number, entry = self._find(name)
        return ImageFile(entry, self._chunks(number, entry))

    def lookup(self, name: str, pool: ThreadPoolExecutor) -> Lookup:
        """The file ``name``, to be read anywhere, by threads of ``pool``; raises as ``open``."""
        number, entry = self._find(name)
        offsets = self._offsets(entry)

        def chunk(index: int, *, skip: bool) -> tuple[Frame, ChunkHead, Place]:
            if index >= len(offsets):
                raise self.place.inside(f"file {name}").error(Defect.INDEX, "it has fewer bytes than the index says")
            return self._chunk(number, entry, offsets[index], skip=skip)

        def load(index: int) -> bytes | bytearray:
            frame, head, place = chunk(index, skip=False)
            return decompress(head.codec, frame.payload, head.raw, place)

        return Lookup(entry.length, lambda index: chunk(index, skip=True)[1].raw, load, pool)

    def stream(self) -> StreamReader:
        """The same image from first to last, checked as it goes."""
        return StreamReader(At(self._fd), label=str(self.path))

    def extract(self, directory: int | Path, progress: Progress | None = None) -> Summary:
        """Make every file in ``directory``, checking the whole image; raises as ``ckpt.image.extract``."""
        stream = self.stream()
        report = self._report(stream, progress)
        extract(stream.events(), directory, report)
        report()
        return _summary(stream)

    def verify(self, progress: Progress | None = None) -> Summary:
        """Check every byte: digests, order, index, contents, the whole. Raises ImageError for the first defect."""
        stream = self.stream()
        report = self._report(stream, progress)
        for event in stream.events():
            if isinstance(event, FileData):
                report()
        report()
        return _summary(stream)

    def extract_small(self, directory: Path, large: Collection[str]) -> None:
        """Make the files in ``directory`` that are not ``large``, each checked by itself; raises as ``extract``."""
        extract(self._events(large), directory)

    def _events(self, without: Collection[str]) -> Iterator[Event]:
        # CRIU's small files stand one behind the other: hundreds of them come with one read.
        source = Source(At(self._fd))
        for number, entry in enumerate(self._index.files):
            if entry.name not in without:
                yield FileOpened(number, entry.name)
                for data in self._chunks(number, entry, source):
                    yield FileData(number, entry.name, data)
                yield FileClosed(number, entry.name, entry.length)

    def _report(self, stream: StreamReader, progress: Progress | None) -> Callable[[], None]:
        return lambda: progress(stream.position, self.size) if progress else None

    def _find(self, name: str) -> tuple[int, FileEntry]:
        if name not in self._files:
            raise self.place.error(Defect.FILE_MISSING, f"file {name}")
        return self._files[name]

    def _frame(self, offset: int, *, skip: bool = False, source: Source | None = None) -> tuple[Frame, Place]:
        place = self.place.inside(f"byte {offset}")
        if source is None or source.position > offset:
            source = Source(At(self._fd, offset), offset)
        source.skip(offset - source.position, place)
        frame = FrameReader(source, place, self._frames.seed).next(skip=skip)
        if isinstance(frame, Trailer):
            raise place.error(Defect.INDEX, "the trailer stands here")
        return frame, place.inside(describe(frame.number, frame.head, offset))

    def _chunks(self, number: int, entry: FileEntry, source: Source | None = None) -> Iterator[bytes | bytearray]:
        length = 0
        for offset in self._offsets(entry):
            frame, head, place = self._chunk(number, entry, offset, source=source)
            length += head.raw
            yield decompress(head.codec, frame.payload, head.raw, place)
        if length != entry.length:
            place = self.place.inside(f"file {entry.name}")
            raise place.error(Defect.INDEX, f"its chunks have {length} bytes instead of {entry.length}")

    def _offsets(self, entry: FileEntry) -> array[int]:
        offsets = unpack_offsets(entry.chunks)
        if any(after <= before for before, after in itertools.pairwise(offsets)):
            raise self.place.inside("index").error(Defect.INDEX, f"the chunks of file {entry.name} go backwards")
        return offsets

    def _chunk(
        self, number: int, entry: FileEntry, offset: int, *, skip: bool = False, source: Source | None = None
    ) -> tuple[Frame, ChunkHead, Place]:
        frame, place = self._frame(offset, skip=skip, source=source)
        head = frame.head
        if not isinstance(head, ChunkHead) or head.file != number:
            raise place.error(Defect.INDEX, f"the index has a chunk of file {entry.name} here")
        if not 1 <= head.raw <= min(layout.MAX_CHUNK, entry.length):
            raise place.error(Defect.LIMIT, f"a chunk of {head.raw} bytes")
        return frame, head, place

    def _read_index(self) -> Index:
        try:
            start = max(self.size - layout.TRAILER_SIZE, 0)
            place = self.place.inside(f"byte {start}")
            trailer = parse_trailer(Source(At(self._fd, start), start).take(layout.TRAILER_SIZE, place))
            if trailer is None or trailer.index >= start:
                raise place.error(Defect.MALFORMED, "no trailer where it has to be")
            frame, place = self._frame(trailer.index)
            if not isinstance(frame.head, IndexHead) or frame.offset + frame.size != start:
                raise place.error(Defect.INDEX, "no index where the trailer says")
            index = schema.decode(Index, decode_map(frame.payload, place), "index", place)
            _check_index(index, place)
            return index
        except ImageError:
            for _ in self.stream().events(skip=True):
                pass
            raise


class At:
    """The file behind ``fd`` as a stream of its own from ``offset`` on: several can read it at once."""

    def __init__(self, fd: int, offset: int = 0) -> None:
        self._fd = fd
        self._offset = offset

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill ``buffer`` from where the last call ended; how many bytes there were."""
        count = os.preadv(self._fd, [buffer], self._offset)
        self._offset += count
        return count

    def skip(self, size: int, /) -> int:
        """Pass over ``size`` bytes; how many of them there were."""
        count = max(0, min(size, os.fstat(self._fd).st_size - self._offset))
        self._offset += count
        return count


class ImageFile(io.RawIOBase):
    """A file of an image as a readable, unseekable stream; ``length`` is known beforehand.

    Every byte was checked before it is returned. That the file is complete is known at its end: the last read raises
    ImageError otherwise.
    """

    def __init__(self, entry: FileEntry, chunks: Iterator[bytes | bytearray]) -> None:
        self.name = entry.name
        self.length = entry.length
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def chunks(self) -> Iterator[bytes | bytearray]:
        """The rest of the file in pieces of at most 4 MiB: the cheapest way to read all of it."""
        if self._left:
            yield bytes(self._left)
            self._left = memoryview(b"")
        yield from self._chunks

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer`` with what comes next, or a part of it; 0 at the end."""
        view = memoryview(buffer).cast("B")
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _open(path: Path, place: Place) -> int:
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer, only to be refused.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _failure(error, path) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise place.error(Defect.IS_DIRECTORY if stat.S_ISDIR(mode) else Defect.NOT_FILE)
    return fd


def _failure(error: OSError, path: Path) -> CkptError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(f"there is no image {path}", code="image-missing")
    if isinstance(error, PermissionError):
        brief = f"{path} may not be read"
        return PermissionDeniedError(
            brief, code="image-permission", details=error.strerror, hint="images are mode 0600"
        )
    return StorageError(f"{path} could not be opened", code="storage-read", details=error.strerror)


def _check_index(index: Index, place: Place) -> None:
    for section in index.sections:
        check_section_name(section.name, place)
    for file in index.files:
        check_file_name(file.name, place)
    for entries in (index.sections, index.files):
        names = {entry.name for entry in entries}
        if len(names) != len(entries):
            raise place.error(Defect.DUPLICATE, "in the index")
    for file in index.files:
        if len(file.chunks) % array("Q").itemsize or not 0 <= file.stored <= file.length:
            raise place.error(Defect.INDEX, f"what it says of {file.name} cannot be")


def _summary(stream: StreamReader) -> Summary:
    assert stream.summary is not None  # events() ended
    return stream.summary
