"""The twin of an image: all that it says, as JSON that a reader can compare line by line.

``python -m tests.unit.image_twins IMAGE…`` writes ``IMAGE.json`` beside each: once, when an image becomes a golden
one. From then on the twin is what every later ckpt must still read out of the image.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from ckpt.image import Reader
from ckpt.image.defect import Place
from ckpt.image.frames import FrameReader, Source, Trailer
from ckpt.image.reader import At


def twin(path: Path) -> dict[str, object]:
    """Everything in the image at ``path``, after all of it was verified. Bytes stand as {"bytes": hex}."""
    with Reader(path) as reader:
        summary = reader.verify()
        files = {name: _file(reader, name) for name in reader.files}
        sections = {
            name: {"optional": info.optional, "length": info.length, "record": _plain(reader.section_map(name))}
            for name, info in reader.sections.items()
        }
        header = {name: getattr(reader.header, name) for name in ("id", "created", "ckpt", "digest", "codec")}
    return {
        "header": header,
        "sections": sections,
        "files": files,
        "frames": _frames(path),
        "digest": summary.digest,
        "size": summary.size,
    }


def render(found: dict[str, object]) -> str:
    """A twin as the text of its file."""
    return json.dumps(found, indent=1) + "\n"


def twin_path(image: Path) -> Path:
    """Where the twin of ``image`` lies."""
    return image.with_name(image.name + ".json")


def _file(reader: Reader, name: str) -> dict[str, object]:
    info = reader.files[name]
    digest = hashlib.sha256()
    for data in reader.open(name).chunks():
        digest.update(data)
    return {"length": info.length, "stored": info.stored, "chunks": info.chunks, "sha256": digest.hexdigest()}


def _frames(path: Path) -> list[str]:
    """One line for each frame: the order and the compression are part of what must stay readable."""
    lines = []
    with path.open("rb") as image:
        reader, _ = FrameReader.at_start(Source(At(image.fileno())), Place(str(path)))
        while not isinstance(frame := reader.next(), Trailer):
            values = "".join(f" {field.name} {getattr(frame.head, field.name)}" for field in fields(frame.head))
            lines.append(f"{frame.offset}: {frame.head.TYPE}{values}, {frame.length} stored")
    return lines


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        twin_path(Path(argument)).write_text(render(twin(Path(argument))))
