"""Makes ``images/broken``: one image for each defect, each a change to one sound golden image.

``python -m tests.unit.broken_images`` writes them. What is damaged on the way (a bit, the end) is changed in the
bytes; what a wrong or hostile writer would have made is changed in the frames and sealed again, with a fitting index,
so that only the defect meant is there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import zstandard

from ckpt.image import layout
from ckpt.image.layout import ChunkHead, CloseHead, FileHead, Head, IndexHead, SectionHead
from ckpt.image.wire import pack
from tests.unit.image_samples import Parts, put_index, put_together, take_apart

IMAGES = Path(__file__).parents[2] / "images"
SOUND = IMAGES / "golden" / "v1" / "interleaved-zstd.ckpt"

Broken = Callable[[bytes], bytes]


def _cut(size: int) -> Broken:
    return lambda image: image[:size]


def _flip(offset: int) -> Broken:
    """One bit of the byte at ``offset``, which counts from the end when negative."""

    def flip(image: bytes) -> bytes:
        changed = bytearray(image)
        changed[offset] ^= 0x10
        return bytes(changed)

    return flip


def _flip_in(kind: type[Head], skip: int, number: int = 0) -> Broken:
    """One bit of the byte ``skip`` behind the type of a frame."""

    def flip(image: bytes) -> bytes:
        name = bytes([0xA0 | len(kind.TYPE)]) + kind.TYPE.encode()
        at = -1
        for _ in range(number + 1):
            at = image.index(name, at + 1)
        return _flip(at + len(name) + skip)(image)

    return flip


def _frames(change: Callable[[Parts], object], *, fit_index: bool = True) -> Broken:
    def broken(image: bytes) -> bytes:
        parts = take_apart(image)
        change(parts)
        if fit_index:
            put_index(parts)
        return put_together(parts)

    return broken


def _header(key: str, *values: object) -> Broken:
    """The header's map with another value for ``key``, or without it."""

    def change(parts: Parts) -> None:
        header: Any = parts.header[2]
        del header[key]
        header.update(zip([key], values, strict=False))

    return _frames(change)


def _head(kind: type[Head], number: int = 0, *, fit_index: bool = True, **fields: Any) -> Broken:
    """Other ``fields`` in one frame's head."""

    def change(parts: Parts) -> None:
        at = parts.find(kind, number)
        head, payload = parts.frames[at]
        parts.frames[at] = (replace(head, **fields), payload)

    return _frames(change, fit_index=fit_index)


def _payload(kind: type[Head], payload: bytes, number: int = 0, **fields: Any) -> Broken:
    """Another payload in one frame, and other ``fields`` in its head."""

    def change(parts: Parts) -> None:
        at = parts.find(kind, number)
        parts.frames[at] = (replace(parts.frames[at][0], **fields), payload)

    return _frames(change, fit_index=kind is not IndexHead)


def _insert(kind: type[Head], head: Head, payload: bytes = b"") -> Broken:
    """One more frame before the first of ``kind``."""
    return _frames(lambda parts: parts.frames.insert(parts.find(kind), (head, payload)))


def _without(kind: type[Head], number: int = 0, *, fit_index: bool = True) -> Broken:
    """One frame less."""
    return _frames(lambda parts: parts.frames.pop(parts.find(kind, number)), fit_index=fit_index)


def _gap(image: bytes) -> bytes:
    parts = take_apart(image)
    return put_together(parts, numbers=[*range(1, 4), *range(5, len(parts.frames) + 2)])


def _no_index(image: bytes) -> bytes:
    return _without(IndexHead, fit_index=False)(image)


def _unknown_frame(image: bytes) -> bytes:
    class ParityHead(CloseHead):
        TYPE = "parity"

    return _insert(IndexHead, ParityHead(0, 0, 0))(image)


def _frame_after_index(image: bytes) -> bytes:
    return _frames(lambda parts: parts.frames.append((SectionHead("late", True), pack({}))), fit_index=False)(image)


def _long_head(image: bytes) -> bytes:
    return _frames(lambda parts: parts.frames.insert(0, (SectionHead("x" * 2000, False), pack({}))))(image)


def _other_payload_encoding(image: bytes) -> bytes:
    """A bin 16 where the format has a bin 32."""
    head, _, rest = image.partition(b"\xc6" + struct.pack(">I", 18))
    return head + b"\xc5" + struct.pack(">H", 18) + rest


_BOMB = zstandard.ZstdCompressor(level=19).compress(bytes(64 * layout.MIB))
_DEEP: Any = {}
for _ in range(40):
    _DEEP = {"in": _DEEP}

DEFECTS: dict[str, Broken] = {
    "not-ckpt": lambda _: b"PK\x03\x04 this is something else\n",
    "empty": _cut(0),
    "version-2": lambda image: put_together(_changed_version(image, 2, {"ckpt": "3.1.4", "format": "another"})),
    "version-unlike-ours": lambda _: layout.MAGIC_WORD + b"\x63\xc1\xc1\xc1",
    "cut-in-magic": _cut(4),
    "cut-in-header": _cut(60),
    "cut-in-section": _cut(300),
    "cut-in-chunk": _cut(700),
    "cut-before-index": lambda image: image[: image.index(b"\x94\xa5index")],
    "cut-in-trailer": lambda image: image[:-1],
    "trailing-byte": lambda image: image + b"\n",
    "trailing-image": lambda image: image + image,
    "bit-in-magic": _flip(3),
    "bit-in-header": _flip(20),
    "bit-in-section": _flip_in(SectionHead, 60),
    "bit-in-chunk-head": _flip_in(ChunkHead, 2, 1),
    "bit-in-chunk-digest": _flip_in(ChunkHead, 20),
    "bit-in-chunk-payload": _flip_in(ChunkHead, 55),
    "bit-in-index": _flip_in(IndexHead, 80),
    "bit-in-trailer-offset": _flip(-35),
    "bit-in-trailer-digest": _flip(-1),
    "bit-in-trailer-type": _flip(-46),
    "header-without-id": _header("id"),
    "header-with-text-for-time": _header("created", "yesterday"),
    "header-with-unknown-field": lambda image: _frames(lambda parts: _map(parts).update(parity=True))(image),
    "header-too-long": _header("ckpt", "x" * 5000),
    "digest-unknown": _header("digest", "md5"),
    "frame-unknown": _unknown_frame,
    "frame-number-gap": _gap,
    "frame-head-too-long": _long_head,
    "frame-not-an-array": lambda image: image.replace(b"\x96\xa7section\x01", b"\x80\xa7section\x01", 1),
    "frame-with-fields-of-other-types": _head(SectionHead, name=7),
    "frame-with-negative-number": _head(ChunkHead, raw=-1, fit_index=False),
    "payload-encoded-otherwise": _other_payload_encoding,
    "payload-too-large": lambda image: image.replace(b"\xc6\x00\x00\x00\x12", b"\xc6\x7f\x00\x00\x12", 1),
    "section-name-not-allowed": _head(SectionHead, name="../group"),
    "section-twice": _head(SectionHead, 1, name="group"),
    "section-not-msgpack": _payload(SectionHead, b"\xc1\xc1"),
    "section-not-a-map": _payload(SectionHead, pack(["group"])),
    "section-with-rest": _payload(SectionHead, pack({}) + b"\x00"),
    "section-with-key-twice": _payload(SectionHead, b"\x82\xa1a\x01\xa1a\x02"),
    "section-with-extension": _payload(SectionHead, b"\x81\xa1a\xd4\x05\x00"),
    "section-with-timestamp": _payload(SectionHead, b"\x81\xa1a\xd6\xff\x00\x00\x00\x00"),
    "section-claiming-gigabytes": _payload(SectionHead, b"\x81\xa1a" + b"\xdd\x00\xff\xff\xff" * 30),
    "section-nested-deep": _payload(SectionHead, pack(_DEEP)),
    "file-name-with-path": _head(FileHead, name="../../etc/passwd"),
    "file-name-absolute": _head(FileHead, name="/etc/passwd"),
    "file-name-dots": _head(FileHead, name=".."),
    "file-name-empty": _head(FileHead, name=""),
    "file-name-too-long": _head(FileHead, name="x" * 256),
    "file-twice": _head(FileHead, 1, name="pages-1.img"),
    "file-number-gap": _head(FileHead, 2, file=7),
    "file-not-closed": _without(CloseHead, 3),
    "file-closed-twice": _insert(IndexHead, CloseHead(2, 0, 0)),
    "file-length-wrong": _head(CloseHead, 1, length=4000),
    "chunk-missing": _without(ChunkHead, 1),
    "chunk-of-no-file": _insert(FileHead, ChunkHead(0, 1, "none"), b"x"),
    "chunk-of-closed-file": _insert(IndexHead, ChunkHead(0, 1, "none"), b"x"),
    "chunk-codec-unknown": _head(ChunkHead, codec="brotli"),
    "chunk-too-large": _head(ChunkHead, raw=1 << 40),
    "chunk-of-nothing": _payload(ChunkHead, b"", raw=0),
    "chunk-stored-longer-than-raw": _payload(ChunkHead, b"x" * 81, 4, codec="none"),
    "chunk-not-zstd": _payload(ChunkHead, b"not zstd at all", codec="zstd"),
    "chunk-zstd-bomb": _payload(ChunkHead, _BOMB[:3000], codec="zstd"),
    "chunk-zstd-cut": _frames(lambda parts: _shorten(parts, 0)),
    "chunk-not-lz4": _payload(ChunkHead, b"\xff\xff\xff\xff\xff", codec="lz4"),
    "chunk-lz4-short": _payload(ChunkHead, b"\x10x", codec="lz4"),
    "chunk-none-short": _payload(ChunkHead, b"x" * 79, 4, codec="none"),
    "index-missing": _no_index,
    "index-not-last": _frame_after_index,
    "index-without-a-file": _payload(IndexHead, pack({"sections": [], "files": []})),
    "index-with-other-offsets": lambda image: _frames(_shift_offset, fit_index=False)(image),
    "index-with-path": lambda image: _frames(_rename_in_index, fit_index=False)(image),
    "trailer-with-other-offset": lambda image: image[:-42] + struct.pack(">Q", 102) + image[-34:],
}


def _changed_version(image: bytes, version: int, header: dict[str, object]) -> Parts:
    parts = take_apart(image)
    parts.header[1:] = [version, header]
    return parts


def _map(parts: Parts) -> dict[str, object]:
    header = parts.header[2]
    assert isinstance(header, dict)
    return header


def _shorten(parts: Parts, number: int) -> None:
    at = parts.find(ChunkHead, number)
    head, payload = parts.frames[at]
    parts.frames[at] = (head, payload[:-3])


def _shift_offset(parts: Parts) -> None:
    at = parts.find(IndexHead)
    head, payload = parts.frames[at]
    offset = payload.index(b"\xa6offset") + 7
    parts.frames[at] = (head, payload[:offset] + bytes([payload[offset] + 1]) + payload[offset + 1 :])


def _rename_in_index(parts: Parts) -> None:
    at = parts.find(IndexHead)
    head, payload = parts.frames[at]
    parts.frames[at] = (head, payload.replace(b"\xabpages-1.img", b"\xab/etc/shadow"))


def make(name: str) -> bytes:
    """The image with the defect ``name``."""
    return DEFECTS[name](SOUND.read_bytes())


if __name__ == "__main__":
    for defect in DEFECTS:
        (IMAGES / "broken" / f"{defect}.ckpt").write_bytes(make(defect))
