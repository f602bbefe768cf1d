"""ckpt and CRIU killed at each step of dump and restore: the group runs on, or its image restores it; never neither."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ckpt import clean, registry, restore
from ckpt.dump import dump_group
from ckpt.kernel import ending, host
from ckpt.stop import clear
from tests.conftest import random_name
from tests.criu import fault_lab, segment
from tests.criu.capture import capturing
from tests.criu.fault_lab import Fault, Hammer, Survivor, patient
from tests.criu.fault_steps import faults
from tests.criu.groups import Starter


class World:
    """Keeps one group alive from fault to fault, and makes another when a test has broken it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._survivor: Survivor | None = None

    @contextmanager
    def survivor(self) -> Iterator[Survivor]:
        """The group, running, watched for betrayals; a failure ends it."""
        try:
            if self._survivor is None:
                self._survivor = self._make()
            survivor = self._survivor
            with capturing() as capture:
                yield survivor
                survivor.image.unlink(missing_ok=True)
            assert capture.betrayals(survivor.group.addresses.v4) == []
        except BaseException:
            self.end()
            raise

    def _make(self) -> Survivor:
        made = self._stack.enter_context(segment.made())
        start = Starter(made, self._directory / "images", random_name)
        group = start.stream_server("--family", "v4")
        stream = self._stack.enter_context(patient(group.stream()))
        self._stack.enter_context(Hammer(made, stream.socket))
        stream.progress()
        return Survivor(group, stream, self._directory / "images" / "group.ckpt")

    def end(self) -> None:
        """End the group and all that it had."""
        for entry in registry.entries():
            if entry.alive:
                ending.end_tree(entry.pid, timeout=0)
            clear(entry)
        self._stack.close()
        clean.clean()
        shutil.rmtree(self._directory / "images")
        (self._directory / "images").mkdir()
        self._survivor = None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        # The lab is quiet, and nobody else is on the segment.
        patch.setattr(restore, "ANNOUNCE_AFTER", (0.0,))
        patch.setattr(host, "PROBE_SECONDS", 0.05)
        for name, variable in (("state", "CKPT_STATE_DIR"), ("logs", "CKPT_LOG_DIR"), ("images", "")):
            (directory / name).mkdir(mode=0o700)
            if variable:
                patch.setenv(variable, str(directory / name))
        world = World(directory)
        yield world
        world.end()


@pytest.mark.parametrize("fault", faults(), ids=str)
def test_fault_group_runs_or_its_image_restores_it(world: World, fault: Fault) -> None:
    with world.survivor() as survivor:
        if fault.work == "restore":
            dump_group(survivor.name, survivor.image)
        outcome = fault_lab.run(survivor.plan(fault))
        assert outcome.struck, f"the fault never struck: {outcome}"
        if fault.fault == "ckpt":
            assert outcome.status == -signal.SIGKILL
        else:
            assert outcome.status == 0, outcome
        print(outcome, *survivor.check(), sep="\n")
