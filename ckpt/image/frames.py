"""Frames out of bytes and into bytes: the lowest layer that knows the format.

``FrameReader`` takes one frame after the other from a ``Source`` and hands out only frames whose digest is right, so
nothing above it ever sees a byte that was not checked. It never asks for more memory than the frame's type allows,
and never for more than really arrives. ``seal`` is its mirror: it turns a head and a payload into a frame's bytes.
Whether frames follow each other as they must is the ledger's business.
"""

from __future__ import annotations

import struct
from dataclasses import fields
from typing import Final, Protocol, runtime_checkable

from ckpt.errors import ImageError, StorageError
from ckpt.image import layout, schema, wire
from ckpt.image.defect import Defect, Place
from ckpt.image.layout import DIGEST_PREFIX, DIGEST_SIZE, PAYLOAD_PREFIX, TRAILER_PREFIX, TRAILER_SIZE, Head, Header
from ckpt.records import dataclass

_READ = 64 * layout.KIB
_DIGEST_ELEMENT = len(DIGEST_PREFIX) + DIGEST_SIZE
_PAYLOAD_HEADER = len(PAYLOAD_PREFIX) + 4
_AFTER_ITEMS = 2  # a frame's last two elements, digest and payload
Taken = bytes | bytearray
Payload = Taken | memoryview
_TYPES: Final = {"int": int, "str": str, "bool": bool}
_MAX_UINT = (1 << 63) - 1


class Readable(Protocol):
    """What a source reads from: any raw or buffered binary stream."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


@runtime_checkable
class Skippable(Protocol):
    """A stream that can pass over bytes without reading them: ``skip`` returns how many there were."""

    def skip(self, size: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame whose digest is right: at ``offset``, ``size`` bytes long. ``payload`` is empty where it was skipped.

    ``unchecked`` is its head's bytes where the digest has not been looked at yet (``FrameReader.check``).
    """

    number: int
    head: Head
    digest: bytes
    payload: Taken
    length: int
    offset: int
    size: int
    unchecked: bytes = b""


@dataclass(frozen=True, slots=True)
class Trailer:
    """The end of an image: where its index frame begins, and the digest of the whole."""

    index: int
    digest: bytes


class Source:
    """A stream with a look ahead: ``position`` counts the bytes taken so far, from ``position`` on."""

    def __init__(self, stream: Readable, position: int = 0) -> None:
        self.position = position
        self._stream = stream
        self._ahead = b""
        self._at = 0  # how much of what was read ahead is taken

    def peek(self, size: int, most: int = 0) -> bytes:
        """The next ``size`` bytes, or up to ``most`` if they are at hand; less where the stream ends. Takes none."""
        while len(self._ahead) - self._at < size:
            buffer = bytearray(_READ)
            count = self._read(memoryview(buffer))
            if not count:
                break
            self._ahead = self._ahead[self._at :] + bytes(memoryview(buffer)[:count])
            self._at = 0
        return self._ahead[self._at : self._at + max(size, most)]

    def take(self, size: int, place: Place) -> bytes:
        """Exactly the next ``size`` bytes (bounded by the caller); raises ImageError(code="image-truncated")."""
        return bytes(self.take_payload(size, place))

    def take_payload(self, size: int, place: Place) -> Taken:
        """As ``take``, without a copy of what is large."""
        taken: Taken
        have = len(self._ahead) - self._at
        if size <= have:
            taken = self._ahead[self._at : self._at + size]
            self._at += size
        else:
            buffer = bytearray(size)
            buffer[:have] = memoryview(self._ahead)[self._at :]
            self._ahead, self._at = b"", 0
            while have < size:
                count = self._read(memoryview(buffer)[have:])
                if not count:
                    raise place.error(Defect.TRUNCATED, f"the image ends at byte {self.position + have}")
                have += count
            taken = buffer
        self.position += size
        return taken

    def skip(self, size: int, place: Place) -> None:
        """Pass over the next ``size`` bytes, unread where the stream is a file; raises as ``take``."""
        ahead = min(size, len(self._ahead) - self._at)
        left = size - len(self.take(ahead, place))
        if left and isinstance(self._stream, Skippable):
            skipped = self._stream.skip(left)
            self.position += skipped
            left -= skipped
        self.take(left, place)  # nothing, or the end of the image

    def _read(self, buffer: memoryview) -> int:
        try:
            count = self._stream.readinto(buffer)
        except OSError as error:
            raise StorageError("reading the image failed", code="storage-read", details=error.strerror) from error
        if count is None:
            raise StorageError("reading the image failed", code="storage-read", details="the stream does not block")
        return count


class FrameReader:
    """The frames of an image, in order, each checked against its digest; see images/FORMAT.md."""

    def __init__(self, source: Source, place: Place, seed: layout.Digest) -> None:
        self.source = source
        self.place = place
        self.seed = seed

    @classmethod
    def at_start(cls, source: Source, place: Place) -> tuple[FrameReader, Header]:
        """A reader behind the header, and the header; raises ImageError for what is no image of this version."""
        place = place.inside("header at byte 0")
        raw, header = read_header(source, place)
        return cls(source, place, layout.digest(header.digest, raw)), header

    def next(self, *, skip: bool = False, unchecked: bool = False) -> Frame | Trailer:
        """The next frame, or the trailer. With ``skip`` a chunk's payload is passed over, its digest not checked.

        With ``unchecked`` a chunk is returned as it was read: who asks for that calls ``check`` before it is used.
        """
        offset = self.source.position
        place = self.place.inside(f"byte {offset}")
        begin = self.source.peek(len(TRAILER_PREFIX))
        if begin and TRAILER_PREFIX.startswith(begin):  # no frame is that short: less is a trailer that is cut off
            return self._trailer(place)
        items, end = _items(self.source, _AFTER_ITEMS, layout.MAX_HEAD, place)
        number, head = _parse_head(items, place)
        place = place.inside(describe(number, head, offset))
        head_bytes = self.source.take(end, place)
        tail = self.source.take(_DIGEST_ELEMENT + _PAYLOAD_HEADER, place)
        length = _payload_length(tail, head, place)
        size = end + len(tail) + length
        digest = tail[len(DIGEST_PREFIX) : _DIGEST_ELEMENT]
        self.place = place
        if skip and isinstance(head, layout.ChunkHead):
            self.source.skip(length, place)
            return Frame(number, head, digest, b"", length, offset, size)
        payload = self.source.take_payload(length, place)
        if unchecked and isinstance(head, layout.ChunkHead):
            return Frame(number, head, digest, payload, length, offset, size, head_bytes)
        self._check(digest, head_bytes, payload, place)
        return Frame(number, head, digest, payload, length, offset, size)

    def check(self, frame: Frame, place: Place) -> None:
        """Hold a frame that was returned unchecked against its digest. May be called by several threads."""
        if frame.unchecked:
            self._check(frame.digest, frame.unchecked, frame.payload, place)

    def _check(self, digest: bytes, head: bytes, payload: Payload, place: Place) -> None:
        if frame_digest(self.seed, head, payload) != digest:
            raise place.error(Defect.DIGEST, "its digest does not match")

    def _trailer(self, place: Place) -> Trailer:
        place = place.inside(f"trailer at byte {self.source.position}")
        trailer = parse_trailer(self.source.take(TRAILER_SIZE, place))
        if trailer is None:
            raise place.error(Defect.MALFORMED, "no digest where it has to be")
        self.place = place
        return trailer


def read_header(source: Source, place: Place) -> tuple[bytes, Header]:
    """The header frame's bytes and what it says."""
    begin = source.peek(len(layout.MAGIC))
    word = layout.MAGIC_WORD
    if begin[: len(word)] != word[: len(begin)]:
        raise place.error(Defect.NOT_CKPT, f"it begins with {begin[: len(word)].hex(' ')}")
    try:
        items, end = _items(source, 0, layout.MAX_HEADER, place)
    except ImageError as error:
        if len(begin) == len(layout.MAGIC) and begin != layout.MAGIC:  # not ours to judge
            raise place.error(Defect.VERSION, _other_version(begin[-1], None)) from error
        raise
    version, found = items[1], items[2]
    if begin != layout.MAGIC:
        raise place.error(Defect.VERSION, _other_version(version, found))
    header = schema.decode(Header, found, "header", place)
    if header.digest not in layout.DIGESTS:
        raise place.error(Defect.ALGORITHM, f"{header.digest[:32]!r}; this ckpt knows {', '.join(layout.DIGESTS)}")
    return source.take(end, place), header


def _items(source: Source, missing: int, limit: int, place: Place) -> tuple[list[object], int]:
    wanted = 1  # never wait for more bytes than the frame has: on a pipe they may never come
    while True:
        window = source.peek(wanted, limit)
        found = wire.unpack_head(window, missing, place, limit)
        if found is not None:
            return found
        if len(window) < wanted:
            raise place.error(Defect.TRUNCATED, f"the image ends at byte {source.position + len(window)}")
        wanted = len(window) + 1


def _other_version(version: object, header: object) -> str:
    said = header.get("ckpt") if isinstance(header, dict) else None
    # The text comes from the image: only what looks like a version is repeated.
    writer = said if isinstance(said, str) and len(said) <= 32 and said.isascii() and said.isprintable() else "unknown"
    shown = version if type(version) is int else "unknown"
    return f"format version {shown}, written by ckpt {writer}; this ckpt reads version {layout.VERSION}"


def _parse_head(items: list[object], place: Place) -> tuple[int, Head]:
    kind, rest = items[0], items[1:]
    if not isinstance(kind, str) or kind not in layout.HEADS:
        shown = repr(kind[:32]) if isinstance(kind, str) else type(kind).__name__
        raise place.error(Defect.FRAME, f"frame type {shown}")
    head = layout.HEADS[kind]
    wanted = [("number", int), *((field.name, _TYPES[str(field.type)]) for field in fields(head))]
    if len(rest) != len(wanted):
        raise place.error(Defect.MALFORMED, f"a {kind} frame of {len(rest)} fields instead of {len(wanted)}")
    for value, (name, wanted_type) in zip(rest, wanted, strict=True):
        if type(value) is not wanted_type or (isinstance(value, int) and not 0 <= value <= _MAX_UINT):
            raise place.error(Defect.MALFORMED, f"the {name} of a {kind} frame is no {wanted_type.__name__}")
    number: int = rest[0]  # type: ignore[assignment]  # checked above
    return number, head(*rest[1:])  # type: ignore[arg-type]  # checked above


def _payload_length(tail: bytes, head: Head, place: Place) -> int:
    if tail[: len(DIGEST_PREFIX)] != DIGEST_PREFIX or tail[_DIGEST_ELEMENT : _DIGEST_ELEMENT + 1] != PAYLOAD_PREFIX:
        raise place.error(Defect.MALFORMED, "digest and payload are not where they have to be")
    (length,) = struct.unpack(">I", tail[-4:])
    limit = head.LIMIT
    if length > limit:
        raise place.error(Defect.LIMIT, f"a payload of {length} bytes, at most {limit}")
    return int(length)


def describe(number: int, head: Head, offset: int) -> str:
    """A frame as messages name it."""
    named = f" {head.name[:64]!r}" if isinstance(head, (layout.SectionHead, layout.FileHead)) else ""
    return f"frame {number} ({head.TYPE}{named}) at byte {offset}"


def frame_digest(seed: layout.Digest, head: bytes, payload: Payload) -> bytes:
    """The digest of a frame: its head's bytes, its payload with the payload's length, all seeded with the header."""
    running = seed.copy()
    running.update(head)
    running.update(PAYLOAD_PREFIX + struct.pack(">I", len(payload)))
    running.update(payload)
    return running.digest()


def seal(seed: layout.Digest, number: int, head: Head, payload: Payload) -> tuple[bytes, bytes]:
    """A frame's bytes up to its payload, and its digest."""
    values = (getattr(head, field.name) for field in fields(head))
    packed = wire.pack_head((head.TYPE, number, *values), _AFTER_ITEMS)
    digest = frame_digest(seed, packed, payload)
    return packed + DIGEST_PREFIX + digest + PAYLOAD_PREFIX + struct.pack(">I", len(payload)), digest


def seal_header(header: Header) -> bytes:
    """The header frame's bytes."""
    return wire.pack_head(("ckpt", layout.VERSION, schema.encode(header)), 0)


def seal_trailer(trailer: Trailer) -> bytes:
    """The trailer's bytes."""
    return TRAILER_PREFIX + struct.pack(">Q", trailer.index) + DIGEST_PREFIX + trailer.digest


def parse_trailer(data: bytes) -> Trailer | None:
    """The trailer that ``data`` (its very bytes) is, or None."""
    offset_end = len(TRAILER_PREFIX) + 8
    digest_start = offset_end + len(DIGEST_PREFIX)
    if (
        len(data) != TRAILER_SIZE
        or not data.startswith(TRAILER_PREFIX)
        or data[offset_end:digest_start] != DIGEST_PREFIX
    ):
        return None
    (index,) = struct.unpack(">Q", data[len(TRAILER_PREFIX) : offset_end])
    return Trailer(int(index), data[digest_start:])
