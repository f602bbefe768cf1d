"""Keeps a group alive from fault to fault: the next test goes on with the one that the last has proved to be well."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ckpt import clean, registry, restore
from ckpt.errors import CkptError
from ckpt.kernel import ending, host
from ckpt.stop import clear
from tests.conftest import random_name
from tests.criu import segment
from tests.criu.capture import capturing
from tests.criu.fault_groups import Maker
from tests.criu.fault_lab import Survivor, portrait
from tests.criu.groups import Starter


class World:
    """Keeps one group alive from fault to fault, and makes another when a test has broken it."""

    def __init__(self, directory: Path, make: Maker) -> None:
        self._directory = directory
        self._maker = make
        self._stack = ExitStack()
        self._survivor: Survivor | None = None

    @contextmanager
    def survivor(self, *, is_lost: bool = False) -> Iterator[Survivor]:
        """The group, running, watched for betrayals; a failure ends it. One that ``is_lost`` is not asked for more."""
        try:
            if self._survivor is None:
                self._survivor = self._make()
            survivor = self._survivor
            with capturing() as capture:
                yield survivor
                survivor.image.unlink(missing_ok=True)
            assert is_lost or capture.betrayals(survivor.address) == []
            if is_lost:
                self.end()
        except BaseException:
            if self._survivor is not None:
                with contextlib.suppress(CkptError, OSError):
                    print(portrait(self._survivor.group))
            self.end()
            raise

    def _make(self) -> Survivor:
        made = self._stack.enter_context(segment.made())
        start = Starter(made, self._directory / "images", random_name)
        return self._maker(start, self._stack)

    def end(self) -> None:
        """End the group and all that it had."""
        # The clients first, which would complain.
        self._stack.close()
        for entry in registry.entries():
            if entry.alive:
                ending.end_tree(entry.pid, timeout=0)
            clear(entry)
        # The images first: a lock would stay for the sake of one.
        shutil.rmtree(self._directory / "images")
        (self._directory / "images").mkdir()
        clean.clean()
        self._survivor = None


@contextmanager
def made_world(directory: Path, make: Maker) -> Iterator[World]:
    """A world below ``directory``, with a registry, logs and images of its own; nothing of it is left."""
    with pytest.MonkeyPatch.context() as patch:
        # The lab is quiet, and nobody else is on the segment.
        patch.setattr(restore, "ANNOUNCE_AFTER", ())
        patch.setattr(host, "PROBE_SECONDS", 0.05)
        for name, variable in (("state", "CKPT_STATE_DIR"), ("logs", "CKPT_LOG_DIR"), ("images", "")):
            (directory / name).mkdir(mode=0o700)
            if variable:
                patch.setenv(variable, str(directory / name))
        world = World(directory, make)
        try:
            yield world
        finally:
            world.end()
