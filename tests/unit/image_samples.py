"""Images made for the tests, and the frames they consist of.

``sample`` is one small image with all that the format has: interleaved files, an empty one, a file of several chunks,
an optional section, data that compresses and data that does not. ``take_apart`` and ``put_together`` let a test
change anything in an image and seal it again as if a writer had meant it.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from ckpt.image import Writer, layout
from ckpt.image.defect import Place
from ckpt.image.frames import FrameReader, Source, Trailer, seal, seal_trailer
from ckpt.image.layout import Head
from ckpt.image.wire import pack, pack_head

RECORD = {
    "name": "redis",
    "root": 71,
    "frozen": 0.25,
    "leave_running": False,
    "parent": None,
    "path": b"/proc/\xff".decode("utf-8", "surrogateescape"),
    "cookie": b"\x00\x01\xfe\xff",
    "addresses": ["10.0.0.2/24", "fd00::2/64"],
    "sysctls": {"net.ipv4.ip_forward": "1"},
    "inode": 2**63,
}


def noise(size: int, seed: int = 1) -> bytes:
    """``size`` bytes that do not compress, always the same."""
    return random.Random(seed).randbytes(size)


CONTENTS = {
    "inventory.img": b"\x58\x31\x33\x17" * 20,
    "pages-1.img": bytes(600) + noise(150) + b"abcdefgh" * 100,
    "core-71.img": b"core" * 40,
    "empty.img": b"",
}


def sample(codec: str = "zstd") -> bytes:
    """A small image that has everything; see the module."""
    out = io.BytesIO()
    with Writer(out, codec) as writer:
        writer.section("group", RECORD)
        writer.section("hint", {"for": "a newer ckpt"}, optional=True)
        with writer.open_file("pages-1.img") as pages, writer.open_file("core-71.img") as core:
            pages.write(CONTENTS["pages-1.img"][:600])
            pages.flush()
            core.write(CONTENTS["core-71.img"])
            core.flush()
            pages.write(CONTENTS["pages-1.img"][600:750])
            pages.flush()
            pages.write(CONTENTS["pages-1.img"][750:])
        writer.open_file("empty.img").close()
        writer.section("network", {})
        writer.add_file("inventory.img", io.BytesIO(CONTENTS["inventory.img"]))
        writer.finish()
    return out.getvalue()


@dataclass
class Parts:
    """An image taken apart; ``header`` holds the elements of its first frame."""

    header: list[object]
    frames: list[tuple[Head, bytes]] = field(default_factory=list)

    def find(self, kind: type[Head], number: int = 0) -> int:
        """Where in ``frames`` the frame of ``kind`` with that number stands."""
        return [at for at, (head, _) in enumerate(self.frames) if isinstance(head, kind)][number]


def take_apart(image: bytes) -> Parts:
    """The frames of ``image``, the header first, without the trailer."""
    reader, header = FrameReader.at_start(Source(io.BytesIO(image)), Place("sample"))
    names = ("id", "created", "ckpt", "digest", "codec")
    parts = Parts(["ckpt", layout.VERSION, {name: getattr(header, name) for name in names}])
    while not isinstance(frame := reader.next(), Trailer):
        parts.frames.append((frame.head, bytes(frame.payload)))
    return parts


def put_together(parts: Parts, numbers: Sequence[int] | None = None) -> bytes:
    """The image of ``parts`` with every digest right; ``numbers`` are those of the frames (from 1 on when None)."""
    image = pack_head(parts.header, 0)
    seed = layout.digest(_digest_of(parts), image)
    whole = seed.copy()
    offset = 0
    for number, (head, payload) in zip(numbers or range(1, len(parts.frames) + 1), parts.frames, strict=True):
        offset = len(image)
        sealed, digest = seal(seed, number, head, payload)
        whole.update(digest)
        image += sealed + payload
    whole.update(offset.to_bytes(8, "big"))
    return image + seal_trailer(Trailer(offset, whole.digest()))


def _digest_of(parts: Parts) -> str:
    """The digest that the header names, or the first that there was where it names none that there is."""
    header = parts.header[2]
    named = header.get("digest") if isinstance(header, dict) else None
    return named if isinstance(named, str) and named in layout.DIGESTS else "blake2b-256"


def put_index(parts: Parts) -> None:
    """Give ``parts`` the index that fits its frames, whatever they are."""
    at = parts.find(layout.IndexHead)
    sections: list[object] = []
    files: list[dict[str, object]] = []
    offset = len(pack_head(parts.header, 0))
    seed = layout.digest(_digest_of(parts))
    for number, (head, payload) in enumerate(parts.frames[:at], 1):
        if isinstance(head, layout.SectionHead):
            optional = {"optional": True} if head.optional else {}
            sections.append({"name": head.name, **optional, "offset": offset, "length": len(payload)})
        elif isinstance(head, layout.FileHead):
            files.append({"name": head.name})
        elif isinstance(head, layout.ChunkHead) and head.file < len(files):
            _add_chunk(files[head.file], head.raw, len(payload), offset)
        offset += len(seal(seed, number, head, payload)[0]) + len(payload)
    parts.frames[at] = (layout.IndexHead(), pack({"sections": sections, "files": files}))


def _add_chunk(entry: dict[str, object], raw: int, stored: int, offset: int) -> None:
    for name, more in (("length", raw), ("stored", stored)):
        had = entry.get(name, 0)
        assert isinstance(had, int)
        entry[name] = had + more
    had = entry.get("chunks", b"")
    assert isinstance(had, bytes)
    entry["chunks"] = had + offset.to_bytes(8, "big")
