"""The .ckpt format as names and numbers: magic, limits, frame heads, header and index records.

This is images/FORMAT.md for the machine: what the writer puts into frames and what the readers take out of them is
declared here once, together with the digests that an image may have. Nothing here reads or writes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import ClassVar, Final, Protocol, Self

from blake3 import blake3

from ckpt.records import dataclass

VERSION: Final = 1
MAGIC_WORD: Final = b"\x93\xa4ckpt"
MAGIC: Final = MAGIC_WORD + b"\x01"

KIB: Final = 1024
MIB: Final = 1024 * KIB
CHUNK: Final = MIB  # what a writer puts into one chunk: large enough to compress well, small enough to hold several
MAX_CHUNK: Final = 4 * MIB
MAX_HEADER: Final = 4 * KIB
MAX_HEAD: Final = KIB
MAX_SECTION: Final = 16 * MIB
MAX_DEPTH: Final = 32
MAX_SECTIONS: Final = 1024
MAX_SECTION_BYTES: Final = 64 * MIB  # of all sections together: a reader of a pipe keeps them
MAX_FILES: Final = 65536
MAX_OPEN: Final = 256

FILE_NAME: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._-]{0,254}", re.ASCII)
SECTION_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,63}", re.ASCII)

DIGEST_SIZE: Final = 32
DIGEST_PREFIX: Final = b"\xc4\x20"  # msgpack's bin 8 of 32 bytes
PAYLOAD_PREFIX: Final = b"\xc6"  # msgpack's bin 32
TRAILER_PREFIX: Final = b"\x93\xa3end\xcf"
TRAILER_SIZE: Final = len(TRAILER_PREFIX) + 8 + len(DIGEST_PREFIX) + DIGEST_SIZE


class Digest(Protocol):
    """A running digest."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object:
        """Feed it; another thread may run meanwhile."""

    def copy(self) -> Self:
        """Another one that has been fed the same."""

    def digest(self) -> bytes:
        """What was fed so far, in 32 bytes."""


def _blake2b() -> Digest:
    return hashlib.blake2b(digest_size=DIGEST_SIZE)


DIGESTS: Final[dict[str, Callable[[], Digest]]] = {"blake3-256": blake3, "blake2b-256": _blake2b}
"""By the name that a header has. Every one is read; a writer takes the first: docs/speed.md has the reasons."""
DIGEST: Final = next(iter(DIGESTS))


def digest(algorithm: str, data: bytes = b"") -> Digest:
    """A running digest, fed with ``data``."""
    running = DIGESTS[algorithm]()
    running.update(data)
    return running


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The image's first frame: ``id`` is 32 hex digits, ``created`` Unix seconds, ``ckpt`` the writer's version."""

    id: str
    created: float
    ckpt: str
    digest: str
    codec: str


@dataclass(frozen=True, slots=True)
class SectionHead:
    """A record of ours follows as the payload."""

    TYPE: ClassVar[str] = "section"
    LIMIT: ClassVar[int] = MAX_SECTION
    name: str
    optional: bool


@dataclass(frozen=True, slots=True)
class FileHead:
    """The file numbered ``file`` is opened under ``name``."""

    TYPE: ClassVar[str] = "file"
    LIMIT: ClassVar[int] = 0
    file: int
    name: str


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """The next ``raw`` bytes of a file follow, stored with ``codec``."""

    TYPE: ClassVar[str] = "chunk"
    LIMIT: ClassVar[int] = MAX_CHUNK
    file: int
    raw: int
    codec: str


@dataclass(frozen=True, slots=True)
class CloseHead:
    """A file ends, having had ``length`` raw bytes in ``chunks`` chunks."""

    TYPE: ClassVar[str] = "close"
    LIMIT: ClassVar[int] = 0
    file: int
    length: int
    chunks: int


@dataclass(frozen=True, slots=True)
class IndexHead:
    """The index follows as the payload."""

    TYPE: ClassVar[str] = "index"
    LIMIT: ClassVar[int] = MAX_SECTION


Head = SectionHead | FileHead | ChunkHead | CloseHead | IndexHead
HEADS: Final[dict[str, type[Head]]] = {
    head.TYPE: head for head in (SectionHead, FileHead, ChunkHead, CloseHead, IndexHead)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionEntry:
    """A section as the index has it: ``offset`` of its frame, ``length`` of its payload, in bytes."""

    name: str
    optional: bool = False
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file as the index has it: ``length`` raw, ``stored`` bytes; ``chunks`` packs the offsets of its frames."""

    name: str
    length: int = 0
    stored: int = 0
    chunks: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What the image holds and where, in the order of the frames."""

    sections: tuple[SectionEntry, ...] = ()
    files: tuple[FileEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole image: its id, its digest (hex), how many sections and files.

    In bytes: ``raw`` of all files, ``stored`` for them, ``size`` of the image.
    """

    id: str
    digest: str
    sections: int
    files: int
    raw: int
    stored: int
    size: int
