"""Images of memory out of pipes: a writer that opens and writes files by their names, as CRIU does, and who reads."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.kernel.criu_pages import PagePipes


class Kept:
    """A file that is kept in memory."""

    def __init__(self) -> None:
        self.data = b""
        self.whole = False

    def take(self, fd: int) -> int:
        more = os.read(fd, 1000)
        self.data += more
        return len(more)

    def close(self) -> None:
        self.whole = True


@pytest.fixture
def files() -> dict[str, Kept]:
    return {}


@pytest.fixture
def pipes(tmp_path: Path, files: dict[str, Kept]) -> Iterator[PagePipes]:
    with PagePipes(tmp_path, 3, lambda name: files.setdefault(name, Kept())) as made:
        yield made
    assert [path for path in tmp_path.iterdir() if path.is_symlink() or path.is_fifo()] == []


def written(path: Path, data: bytes) -> None:
    """What CRIU does to a file of pages."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(data)


def test_pipes_pass_on_each_file_whole(tmp_path: Path, pipes: PagePipes, files: dict[str, Kept]) -> None:
    written(tmp_path / "pages-1.img", b"one" * 1000)
    written(tmp_path / "pages-3.img", b"three")
    pipes.finish()
    assert {name: (file.data, file.whole) for name, file in files.items()} == {
        "pages-1.img": (b"one" * 1000, True),
        "pages-3.img": (b"three", True),
    }


def test_pipes_make_an_empty_file_of_one_that_was_opened_only(
    tmp_path: Path, pipes: PagePipes, files: dict[str, Kept]
) -> None:
    written(tmp_path / "pages-2.img", b"")
    pipes.finish()
    assert [(name, file.data, file.whole) for name, file in files.items()] == [("pages-2.img", b"", True)]


def test_pipes_leave_what_is_no_pipe(tmp_path: Path, pipes: PagePipes, files: dict[str, Kept]) -> None:
    written(tmp_path / "pages-4.img", b"four")
    pipes.finish()
    assert files == {}
    assert [path.name for path in tmp_path.iterdir()] == ["pages-4.img"]


def test_pipes_say_when_something_has_come(tmp_path: Path, pipes: PagePipes, files: dict[str, Kept]) -> None:
    assert select.select([pipes], [], [], 0) == ([], [], [])
    with open(tmp_path / "pages-1.img", "wb", buffering=0) as out:
        assert select.select([pipes], [], [], 0) == ([], [], [])
        out.write(b"some")
        assert select.select([pipes], [], [], 0) == ([pipes], [], [])
        assert pipes.take()
        assert not pipes.take()
        assert not files["pages-1.img"].whole
        out.write(b"more")
    pipes.finish()
    assert files["pages-1.img"].data == b"somemore"


def test_pipes_that_are_closed_fail_their_writer(tmp_path: Path, pipes: PagePipes) -> None:
    with open(tmp_path / "pages-1.img", "wb", buffering=0) as out:
        pipes.close()
        with pytest.raises(BrokenPipeError):
            out.write(b"too late")


def test_pipes_lead_nowhere_when_who_reads_has_ended(tmp_path: Path) -> None:
    reader = os.fork()
    if reader == 0:
        PagePipes(tmp_path, 1, lambda name: Kept())
        os._exit(0)
    os.waitpid(reader, 0)
    with pytest.raises(OSError, match="No such file"):
        written(tmp_path / "pages-1.img", b"for nobody")


def test_pipes_where_there_can_be_none_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "pages-1.img").touch()
    caplog.set_level("INFO")
    with PagePipes(tmp_path, 1, lambda name: Kept()) as pipes:
        written(tmp_path / "pages-1.img", b"a file")
        pipes.finish()
    assert (tmp_path / "pages-1.img").read_bytes() == b"a file"
    assert [record.message for record in caplog.records] == ["memory goes through files: File exists"]
