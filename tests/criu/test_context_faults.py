"""ckpt and CRIU killed while they dump or restore a group in a context: it runs confined, or is restored so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt import context, registry
from ckpt.kernel import cgroup2
from ckpt.kernel import context as kernel
from ckpt.kernel.proc import tree_pids
from tests.criu import fault_groups
from tests.criu.fault_lab import Fault
from tests.criu.fault_steps import WIDE
from tests.criu.fault_world import World, made_world
from tests.criu.test_faults import try_fault

_DUMP, _RESTORE = "ckpt.dump:_Dump", "ckpt.restore:_Restore"

# The step, its passage, and who is killed there.
_BOTH, _CKPT = ("ckpt", "criu"), ("ckpt",)
DUMP = (
    (f"return {_DUMP}._silence", 1, _CKPT),
    ("call ckpt.image.publish>link", 1, _BOTH),
    ("return ckpt.kernel.lock:NetworkLock.close", 2, _CKPT),
    (f"return {_DUMP}._commit", 1, _BOTH),
    (f"return {_DUMP}._run_criu", 1, _CKPT),
    ("call ckpt.kernel.context:remove", 1, _CKPT),
    ("return ckpt.kernel.context:remove", 1, _CKPT),
    ("return ckpt.kernel.context:take_address", 2, _CKPT),
    ("call ckpt.registry:remove", 1, _CKPT),
)
RESTORE = (
    ("return ckpt.kernel.context:_attach", 1, _CKPT),
    ("return ckpt.kernel.context:set_restoring", 1, _CKPT),
    ("return ckpt.kernel.lock:_put_in_place", 1, _CKPT),
    ("return ckpt.kernel.context:give_address", 2, _CKPT),
    (f"return {_RESTORE}._launch", 1, _CKPT),
    (f"call {_RESTORE}._notify[setup-namespaces]", 1, _BOTH),
    (f"call {_RESTORE}._notify[post-restore]", 1, _BOTH),
    ("return ckpt.kernel.context:set_restoring", 2, _BOTH),
    (f"return {_RESTORE}._verify", 1, _BOTH),
    ("return ckpt.registry:add", 1, _BOTH),
    (f"return {_RESTORE}._notify[post-restore]", 1, _BOTH),
    (f"call {_RESTORE}._release", 1, _BOTH),
    ("return ckpt.kernel.lock:NetworkLock.release", 1, _CKPT),
    (f"return {_RESTORE}._run_criu", 1, _CKPT),
)


WIDE_ONLY = {
    "return ckpt.kernel.lock:_put_in_place",
    "return ckpt.registry:add",
    "return ckpt.kernel.context:remove",
    f"return {_DUMP}._silence",
    f"return {_RESTORE}._launch",
    f"call {_RESTORE}._notify[post-restore]",
    f"return {_RESTORE}._run_criu",
}
"""Nearly the same as at their neighbours, and tried with ``scripts/test --faults``."""


def faults() -> Iterator[Fault]:
    for work, steps in (("dump", DUMP), ("restore", RESTORE)):
        for point, passage, victims in steps:
            for victim in victims if WIDE or point not in WIDE_ONLY else ():
                yield Fault(work=work, point=point, passage=passage, fault=victim)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with made_world(tmp_path_factory.mktemp("faults"), fault_groups.context) as made:
        yield made


@pytest.mark.parametrize("fault", list(faults()), ids=str)
def test_fault_group_in_a_context_stays_confined(world: World, fault: Fault) -> None:
    try_fault(world, fault)
    (entry,) = registry.entries()
    confined = kernel.read(entry.name)
    assert context.names() == (entry.name,)
    assert kernel.missing_programs(confined) == ()
    assert set(cgroup2.pids(Path(confined.cgroup))) == set(tree_pids(entry.pid))
