"""Images written and read back whole, in every shape; and damaged in every way, always noticed."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.errors import CkptError, ImageError
from ckpt.image import FileClosed, FileData, FileOpened, Reader, StreamReader, Writer, extract, layout
from tests.unit.image_samples import CONTENTS, RECORD, noise, sample

CODECS = ("zstd", "lz4", "none")


def read_stream(image: bytes) -> dict[str, bytes]:
    """The contents of the files in ``image``, read from first to last."""
    contents: dict[str, bytes] = {}
    closed = set()
    for event in StreamReader(io.BytesIO(image)).events():
        match event:
            case FileOpened(_, name):
                contents[name] = b""
            case FileData(_, name, data):
                contents[name] += data
            case FileClosed(_, name, length):
                assert len(contents[name]) == length
                closed.add(name)
    assert closed == set(contents)
    return contents


def read_file(path: Path) -> dict[str, bytes]:
    """The contents of the files in the image at ``path``, read by its index."""
    with Reader(path) as reader:
        return {name: reader.open(name).read() for name in reversed(list(reader.files))}


_names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,20}", fullmatch=True)
_pieces = st.binary(max_size=300) | st.integers(0, 5000).map(bytes) | st.integers(1, 5000).map(noise)


@settings(max_examples=60, deadline=None)
@given(
    codec=st.sampled_from(CODECS),
    names=st.lists(_names, max_size=5, unique=True),
    steps=st.lists(st.tuples(st.integers(0, 4), _pieces, st.booleans()), max_size=30),
)
def test_image_of_interleaved_files_reads_as_written(
    tmp_path_factory: pytest.TempPathFactory, codec: str, names: list[str], steps: list[tuple[int, bytes, bool]]
) -> None:
    contents = dict.fromkeys(names, b"")
    out = io.BytesIO()
    with Writer(out, codec) as writer:
        files = [writer.open_file(name) for name in names]
        for which, piece, flush in steps if files else []:
            file = files[which % len(files)]
            file.write(piece)
            contents[file.name] += piece
            if flush:
                file.flush()
        for file in files:
            file.close()
        summary = writer.finish()
    assert summary.size == len(out.getvalue())
    assert summary.raw == sum(map(len, contents.values()))
    assert read_stream(out.getvalue()) == contents
    path = tmp_path_factory.mktemp("image") / "a.ckpt"
    path.write_bytes(out.getvalue())
    assert read_file(path) == contents
    with Reader(path) as reader:
        assert reader.verify() == summary


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [0, 1, layout.CHUNK - 1, layout.CHUNK, layout.CHUNK + 1, 3 * layout.CHUNK + 7])
def test_file_of_any_size_is_cut_into_full_chunks(codec: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    data = noise(size)
    with path.open("wb") as out, Writer(out, codec) as writer:
        writer.add_file("pages-1.img", io.BytesIO(data))
        writer.finish()
    with Reader(path) as reader:
        assert reader.files["pages-1.img"].chunks == -(-size // layout.CHUNK)
        assert reader.files["pages-1.img"].length == size
        assert reader.open("pages-1.img").read() == data


@pytest.mark.parametrize("codec", CODECS)
def test_chunk_that_does_not_compress_is_stored_as_it_is(codec: str) -> None:
    image = sample(codec)
    assert noise(150) in image
    assert read_stream(image) == CONTENTS


def test_sections_read_back_in_their_order_with_their_flags() -> None:
    stream = StreamReader(io.BytesIO(sample()))
    before = stream.sections.names  # those before the first file are there at once
    assert stream.sections.map("group") == RECORD
    assert sum(isinstance(event, FileOpened) for event in stream.events()) == len(CONTENTS)
    assert (before, stream.sections.names) == (("group", "hint"), ("group", "hint", "network"))


@pytest.mark.parametrize("read", ["file", "stream"])
def test_section_unknown_is_refused_by_name_unless_optional(read: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(sample())

    def open_with(known: set[str]) -> None:
        if read == "file":
            Reader(path, known=known).close()
        else:
            list(StreamReader(path.open("rb", buffering=0), label=str(path), known=known).events())

    open_with({"group", "network"})
    with pytest.raises(ImageError) as refused:
        open_with({"group", "hint"})
    assert refused.value.code == "image-section-unknown"
    assert str(refused.value) == f"{path} needs a section that this ckpt does not know: section network"


@pytest.mark.parametrize("codec", CODECS)
def test_image_cut_at_any_byte_is_truncated(codec: str, tmp_path: Path) -> None:
    image = sample(codec)
    path = tmp_path / "a.ckpt"
    for size in range(len(image)):
        with pytest.raises(ImageError) as refused:
            read_stream(image[:size])
        assert refused.value.code == "image-truncated", size
        path.write_bytes(image[:size])
        with pytest.raises(ImageError) as refused:
            Reader(path)
        assert refused.value.code == "image-truncated", size


@pytest.mark.parametrize("codec", CODECS)
def test_image_with_any_bit_flipped_is_refused(codec: str, tmp_path: Path) -> None:
    image = sample(codec)
    path = tmp_path / "a.ckpt"
    chosen = random.Random(codec)
    for offset in range(len(image)):
        changed = bytearray(image)
        changed[offset] ^= 1 << chosen.randrange(8)
        with pytest.raises(ImageError):
            read_stream(bytes(changed))
        path.write_bytes(changed)
        with pytest.raises(ImageError), Reader(path) as reader:
            reader.verify()


@pytest.mark.parametrize("codec", CODECS)
def test_bit_flipped_in_a_chunk_is_found_before_its_data_is_handed_out(codec: str, tmp_path: Path) -> None:
    image = sample(codec)
    path = tmp_path / "a.ckpt"
    for offset in range(len(image)):
        changed = bytearray(image)
        changed[offset] ^= 0x04
        seen = dict.fromkeys(CONTENTS, b"")
        with pytest.raises(ImageError):
            _collect(bytes(changed), seen)
        assert all(CONTENTS[name].startswith(data) for name, data in seen.items())
        path.write_bytes(changed)
        try:
            assert read_file(path) == CONTENTS  # a bit of what no file needs
        except ImageError:
            continue


def _collect(image: bytes, seen: dict[str, bytes]) -> None:
    for event in StreamReader(io.BytesIO(image)).events():
        if isinstance(event, FileData):
            seen[event.name] += event.data


@settings(max_examples=300, deadline=None)
@given(
    codec=st.sampled_from(CODECS),
    edits=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.05), st.binary(max_size=40)), min_size=1, max_size=4),
)
def test_mutated_image_raises_nothing_but_our_errors(
    tmp_path_factory: pytest.TempPathFactory, codec: str, edits: list[tuple[float, float, bytes]]
) -> None:
    image = SAMPLES[codec]
    for start, length, data in edits:
        at = int(start * len(image))
        image = image[:at] + data + image[at + int(length * len(image)) :]
    try:
        assert read_stream(image) == CONTENTS
    except CkptError:
        assert image != SAMPLES[codec]
    path = tmp_path_factory.getbasetemp() / "mutated.ckpt"
    path.write_bytes(image)
    try:
        assert read_file(path) == CONTENTS
    except CkptError:
        assert image != SAMPLES[codec]


SAMPLES = {codec: sample(codec) for codec in CODECS}


class _Trickle(io.RawIOBase):
    """A pipe that gives one byte at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer, here always a view
        count = min(1, len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


def test_stream_that_gives_single_bytes_reads_the_same() -> None:
    data = [event.data for event in StreamReader(_Trickle(sample())).events() if isinstance(event, FileData)]
    assert sorted(b"".join(data)) == sorted(b"".join(CONTENTS.values()))


def test_image_written_to_a_pipe_is_extracted_at_its_other_end(tmp_path: Path) -> None:
    data = {"pages-1.img": noise(3 * layout.CHUNK + 5), "core-1.img": bytes(2 * layout.CHUNK), "fs-1.img": b""}
    read_end, write_end = os.pipe()

    def write() -> None:
        with open(write_end, "wb", buffering=0) as out, Writer(out) as writer:
            for name, content in data.items():
                writer.add_file(name, io.BytesIO(content))
            writer.finish()

    thread = threading.Thread(target=write)
    thread.start()
    with open(read_end, "rb", buffering=0) as source:
        stream = StreamReader(source)
        lengths = extract(stream.events(), tmp_path)
    thread.join()
    assert lengths == {name: len(content) for name, content in data.items()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == data


def test_header_is_read_from_a_pipe_that_says_no_more_yet() -> None:
    read_end, write_end = os.pipe()
    image = sample()
    first_file = image.index(b"\xa4file") - 1
    first_file_end = image.index(b"\xa4file", first_file + 2) - 1
    with open(read_end, "rb", buffering=0) as source, open(write_end, "wb", buffering=0) as out:
        out.write(image[:first_file_end])
        assert StreamReader(source).sections.names == ("group", "hint")


_WRITE = """
import resource
from ckpt.image import Writer

class Sink:
    def write(self, data):
        return len(data)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

block = b"".join(i.to_bytes(4, "little") * 3 for i in range(1 << 17))[: 1 << 20]
before = peak()
with Writer(Sink(), {codec!r}) as writer:
    files = [writer.open_file(f"pages-{{i}}.img") for i in range(200)]
    for number in range(512):
        view = memoryview(block)
        for start in range(0, len(block), 1 << 16):
            files[(number * 16 + start // (1 << 16)) % 200].write(view[start : start + (1 << 16)])
    for file in files:
        file.close()
    summary = writer.finish()
assert summary.raw == 512 << 20, summary
print(peak() - before)
"""

_READ = """
import resource, sys
from ckpt.image import FileData, Reader, StreamReader

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
total = sum(len(event.data) for event in StreamReader(sys.stdin.buffer.raw).events() if isinstance(event, FileData))
assert total == 256 << 20, total
print(peak() - before)
"""


@pytest.mark.parametrize("codec", CODECS)
def test_writing_512_mib_takes_less_than_64_mib_of_memory(codec: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WRITE.format(codec=codec)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 64 * 1024


def test_reading_256_mib_takes_less_than_64_mib_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.ckpt"
    with path.open("wb") as out, Writer(out) as writer:
        with writer.open_file("pages-1.img") as file:
            for _ in range(64):
                file.write(bytes(4 * layout.MIB))
        writer.finish()
    with path.open("rb") as image:
        done = subprocess.run([sys.executable, "-c", _READ], stdin=image, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 * 1024
