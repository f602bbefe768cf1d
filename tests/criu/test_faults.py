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
from tests.criu import fault_groups, fault_lab, segment
from tests.criu.capture import capturing
from tests.criu.fault_groups import Maker
from tests.criu.fault_lab import Fault, Survivor
from tests.criu.fault_steps import common_faults, faults
from tests.criu.groups import Starter


class World:
    """Keeps one group alive from fault to fault, and makes another when a test has broken it."""

    def __init__(self, directory: Path, make: Maker) -> None:
        self._directory = directory
        self._maker = make
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
        return self._maker(start, self._stack)

    def end(self) -> None:
        """End the group and all that it had."""
        # The clients first, which would complain.
        self._stack.close()
        for entry in registry.entries():
            if entry.alive:
                ending.end_tree(entry.pid, timeout=0)
            clear(entry)
        clean.clean()
        shutil.rmtree(self._directory / "images")
        (self._directory / "images").mkdir()
        self._survivor = None


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry, logs and images of this module's own."""
    directory = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        # The lab is quiet, and nobody else is on the segment.
        patch.setattr(restore, "ANNOUNCE_AFTER", (0.0,))
        patch.setattr(host, "PROBE_SECONDS", 0.05)
        for name, variable in (("state", "CKPT_STATE_DIR"), ("logs", "CKPT_LOG_DIR"), ("images", "")):
            (directory / name).mkdir(mode=0o700)
            if variable:
                patch.setenv(variable, str(directory / name))
        yield directory


def _world(directory: Path, make: Maker) -> Iterator[World]:
    world = World(directory, make)
    yield world
    world.end()


@pytest.fixture(scope="module")
def world(directory: Path) -> Iterator[World]:
    """With a stream server."""
    yield from _world(directory, fault_groups.streaming)


@pytest.fixture(scope="module")
def other_world(request: pytest.FixtureRequest, directory: Path) -> Iterator[World]:
    """With the group that the parameter makes."""
    yield from _world(directory, request.param)


@pytest.mark.parametrize("fault", list(faults()), ids=str)
def test_fault_group_runs_or_its_image_restores_it(world: World, fault: Fault) -> None:
    try_fault(world, fault)


@pytest.mark.parametrize("fault", list(common_faults()), ids=str)
@pytest.mark.parametrize(
    "other_world",
    [fault_groups.redis, fault_groups.host, fault_groups.named],
    ids=lambda make: make.__name__,
    indirect=True,
    scope="module",
)
def test_fault_other_groups_run_or_their_image_restores_them(other_world: World, fault: Fault) -> None:
    try_fault(other_world, fault)


def try_fault(world: World, fault: Fault) -> None:
    """Let it happen, and see that the group is there, or comes back, and that nothing else is."""
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
