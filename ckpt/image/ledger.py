"""The order that an image must keep, kept in one place for the writer and the readers.

Every frame passes through ``admit`` (may it stand here?) and then ``record`` (it stands at this offset, with this
digest). From the same calls the ledger makes the index and the digest of the whole, so that a reader compares what
the image says of itself with what went past, and a writer cannot write what a reader would refuse.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import field

from ckpt.image import layout
from ckpt.image.codec import CODECS
from ckpt.image.defect import Defect, Place
from ckpt.image.frames import Trailer
from ckpt.image.layout import (
    ChunkHead,
    CloseHead,
    FileEntry,
    FileHead,
    Head,
    Index,
    SectionEntry,
    SectionHead,
    Summary,
)
from ckpt.records import dataclass


@dataclass(slots=True)
class _File:
    name: str
    open: bool = True
    length: int = 0
    stored: int = 0
    chunks: int = 0
    # Eight bytes a chunk, whatever the size of the image: a list of ints would be five times that.
    offsets: array[int] = field(default_factory=lambda: array("Q"))


class Ledger:
    """What an image holds so far. ``admit`` and ``record`` raise ImageError where a frame breaks the format."""

    def __init__(self, header: layout.Header, seed: layout.Digest) -> None:
        self._id = header.id
        self._digest = seed.copy()
        self._section_names: set[str] = set()
        self._section_bytes = 0
        self._sections: list[SectionEntry] = []
        self._files: list[_File] = []
        self._file_names: set[str] = set()
        self._open = 0
        self._number = 0

    def expect(self, number: int, place: Place) -> None:
        """``number`` must be that of the next frame."""
        self._number += 1
        if number != self._number:
            raise place.error(Defect.MALFORMED, f"frame {self._number} has to stand here")

    def admit(self, head: Head, length: int, place: Place) -> None:
        """A frame with ``head`` and ``length`` bytes of payload comes next."""
        match head:
            case SectionHead():
                self._admit_section(head, length, place)
            case FileHead():
                self._admit_file(head, place)
            case ChunkHead():
                self._admit_chunk(head, length, place)
            case CloseHead():
                self._admit_close(head, place)
            case _ if self._open:
                name = next(file.name for file in self._files if file.open)
                raise place.error(Defect.MALFORMED, f"file {name} is not closed")

    def record(self, head: Head, offset: int, length: int, digest: bytes) -> None:
        """The frame that was admitted stands at ``offset``; ``length`` is its payload's."""
        self._digest.update(digest)
        if isinstance(head, SectionHead):
            entry = SectionEntry(name=head.name, optional=head.optional, offset=offset, length=length)
            self._sections.append(entry)
        elif isinstance(head, ChunkHead):
            file = self._files[head.file]
            file.offsets.append(offset)
            file.stored += length

    def index(self) -> Index:
        """The index of what was recorded."""
        return Index(sections=tuple(self._sections), files=tuple(map(_entry, self._files)))

    def trailer(self, index: int) -> Trailer:
        """The trailer when the index frame stands at ``index``."""
        digest = self._digest.copy()
        digest.update(index.to_bytes(8, "big"))
        return Trailer(index, digest.digest())

    def summary(self, trailer: Trailer, size: int) -> Summary:
        """The image as a whole, ``size`` bytes long."""
        return Summary(
            id=self._id,
            digest=trailer.digest.hex(),
            sections=len(self._sections),
            files=len(self._files),
            raw=sum(file.length for file in self._files),
            stored=sum(file.stored for file in self._files),
            size=size,
        )

    def file_name(self, file: int) -> str:
        """The name of the file numbered ``file``, which was admitted."""
        return self._files[file].name

    def _admit_section(self, head: SectionHead, length: int, place: Place) -> None:
        check_section_name(head.name, place)
        if head.name in self._section_names:
            raise place.error(Defect.DUPLICATE, f"section {head.name}")
        if len(self._section_names) >= layout.MAX_SECTIONS:
            raise place.error(Defect.LIMIT, f"more than {layout.MAX_SECTIONS} sections")
        self._section_bytes += length
        if self._section_bytes > layout.MAX_SECTION_BYTES:
            raise place.error(Defect.LIMIT, f"more than {layout.MAX_SECTION_BYTES} bytes of sections")
        self._section_names.add(head.name)

    def _admit_file(self, head: FileHead, place: Place) -> None:
        check_file_name(head.name, place)
        if head.file != len(self._files):
            raise place.error(Defect.MALFORMED, f"file number {head.file} where {len(self._files)} is next")
        if head.name in self._file_names:
            raise place.error(Defect.DUPLICATE, f"file {head.name}")
        if len(self._files) >= layout.MAX_FILES:
            raise place.error(Defect.LIMIT, f"more than {layout.MAX_FILES} files")
        if self._open >= layout.MAX_OPEN:
            raise place.error(Defect.LIMIT, f"more than {layout.MAX_OPEN} files open at once")
        self._files.append(_File(head.name))
        self._file_names.add(head.name)
        self._open += 1

    def _admit_chunk(self, head: ChunkHead, length: int, place: Place) -> None:
        file = self._opened(head.file, place)
        if head.codec not in CODECS:
            raise place.error(Defect.CODEC, f"codec {head.codec[:32]!r}")
        if not 1 <= head.raw <= layout.MAX_CHUNK:
            raise place.error(Defect.LIMIT, f"a chunk of {head.raw} bytes, from 1 to {layout.MAX_CHUNK}")
        if length > head.raw:
            raise place.error(Defect.MALFORMED, f"{length} bytes stored for {head.raw}")
        file.length += head.raw
        file.chunks += 1

    def _admit_close(self, head: CloseHead, place: Place) -> None:
        file = self._opened(head.file, place)
        if (head.length, head.chunks) != (file.length, file.chunks):
            had = f"had {file.length} bytes in {file.chunks} chunks"
            raise place.error(Defect.MALFORMED, f"file {file.name} {had}, not {head.length} in {head.chunks}")
        file.open = False
        self._open -= 1

    def _opened(self, number: int, place: Place) -> _File:
        if number >= len(self._files) or not self._files[number].open:
            raise place.error(Defect.MALFORMED, f"file number {number} is not open")
        return self._files[number]


def check_file_name(name: str, place: Place) -> None:
    """Raise ImageError(code="image-name") unless ``name`` may be a file's."""
    if not layout.FILE_NAME.fullmatch(name):
        raise place.error(Defect.NAME, f"file {name[:64]!r}")


def check_section_name(name: str, place: Place) -> None:
    """Raise ImageError(code="image-name") unless ``name`` may be a section's."""
    if not layout.SECTION_NAME.fullmatch(name):
        raise place.error(Defect.NAME, f"section {name[:64]!r}")


def _entry(file: _File) -> FileEntry:
    return FileEntry(name=file.name, length=file.length, stored=file.stored, chunks=pack_offsets(file.offsets))


def pack_offsets(offsets: array[int]) -> bytes:
    """``offsets`` as the index has them: eight bytes each, big-endian."""
    swapped = array("Q", offsets)
    if sys.byteorder == "little":
        swapped.byteswap()
    return swapped.tobytes()


def unpack_offsets(packed: bytes) -> array[int]:
    """The mirror of ``pack_offsets``; ``packed`` holds whole offsets."""
    offsets = array("Q")
    offsets.frombytes(packed)
    if sys.byteorder == "little":
        offsets.byteswap()
    return offsets
