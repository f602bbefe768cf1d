"""Two dumps at once in one working directory, which CRIU cannot do: they take turns, whoever they are."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt.errors import RolledBackError
from tests.criu.groups import Group, Starter

_LOG = logging.getLogger("ckpt.turns")

LOCKS_ITS_PLACE = """
import fcntl, os, time
fcntl.flock(os.open(".", os.O_RDONLY), fcntl.LOCK_EX)
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def group(start: Starter, tmp_path: Path) -> Group:
    return start.stream_server(workdir=str(tmp_path))


class Waits(logging.Handler):
    """Takes note of each time that a dump says it waits, and then lets something happen."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.said: list[str] = []
        self._act = act

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        self._act()

    def __enter__(self) -> Waits:
        _LOG.setLevel(logging.INFO)
        _LOG.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        _LOG.removeHandler(self)
        _LOG.setLevel(logging.NOTSET)


def test_dump_waits_for_another_in_its_working_directory(group: Group, tmp_path: Path) -> None:
    # As a ckpt with another registry has it.
    other = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(other, fcntl.LOCK_EX)
    with Waits(lambda: os.close(other)) as waits:
        group.round_trip()
    assert waits.said == [f"waiting for another dump in {tmp_path}"]


def test_dump_of_a_group_that_has_locked_its_directory_does_not_wait(start: Starter, tmp_path: Path) -> None:
    group = start([sys.executable, "-I", "-S", "-c", LOCKS_ITS_PLACE], workdir=str(tmp_path))
    group.wait_for_log("ready")
    with Waits() as waits:
        group.round_trip()
    assert waits.said == []
    mine = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(mine)


def test_dump_beside_another_criu_is_told_so(group: Group, tmp_path: Path) -> None:
    with group.stream() as stream:
        (tmp_path / "proc.crtools").mkdir()
        with pytest.raises(RolledBackError) as caught:
            group.dump()
        assert caught.value.code == "criu-busy"
        stream.progress()
        (tmp_path / "proc.crtools").rmdir()
        group.round_trip()
        stream.progress()
