"""Every golden image still says what its twin says, and what was read out of it can be written again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from ckpt.image import FileData, Reader, StreamReader, Writer
from ckpt.image.layout import SectionHead
from ckpt.image.wire import pack
from tests.unit.broken_images import IMAGES
from tests.unit.image_samples import put_together, take_apart
from tests.unit.image_twins import render, twin, twin_path

GOLDEN = sorted((IMAGES / "golden").glob("v*/*.ckpt"))


def by_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_golden_has_an_image_for_each_codec_of_version_1() -> None:
    codecs = set()
    for path in GOLDEN:
        with Reader(path) as reader:
            codecs.add((path.parent.name, reader.header.codec))
    assert {("v1", "zstd"), ("v1", "lz4"), ("v1", "none")} <= codecs


@pytest.mark.parametrize("path", GOLDEN, ids=by_name)
def test_golden_image_reads_as_its_twin(path: Path) -> None:
    text = twin_path(path).read_text()
    assert twin(path) == json.loads(text)
    assert render(twin(path)) == text


@pytest.mark.parametrize("path", GOLDEN, ids=by_name)
def test_golden_image_reads_the_same_from_a_stream(path: Path) -> None:
    stream = StreamReader(io.BytesIO(path.read_bytes()))
    contents = dict.fromkeys(Reader(path).files, b"")
    for event in stream.events():
        if isinstance(event, FileData):
            contents[event.name] += event.data
    with Reader(path) as reader:
        assert contents == {name: reader.open(name).read() for name in reader.files}
        assert stream.sections.names == tuple(reader.sections)
        assert all(stream.sections.map(name) == reader.section_map(name) for name in reader.sections)
        assert stream.summary == reader.verify()


@pytest.mark.parametrize("path", GOLDEN, ids=by_name)
def test_golden_image_written_again_says_the_same(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.ckpt"
    with Reader(path) as reader, again.open("wb") as out, Writer(out, reader.header.codec) as writer:
        for name, info in reader.sections.items():
            writer.section(name, dict(reader.section_map(name)), optional=info.optional)
        for name in reader.files:
            writer.add_file(name, reader.open(name))
        writer.finish()
    before, after = twin(path), twin(again)
    assert after["sections"] == before["sections"]
    assert _contents(after) == _contents(before)


@pytest.mark.parametrize("path", GOLDEN, ids=by_name)
def test_golden_image_is_encoded_as_it_would_be_today(path: Path) -> None:
    image = path.read_bytes()
    parts = take_apart(image)
    assert put_together(parts) == image
    with Reader(path) as reader:
        for head, payload in parts.frames:
            if isinstance(head, SectionHead):
                assert pack(reader.section_map(head.name)) == payload


def _contents(found: dict[str, object]) -> dict[str, object]:
    files = found["files"]
    assert isinstance(files, dict)
    return {name: (info["length"], info["sha256"]) for name, info in files.items()}
