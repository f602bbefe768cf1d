"""The fixtures of the end-to-end tests: a segment, groups on it, and their end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from ckpt import held, registry
from ckpt.kernel import ending
from ckpt.stop import clear
from tests.criu import segment as segments
from tests.criu.groups import Starter
from tests.criu.segment import Segment


@pytest.fixture
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The registry, the logs and the images of one test; what its registry knows is ended with it."""
    for name, variable in (("state", "CKPT_STATE_DIR"), ("logs", "CKPT_LOG_DIR")):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    images = tmp_path / "images"
    images.mkdir(mode=0o700)
    yield images
    for entry in registry.entries():
        if entry.alive:
            ending.end_tree(entry.pid, timeout=0)
        with suppress(ChildProcessError):
            os.waitpid(entry.pid, 0)
        clear(entry)
    for lock in held.held():
        held.release(lock.image_id)


@pytest.fixture
def segment() -> Iterator[Segment]:
    """A bridge with a client attached."""
    with segments.made() as made:
        yield made


@pytest.fixture
def start(segment: Segment, directories: Path, unique: Callable[[str], str]) -> Starter:
    """Starts groups; they end with the test."""
    return Starter(segment, directories, unique)


@pytest.fixture
def children() -> Iterator[list[int]]:
    """PIDs of processes that a test has started itself; they and all below them end with it."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ChildProcessError, ProcessLookupError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                ending.end_tree(pid, timeout=0)
                os.waitpid(pid, 0)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test opens on its way."""
    with ExitStack() as opened:
        yield opened
