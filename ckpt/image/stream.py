"""Reads an image from first byte to last, as it comes out of a pipe.

Events come in the image's order, several files interleaved as they were written, and few chunks are in memory at a
time: those that follow are read ahead, and checked and decompressed by threads. Each byte that is handed out was
checked against its frame's digest, and each frame's place by the ledger; that the image is *whole* is known only when
the events have ended without an error, and of several errors the first in the image is raised. Nothing is ever sought,
so a pipe will do.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from ckpt.errors import CkptError
from ckpt.image import schema, wire
from ckpt.image.codec import decompress
from ckpt.image.defect import Defect, Place
from ckpt.image.frames import Frame, FrameReader, Readable, Source, Trailer, describe
from ckpt.image.layout import (
    KIB,
    ChunkHead,
    CloseHead,
    FileEntry,
    FileHead,
    Index,
    IndexHead,
    SectionEntry,
    SectionHead,
    Summary,
)
from ckpt.image.ledger import Ledger
from ckpt.records import dataclass

_T = TypeVar("_T")

_MOST_THREADS: Final = 4
_WORTH_A_THREAD: Final = 64 * KIB  # bytes of a chunk


@dataclass(frozen=True, slots=True)
class FileOpened:
    """The file numbered ``file`` begins."""

    file: int
    name: str


@dataclass(frozen=True, slots=True)
class FileData:
    """The next bytes of a file, at most 4 MiB."""

    file: int
    name: str
    data: bytes | bytearray


@dataclass(frozen=True, slots=True)
class FileClosed:
    """A file is complete, ``length`` bytes long."""

    file: int
    name: str
    length: int


Event = FileOpened | FileData | FileClosed


class Sections:
    """The sections that were read so far, still encoded; ``known`` are the names of those this ckpt understands.

    A section outside ``known`` is refused unless it is optional; None takes all, for tools that only look.
    """

    def __init__(self, place: Place, known: Collection[str] | None) -> None:
        self._place = place
        self._known = known
        self._payloads: dict[str, bytes] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """In the image's order."""
        return tuple(self._payloads)

    def refuse_unknown(self, name: str, optional: bool) -> None:
        """Raise ImageError(code="image-section-unknown") where ``name`` has to be known and is not."""
        if self._known is not None and name not in self._known and not optional:
            raise self._place.error(Defect.SECTION_UNKNOWN, f"section {name}")

    def put(self, name: str, payload: bytes) -> None:
        """Keep a section."""
        self._payloads[name] = payload

    def map(self, name: str) -> Mapping[str, object]:
        """The section as it is, decoded but of no type; raises ImageError(code="image-section-missing")."""
        if name not in self._payloads:
            raise self._place.error(Defect.SECTION_MISSING, f"section {name}")
        return decode_map(self._payloads[name], self._place.inside(f"section {name}"))

    def record(self, name: str, record: type[_T]) -> _T:
        """The section as a ``record``; raises ImageError (``image-section-missing``, ``image-field``)."""
        return schema.decode(record, self.map(name), name, self._place)


def decode_map(payload: bytes | bytearray, place: Place) -> dict[str, object]:
    """The map with str keys that a section's payload has to be."""
    value = wire.unpack(payload, place)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise place.error(Defect.MALFORMED, "a section has to be a map with str keys")
    return value


class StreamReader:
    """An image read from ``stream`` (any object with ``readinto``, for instance an unbuffered pipe).

    The header and the sections before the first file are read at once, the others while ``events`` goes on. ``known``
    as for Sections. ``label`` names the image in messages. Raises ImageError for every defect, StorageError when the
    stream itself fails.
    """

    def __init__(self, stream: Readable, *, label: str = "the image", known: Collection[str] | None = None) -> None:
        self.place = Place(label)
        self._source = Source(stream)
        self._frames, self.header = FrameReader.at_start(self._source, self.place)
        self._ledger = Ledger(self.header, self._frames.seed)
        self.sections = Sections(self.place, known)
        self.summary: Summary | None = None
        self._next: tuple[Frame, Place] | None = None
        self._index: tuple[int, Index] | None = None
        self._read_sections()

    @property
    def position(self) -> int:
        """Bytes of the image that were read so far."""
        return self._source.position

    def section(self, name: str, record: type[_T]) -> _T:
        """The section ``name``, read by now, as a ``record``; raises as Sections.record."""
        return self.sections.record(name, record)

    def events(self, *, skip: bool = False) -> Iterator[Event]:
        """What the files hold, in the image's order; ``summary`` is set when it has ended.

        With ``skip`` the contents are passed over unchecked and no FileData is made: only the order is checked.
        """
        threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(threads, "ckpt-image") as pool:
            ahead: deque[Callable[[], Event | None]] = deque()
            failure: Exception | None = None
            while ahead or (self._next is not None and failure is None):
                if self._next is not None and failure is None:
                    ahead.append(self._begin(*self._next, skip, pool))
                    try:
                        self._next = self._take(skip)
                    except (CkptError, OSError) as error:
                        failure = error
                if len(ahead) > threads or self._next is None or failure is not None:
                    event = ahead.popleft()()
                    if event is not None:
                        yield event
            if failure is not None:
                raise failure

    def _begin(self, frame: Frame, place: Place, skip: bool, pool: ThreadPoolExecutor) -> Callable[[], Event | None]:
        """Have a frame made into an event; what is returned waits for it."""
        if isinstance(frame.head, ChunkHead) and not skip and frame.length >= _WORTH_A_THREAD:
            return pool.submit(self._event, frame, place, skip).result
        event = self._event(frame, place, skip)
        return lambda: event

    def _read_sections(self) -> None:
        self._next = self._take(False)
        while self._next is not None and isinstance(self._next[0].head, SectionHead):
            self._event(*self._next, False)
            self._next = self._take(False)

    def _take(self, skip: bool) -> tuple[Frame, Place] | None:
        frame = self._frames.next(skip=skip, unchecked=True)
        if isinstance(frame, Trailer):
            self._finish(frame)
            return None
        place = self.place.inside(describe(frame.number, frame.head, frame.offset))
        try:
            self._note(frame, place)
        except CkptError:
            self._frames.check(frame, place)  # what is not as it was written is not to be blamed for what it says
            raise
        return frame, place

    def _note(self, frame: Frame, place: Place) -> None:
        if self._index is not None:
            raise place.error(Defect.MALFORMED, "a frame follows the index")
        self._ledger.expect(frame.number, place)
        index = self._ledger.index() if isinstance(frame.head, IndexHead) else None
        self._ledger.admit(frame.head, frame.length, place)
        self._ledger.record(frame.head, frame.offset, frame.length, frame.digest)
        if index is not None:
            found = schema.decode(Index, decode_map(frame.payload, place), "index", place)
            if found != index:
                raise place.error(Defect.INDEX, _difference(found, index))
            self._index = (frame.offset, index)

    def _event(self, frame: Frame, place: Place, skip: bool) -> Event | None:
        match frame.head:
            case SectionHead(name, optional):
                self.sections.refuse_unknown(name, optional)
                decode_map(frame.payload, place)
                self.sections.put(name, bytes(frame.payload))
            case FileHead(file, name):
                return FileOpened(file, name)
            case ChunkHead(file, raw, codec) if not skip:
                self._frames.check(frame, place)
                data = decompress(codec, frame.payload, raw, place)
                return FileData(file, self._ledger.file_name(file), data)
            case CloseHead(file, length, _):
                return FileClosed(file, self._ledger.file_name(file), length)
        return None

    def _finish(self, trailer: Trailer) -> None:
        place = self._frames.place
        if self._index is None:
            raise place.error(Defect.MALFORMED, "no index stands before it")
        if trailer.index != self._index[0]:
            raise place.error(Defect.INDEX, f"the index is at byte {self._index[0]}, not {trailer.index}")
        if self._ledger.trailer(trailer.index) != trailer:
            raise place.error(Defect.DIGEST, "the digest of the whole does not match")
        extra = self._source.peek(1)
        if extra:
            raise place.error(Defect.TRAILING, f"the image ends at byte {self.position}, the file does not")
        self.summary = self._ledger.summary(trailer, self.position)


def _difference(found: Index, index: Index) -> str:
    if len(found.sections) != len(index.sections):
        return f"{len(found.sections)} sections instead of {len(index.sections)}"
    if len(found.files) != len(index.files):
        return f"{len(found.files)} files instead of {len(index.files)}"
    said: tuple[SectionEntry | FileEntry, ...] = (*found.sections, *found.files)
    seen: tuple[SectionEntry | FileEntry, ...] = (*index.sections, *index.files)
    name = next(other.name for one, other in zip(said, seen, strict=True) if one != other)
    return f"what it says of {name} is not so"
