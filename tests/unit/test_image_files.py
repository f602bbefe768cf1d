"""Images as files: how they get their name, what an output or a directory refuses; and a failure leaves nothing."""

from __future__ import annotations

import errno
import io
import os
import random
import resource
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckpt.errors import (
    CkptError,
    ExistsError,
    ImageError,
    NotFoundError,
    PermissionDeniedError,
    StorageError,
    UsageError,
)
from ckpt.image import Reader, StreamReader, Writer, created, layout
from tests.unit.image_samples import CONTENTS, noise, put_together, sample, take_apart

NOBODY = 65534


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.ckpt"
    path.write_bytes(sample())
    return path


@pytest.fixture
def closed_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory with an image in it that this process may not enter, as root neither."""
    directory = tmp_path / "closed"
    directory.mkdir()
    (directory / "a.ckpt").write_bytes(sample())
    directory.chmod(0)
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield directory
    finally:
        os.seteuid(was)
        directory.chmod(0o700)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file can grow beyond ``size``: what a full disk does, for anyone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def listing(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_created_file_has_its_name_only_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with created(path) as out:
        out.write(b"whole")
        assert not path.exists()
        (partial,) = listing(tmp_path)
        assert partial.startswith(".a.ckpt.partial-")
        assert stat.S_IMODE((tmp_path / partial).stat().st_mode) == 0o600
    assert listing(tmp_path) == ["a.ckpt"]
    assert path.read_bytes() == b"whole"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def fail_while_creating(path: Path, error: BaseException) -> None:
    with created(path) as out:
        out.write(b"half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_created_leaves_nothing_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fail_while_creating(tmp_path / "a.ckpt", error)
    assert listing(tmp_path) == []


def test_created_refuses_a_name_that_is_taken_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"mine")
    with pytest.raises(ExistsError) as refused, created(path):
        pytest.fail("no work may be done")
    assert (refused.value.code, str(refused.value)) == ("image-exists", f"{path} exists")
    assert (listing(tmp_path), path.read_bytes()) == (["a.ckpt"], b"mine")


def create_while_taken(path: Path) -> None:
    with created(path) as out:
        out.write(b"late")
        path.write_bytes(b"mine")


def test_created_refuses_a_name_that_was_taken_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(ExistsError) as refused:
        create_while_taken(path)
    assert refused.value.code == "image-exists"
    assert (listing(tmp_path), path.read_bytes()) == (["a.ckpt"], b"mine")


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system like FAT."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("without_links")
def test_created_where_there_are_no_hard_links_never_replaces_either(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with created(path) as out:
        out.write(b"whole")
    assert (listing(tmp_path), path.read_bytes()) == (["a.ckpt"], b"whole")
    with pytest.raises(ExistsError):
        create_while_taken(tmp_path / "b.ckpt")
    assert (listing(tmp_path), (tmp_path / "b.ckpt").read_bytes()) == (["a.ckpt", "b.ckpt"], b"mine")


def test_created_whose_name_cannot_be_synced_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.fsync

    def sync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        really(fd)

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(StorageError) as refused, created(tmp_path / "a.ckpt"):
        pass
    assert refused.value.code == "storage-write"
    assert listing(tmp_path) == []


def test_created_with_force_replaces_a_file_but_not_what_a_link_points_to(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    path = tmp_path / "a.ckpt"
    path.symlink_to("other")
    with pytest.raises(ExistsError), created(path):
        pass
    with created(path, force=True) as out:
        out.write(b"new")
    assert (path.is_symlink(), path.read_bytes()) == (False, b"new")
    assert (tmp_path / "other").read_bytes() == b"other"


@pytest.mark.parametrize("force", [False, True])
def test_created_refuses_a_directory(tmp_path: Path, force: bool) -> None:
    for path in (tmp_path, tmp_path / "..", Path("/")):
        with pytest.raises(ImageError) as refused, created(path, force=force):
            pass
        assert refused.value.code == "image-is-directory"
    assert listing(tmp_path) == []


def test_created_names_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "no" / "a.ckpt"
    with pytest.raises(NotFoundError) as refused, created(path):
        pass
    assert refused.value.code == "directory-missing"
    assert str(refused.value) == f"{path} could not be written: there is no directory {path.parent}"


def test_created_in_a_directory_that_is_closed_is_denied(closed_directory: Path) -> None:
    with pytest.raises(PermissionDeniedError) as refused, created(closed_directory / "b.ckpt"):
        pass
    assert refused.value.code == "image-permission"


def test_created_takes_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".ckpt")
    with created(path) as out:
        out.write(b"whole")
    assert listing(tmp_path) == [path.name]


def write_large(path: Path) -> None:
    with created(path) as out, Writer(out, "none", label=str(path)) as writer:
        writer.add_file("pages-1.img", io.BytesIO(bytes(layout.MIB)))
        writer.finish()


def test_writer_without_space_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with file_size_limit(300_000), pytest.raises(StorageError) as refused:
        write_large(path)
    assert refused.value.code == "storage-full"
    details = "the file is too large after 300000 bytes, and more was to come"
    assert str(refused.value) == f"{path} could not be written: {details}"
    assert listing(tmp_path) == []


def write_sample_to(path: str) -> None:
    with open(path, "wb", buffering=0) as out, Writer(out) as writer:
        writer.finish()


def test_writer_on_a_full_device_says_so() -> None:
    with pytest.raises(StorageError) as refused:
        write_sample_to("/dev/full")
    assert refused.value.code == "storage-full"
    assert str(refused.value) == (
        "the image could not be written: no space is left after 0 bytes, and more was to come"
    )


def test_writer_on_a_pipe_that_nobody_reads_says_so() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb", buffering=0) as out, pytest.raises(StorageError) as refused:
        Writer(out)
    assert refused.value.code == "storage-closed"


class _ShortWrites(io.RawIOBase):
    """Takes at most seven bytes at a time, as a pipe may."""

    def __init__(self) -> None:
        self.taken = b""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # any buffer
        self.taken += bytes(data[:7])
        return len(data[:7])


def test_writer_goes_on_after_a_short_write() -> None:
    out = _ShortWrites()
    with Writer(out) as writer:
        writer.section("group", {"name": "redis"})
        writer.add_file("pages-1.img", io.BytesIO(noise(500)))
        writer.finish()
    assert sum(1 for _ in StreamReader(io.BytesIO(out.taken)).events()) == 3


def open_many(writer: Writer) -> None:
    for number in range(layout.MAX_OPEN + 1):
        writer.open_file(f"file-{number}")


def open_twice(writer: Writer) -> None:
    writer.open_file("a.img").close()
    writer.open_file("a.img")


def section_twice(writer: Writer) -> None:
    writer.section("group", {})
    writer.section("group", {})


def leave_open(writer: Writer) -> None:
    writer.open_file("a.img")
    writer.finish()


@pytest.mark.parametrize(
    ("act", "code", "message"),
    [
        (lambda writer: writer.open_file("../a"), "image-name", "holds a name that is not allowed: file '../a': "),
        (lambda writer: writer.open_file("a\n"), "image-name", "holds a name that is not allowed: file 'a\\n': "),
        (lambda writer: writer.section("A", {}), "image-name", "holds a name that is not allowed: section 'A': "),
        (open_twice, "image-duplicate", "holds a name twice: file 'a.img': file a.img"),
        (section_twice, "image-duplicate", "holds a name twice: section 'group': section group"),
        (open_many, "image-limit", "exceeds a limit of the format: file 'file-256': more than 256 files open at once"),
        (leave_open, "image-malformed", "does not follow the format: index: file a.img is not closed"),
        (
            lambda writer: writer.section("a", {"n": 1 << 64}),
            "image-limit",
            "exceeds a limit of the format: section 'a': an integer beyond 64 bits",
        ),
        (
            lambda writer: writer.section("a", {"n": bytes(layout.MAX_SECTION)}),
            "image-limit",
            "exceeds a limit of the format: section 'a': a section of 16777224 bytes, at most 16777216",
        ),
    ],
)
def test_writer_refuses_what_a_reader_would(act: Callable[[Writer], None], code: str, message: str) -> None:
    with Writer(io.BytesIO()) as writer, pytest.raises(ImageError) as refused:
        act(writer)
    assert refused.value.code == code
    assert str(refused.value).startswith(f"the image {message}")


@pytest.mark.parametrize(("codec", "level"), [("gzip", None), ("zstd", 23), ("lz4", 0), ("none", 1)])
def test_writer_refuses_a_compression_that_is_none(codec: str, level: int | None) -> None:
    out = io.BytesIO()
    with pytest.raises(UsageError):
        Writer(out, codec, level)
    assert out.getvalue() == b""


@pytest.mark.parametrize(("codec", "level"), [("zstd", 19), ("zstd", -5), ("lz4", 9), ("none", 0)])
def test_writer_at_any_level_writes_what_a_reader_reads(codec: str, level: int) -> None:
    out = io.BytesIO()
    with Writer(out, codec, level) as writer:
        writer.add_file("pages-1.img", io.BytesIO(CONTENTS["pages-1.img"]))
        summary = writer.finish()
    stream = StreamReader(io.BytesIO(out.getvalue()))
    assert len(list(stream.events())) == 3
    assert stream.summary == summary


def test_writer_refuses_bytes_for_a_closed_file() -> None:
    with Writer(io.BytesIO()) as writer:
        file = writer.open_file("a.img")
        file.close()
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.write(b"late")


def _directory(path: Path) -> Path:
    return path.parent


def _missing(path: Path) -> Path:
    return path / "below"


def _fifo(path: Path) -> Path:
    os.mkfifo(path.with_name("fifo"))
    return path.with_name("fifo")


@pytest.mark.parametrize(
    ("make", "kind", "code", "message"),
    [
        (_directory, ImageError, "image-is-directory", "{} is a directory"),
        (_missing, NotFoundError, "image-missing", "there is no image {}"),
        (_fifo, ImageError, "image-not-file", "{} is not a regular file"),
        (lambda _: Path("/dev/zero"), ImageError, "image-not-file", "{} is not a regular file"),
        (
            lambda _: Path("/tmp/" + "x" * 300),
            StorageError,
            "storage-read",
            "{} could not be opened: File name too long",
        ),
    ],
)
def test_reader_names_what_is_no_image(
    image: Path, make: Callable[[Path], Path], kind: type[CkptError], code: str, message: str
) -> None:
    path = make(image)
    with pytest.raises(kind) as refused:
        Reader(path)
    assert (refused.value.code, str(refused.value)) == (code, message.format(path))


def test_reader_of_an_unreadable_image_is_denied(closed_directory: Path) -> None:
    with pytest.raises(PermissionDeniedError) as refused:
        Reader(closed_directory / "a.ckpt")
    assert refused.value.code == "image-permission"


def test_reader_names_what_the_image_lacks(image: Path) -> None:
    with Reader(image) as reader:
        with pytest.raises(ImageError) as refused:
            reader.open("mm-1.img")
        assert (refused.value.code, str(refused.value)) == (
            "image-file-missing",
            f"{image} lacks a file: file mm-1.img",
        )
        with pytest.raises(ImageError) as refused:
            reader.section_map("criu")
        assert refused.value.code == "image-section-missing"
        assert str(refused.value) == f"{image} lacks a section: section criu"


def test_reader_finds_where_a_large_image_is_cut_without_reading_it(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with image.open("wb") as out, Writer(out, "none") as writer:
        writer.add_file("pages-1.img", io.BytesIO(bytes(16 * layout.MIB)))
        writer.finish()
    os.truncate(image, image.stat().st_size - 1)
    really, seen = os.preadv, []

    def count(*arguments: Any) -> int:
        seen.append(really(*arguments))
        return seen[-1]

    monkeypatch.setattr(os, "preadv", count)
    with pytest.raises(ImageError) as refused:
        Reader(image)
    assert refused.value.code == "image-truncated"
    assert 0 < sum(seen) < 2 * layout.MIB


def test_file_whose_index_has_its_chunks_in_another_order_is_refused(image: Path) -> None:
    parts = take_apart(image.read_bytes())
    at = parts.find(layout.IndexHead)
    with Reader(image) as reader:
        assert reader.files["pages-1.img"].chunks == 3
    head, payload = parts.frames[at]
    begin = payload.index(b"\xa6chunks\xc4\x18") + 9
    first, second = payload[begin : begin + 8], payload[begin + 8 : begin + 16]
    parts.frames[at] = (head, payload[:begin] + second + first + payload[begin + 16 :])
    image.write_bytes(put_together(parts))
    phrase = "has an index that does not fit its frames"
    with Reader(image) as reader, ThreadPoolExecutor(1) as pool:
        for look in (lambda: reader.open("pages-1.img").read(), lambda: reader.lookup("pages-1.img", pool)):
            with pytest.raises(ImageError) as refused:
                look()
            assert str(refused.value) == f"{image} {phrase}: index: the chunks of file pages-1.img go backwards"


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_lookup_finds_every_byte_by_its_place(image: Path, codec: str) -> None:
    content = b"".join(bytes(1000) + noise(layout.MIB // 3, seed) for seed in range(20))
    with image.open("wb") as out, Writer(out, codec) as writer:
        writer.add_file("pages-1.img", io.BytesIO(content))
        writer.finish()
    chance = random.Random(codec)
    with Reader(image) as reader, ThreadPoolExecutor(2) as pool:
        file = reader.lookup("pages-1.img", pool)
        assert file.length == len(content)
        places = [(begin, layout.MIB) for begin in range(0, len(content), layout.MIB)]
        places += [(chance.randrange(len(content)), chance.randrange(3 * layout.MIB)) for _ in range(50)]
        for offset, size in [*places, (len(content) - 1, 2), (len(content), 1), (0, 0)]:
            assert b"".join(file.read(offset, size)) == content[offset : offset + size], (offset, size)


def test_lookup_of_a_damaged_chunk_names_it_and_reads_the_others(image: Path) -> None:
    content = image.read_bytes()
    at = content.index(noise(150)) + 7
    image.write_bytes(content[:at] + b"?" + content[at + 1 :])
    with Reader(image) as reader, ThreadPoolExecutor(1) as pool:
        file = reader.lookup("pages-1.img", pool)
        assert b"".join(file.read(0, 600)) == CONTENTS["pages-1.img"][:600]
        assert b"".join(file.read(750, 9999)) == CONTENTS["pages-1.img"][750:]
        with pytest.raises(ImageError) as refused:
            file.read(600, 1)
    assert refused.value.code == "image-digest"
    assert "(chunk)" in str(refused.value)


def test_verify_reports_progress_up_to_the_whole(image: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Reader(image) as reader:
        reader.verify(lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (image.stat().st_size, image.stat().st_size)
    assert len(seen) > 3


@pytest.mark.parametrize("by_descriptor", [False, True])
def test_extract_makes_new_private_files(image: Path, tmp_path: Path, by_descriptor: bool) -> None:
    target = tmp_path / "criu"
    target.mkdir()
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with Reader(image) as reader:
            reader.extract(fd if by_descriptor else target)
        os.fstat(fd)
    finally:
        os.close(fd)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == CONTENTS
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {0o600}


@pytest.mark.parametrize("link", [False, True])
def test_extract_never_touches_what_is_there(image: Path, tmp_path: Path, link: bool) -> None:
    target = tmp_path / "criu"
    target.mkdir()
    victim = tmp_path / "victim" if link else target / "core-71.img"
    victim.write_bytes(b"mine")
    if link:
        (target / "core-71.img").symlink_to(victim)
    with Reader(image) as reader, pytest.raises(ExistsError) as refused:
        reader.extract(target)
    assert (refused.value.code, str(refused.value)) == ("file-exists", "core-71.img exists")
    assert (listing(target), victim.read_bytes()) == (["core-71.img"], b"mine")


def test_extract_into_no_directory_is_named(image: Path, tmp_path: Path) -> None:
    with Reader(image) as reader, pytest.raises(NotFoundError) as refused:
        reader.extract(tmp_path / "no")
    assert str(refused.value) == f"there is no directory {tmp_path / 'no'}"


def test_extract_without_space_removes_what_it_made(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "criu"
    target.mkdir()
    with file_size_limit(1000), Reader(image) as reader, pytest.raises(StorageError) as refused:
        reader.extract(target)
    assert refused.value.code == "storage-full"
    assert listing(target) == []


def read_all(data: bytes) -> None:
    for _ in StreamReader(io.BytesIO(data)).events():
        pass


@pytest.mark.parametrize(
    "name", ["section-claiming-gigabytes", "chunk-zstd-bomb", "payload-too-large", "chunk-too-large"]
)
def test_image_that_claims_much_makes_nobody_allocate_it(name: str) -> None:
    data = (Path(__file__).parents[2] / "images" / "broken" / f"{name}.ckpt").read_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            read_all(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < layout.MIB
