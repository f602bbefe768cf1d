"""A directory that is nowhere: files have room in it, and nobody finds it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.kernel import tmpfs

SIZE = 8 << 20


@pytest.fixture
def directory() -> Iterator[Path]:
    fd = tmpfs.detached(SIZE)
    yield Path(f"/proc/self/fd/{fd}")
    os.close(fd)


def test_detached_directory_holds_files_and_is_mounted_nowhere(directory: Path) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    (directory / "file").write_bytes(b"content")
    assert [path.name for path in directory.iterdir()] == ["file"]
    assert (directory / "file").read_bytes() == b"content"
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert directory.stat().st_mode & 0o777 == 0o700


def test_detached_directory_takes_no_more_than_it_was_made_for(directory: Path) -> None:
    with pytest.raises(OSError, match="No space") as full:
        (directory / "file").write_bytes(bytes(2 * SIZE))
    assert full.value.errno == errno.ENOSPC
    assert os.path.getsize(directory / "file") == SIZE
