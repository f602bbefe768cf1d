"""ckpt and CRIU killed at each step of dump and restore: the group runs on, or its image restores it; never neither.

``scripts/test --faults`` tries the steps in between as well.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from ckpt.dump import dump_group
from tests.criu import fault_groups, fault_lab
from tests.criu.fault_lab import Fault
from tests.criu.fault_steps import common_faults, faults
from tests.criu.fault_world import World, made_world


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With the group that the parameter makes, a stream server if there is none; one world at a time."""
    with made_world(tmp_path_factory.mktemp("faults"), getattr(request, "param", fault_groups.streaming)) as made:
        yield made


@pytest.mark.parametrize("fault", list(faults()), ids=str)
def test_fault_group_runs_or_its_image_restores_it(world: World, fault: Fault) -> None:
    try_fault(world, fault)


@pytest.mark.parametrize("fault", list(common_faults()), ids=str)
@pytest.mark.parametrize(
    "world",
    [fault_groups.redis, fault_groups.nested, fault_groups.host, fault_groups.named],
    ids=lambda make: make.__name__,
    indirect=True,
    scope="module",
)
def test_fault_other_groups_run_or_their_image_restores_them(world: World, fault: Fault) -> None:
    try_fault(world, fault)


def try_fault(world: World, fault: Fault) -> None:
    """Let it happen, and see that the group is there, or comes back, and that nothing else is."""
    with world.survivor() as survivor:
        if fault.work == "restore":
            dump_group(survivor.name, survivor.image)
        outcome = fault_lab.run(survivor.plan(fault))
        assert outcome.struck, f"the fault never struck: {outcome}"
        if fault.fault in ("ckpt", "both"):
            assert outcome.status == -signal.SIGKILL
        else:
            assert outcome.status == 0, outcome
        print(outcome, *survivor.check(), sep="\n")
