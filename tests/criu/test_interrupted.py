"""A dump or a restore that is interrupted in other ways than at a step: by a signal, by a CRIU that is stopped or is
killed at any moment, by the loss of the lock, by a full disk."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt import registry
from ckpt.dump import dump_group
from ckpt.errors import CkptError, RolledBackError
from ckpt.kernel import remains, syscalls, tmpfs
from tests.criu import fault_groups, fault_lab
from tests.criu.fault_lab import Fault, Survivor
from tests.criu.fault_steps import WIDE
from tests.criu.fault_world import World, made_world

CKPT = (sys.executable, "-c", "from ckpt.cli.main import main; main()")
_DUMP, _RESTORE = "ckpt.dump:_Dump", "ckpt.restore:_Restore"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With a stream server."""
    with made_world(tmp_path_factory.mktemp("interrupted"), fault_groups.streaming) as made:
        yield made


@pytest.fixture
def survivor(world: World) -> Iterator[Survivor]:
    """Its group, running, as it has to be after the test."""
    with world.survivor() as survivor:
        yield survivor
        survivor.check()


def command(survivor: Survivor, fault: Fault) -> dict[str, Any]:
    """A plan for the command line, whose exit status is the outcome's."""
    words = {
        "dump": ["dump", survivor.name, "-o", str(survivor.image)],
        "restore": ["restore", str(survivor.image)],
    }
    return {**survivor.plan(fault), "work": "cli", "arguments": words[fault.work]}


# -- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "name"),
    [
        (f"call {_DUMP}._take_notes", "INT"),
        ("return ckpt.kernel.lock:_hold", "TERM"),
        (f"return {_DUMP}._notify[query-ext-files]", "INT"),
        (f"return {_DUMP}._read_frozen", "HUP"),
        ("return ckpt.image.writer:Writer.section", "TERM"),
        ("return ckpt.image.publish>link", "INT"),
    ],
)
def test_dump_signal_before_the_commit_undoes_all(survivor: Survivor, point: str, name: str) -> None:
    fault = Fault(work="dump", point=point, fault=f"ckpt-{name}")
    outcome = fault_lab.run(command(survivor, fault))
    assert (outcome.struck, outcome.status) == (True, 128 + signal.Signals[f"SIG{name}"]), outcome
    assert not survivor.image.exists()
    assert survivor.runs
    assert survivor.check() == ()


@pytest.mark.parametrize(
    ("point", "name"),
    [
        ("return ckpt.image.extraction:_create", "INT"),
        ("return ckpt.kernel.apply_routes:RouteMaker.set_addresses", "TERM"),
        (f"return {_RESTORE}._notify[setup-namespaces]", "INT"),
        (f"return {_RESTORE}._verify", "TERM"),
        ("return ckpt.registry:add", "HUP"),
    ],
)
def test_restore_signal_before_the_release_undoes_all(survivor: Survivor, point: str, name: str) -> None:
    dump_group(survivor.name, survivor.image)
    fault = Fault(work="restore", point=point, fault=f"ckpt-{name}")
    outcome = fault_lab.run(command(survivor, fault))
    assert (outcome.struck, outcome.status) == (True, 128 + signal.Signals[f"SIG{name}"]), outcome
    assert registry.find(survivor.name) is None
    assert survivor.check() == ()


@pytest.mark.parametrize(
    ("work", "point"),
    [
        ("dump", f"return {_DUMP}._commit"),
        ("dump", f"call {_DUMP}._take_away"),
        ("restore", f"return {_RESTORE}._release"),
        ("restore", f"return {_RESTORE}._notify[post-resume]"),
    ],
)
def test_signal_behind_the_point_of_no_return_waits(survivor: Survivor, work: str, point: str) -> None:
    if work == "restore":
        dump_group(survivor.name, survivor.image)
    outcome = fault_lab.run(command(survivor, Fault(work=work, point=point, fault="ckpt-INT")))
    assert (outcome.struck, outcome.status) == (True, 130), outcome
    assert survivor.runs == (work == "restore")
    assert survivor.check() == ()


# -- a limit to how long the group may stand still -----------------------------------------------------------------


def limited(survivor: Survivor, seconds: str, *words: str) -> tuple[int, str]:
    """The exit status and the errors of a dump with a limit; its output is a pipe that nobody reads."""
    argv = [*CKPT, "dump", survivor.name, "--max-freeze", seconds, *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as dump:
        assert dump.stderr is not None
        return dump.wait(60), dump.stderr.read()


@pytest.mark.parametrize("words", [(), ("--leave-running",)], ids=["away", "running"])
def test_dump_that_takes_longer_than_it_may_lets_the_group_go_on(survivor: Survivor, words: tuple[str, ...]) -> None:
    # No group is dumped in that time.
    status, said = limited(survivor, "0.02", "-o", str(survivor.image), *words)
    assert status == RolledBackError.status
    assert f"{survivor.name} could not be dumped in time, and runs on\n  it had stood still for 0.02 s" in said
    assert not survivor.image.exists()
    assert survivor.runs
    assert survivor.check() == ()


def test_dump_to_a_reader_that_has_stopped_ends_in_time(survivor: Survivor) -> None:
    """The memory does not fit into a pipe that nobody reads."""
    status, said = limited(survivor, "1", "-o", "-", "--compress", "none")
    assert (status, "it had stood still for 1 s" in said) == (RolledBackError.status, True), said
    assert survivor.runs
    assert survivor.check() == ()


@pytest.mark.parametrize(
    "point",
    [
        f"return {_DUMP}._silence",
        f"return {_DUMP}._read_frozen",
        "return ckpt.image.writer:Writer.section",
        "return ckpt.image.publish>link",
        f"call {_DUMP}._commit",
    ],
)
def test_dump_whose_time_is_up_at_a_step_lets_the_group_go_on(survivor: Survivor, point: str) -> None:
    plan = command(survivor, Fault(work="dump", point=point, fault="ckpt-ALRM"))
    outcome = fault_lab.run({**plan, "arguments": [*plan["arguments"], "--max-freeze", "60"]})
    assert (outcome.struck, outcome.status) == (True, RolledBackError.status), outcome
    assert not survivor.image.exists()
    assert survivor.runs
    assert survivor.check() == ()


@pytest.mark.parametrize("words", [(), ("--leave-running",)], ids=["away", "running"])
def test_dump_within_its_limit_is_as_any(survivor: Survivor, words: tuple[str, ...]) -> None:
    assert limited(survivor, "30", "-o", str(survivor.image), *words) == (0, "")
    assert survivor.image.exists()
    assert survivor.runs == bool(words)
    assert survivor.check() == ()


# -- a CRIU that stands still --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "point"),
    [
        ("dump", f"return {_DUMP}._notify[query-ext-files]"),
        ("restore", f"return {_RESTORE}._notify[setup-namespaces]"),
    ],
)
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_criu_stopped_and_ckpt_ended_nothing_stands_still(
    survivor: Survivor, work: str, point: str, end: signal.Signals
) -> None:
    if work == "restore":
        dump_group(survivor.name, survivor.image)
    with fault_lab.start(command(survivor, Fault(work=work, point=point, fault="criu-STOP"))) as ckpt:
        assert ckpt.stderr is not None
        assert ckpt.stderr.readline() == "struck\n"
        with pytest.raises(subprocess.TimeoutExpired):
            ckpt.wait(0.5)
        ckpt.send_signal(end)
        assert ckpt.wait(60) == (130 if end is signal.SIGINT else -signal.SIGKILL)
    actions = survivor.check()
    assert (actions == ()) == (end is signal.SIGINT)


# -- a ckpt that stands still --------------------------------------------------------------------------------------


def test_restore_stopped_while_criu_reads_holds_nobody_else_up(survivor: Survivor) -> None:
    dump_group(survivor.name, survivor.image)
    fault = Fault(work="restore", point="return ckpt.image.lookup:Lookup.read", fault="ckpt-STOP")
    with fault_lab.start(command(survivor, fault)) as ckpt:
        assert ckpt.stderr is not None
        assert ckpt.stderr.readline() == "struck\n"
        # It has a directory open that nobody answers for now.
        assert remains.crius_in([survivor.image.parent / "elsewhere"]) == ()
        ckpt.send_signal(signal.SIGCONT)
        assert ckpt.wait(60) == 0
    assert survivor.runs
    assert survivor.check() == ()


# -- a CRIU that dies at any moment --------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", range(60 if WIDE else 6))
def test_dump_criu_killed_at_a_random_moment_leaves_nothing(world: World, attempt: int) -> None:
    """While CRIU has its own code in the tasks and their connections in repair mode, not everything can be saved.

    The kernel lets the tasks go on where they are. Almost always that is CRIU's daemon in them, which sees the end of
    its socket and goes back to what the task did. But a task that uses its connection at once is refused it, and one
    that stands on code that CRIU has written over its own dies. That is accepted here, and nothing else.
    """
    delay = random.uniform(0.0, 0.12)
    print(f"killed after {delay:.3f} s")
    fault = Fault(work="dump", point="return ckpt.kernel.criu:Swrk._send", passage=5, fault="criu")
    lost: BaseException | None = None
    try:
        with world.survivor() as survivor:
            outcome = fault_lab.run({**survivor.plan(fault), "delay": delay})
            assert outcome.struck, outcome
            try:
                survivor.check()
            except AssertionError as error:
                lost = error
                raise
    except AssertionError:
        if lost is None or not any(word in str(lost) for word in ("ConnectionResetError", "neither runs", "ended its")):
            raise
        print(f"lost: {lost}")


# -- a lock that is lost, a disk that is full ----------------------------------------------------------------------


@pytest.mark.parametrize("leave_running", [False, True])
@pytest.mark.parametrize("point", [f"return {_DUMP}._silence", f"call {_DUMP}._notify[post-dump]"])
def test_dump_lock_holder_killed_is_refused(survivor: Survivor, point: str, leave_running: bool) -> None:
    fault = Fault(work="dump", point=point, fault="nft", arguments={"leave_running": leave_running})
    outcome = fault_lab.run(survivor.plan(fault))
    assert (outcome.struck, outcome.said.get("error")) == (True, "lock-lost"), outcome
    assert not survivor.image.exists()
    assert survivor.runs
    assert survivor.check() == ()


@pytest.mark.parametrize(
    ("share", "leave_running", "spare"),
    [(0.5, False, 0), (0.95, False, 0), (0.5, True, 1 << 60), (1.3, True, 1 << 60), (0.5, True, 0)],
    ids=["memory", "the image", "CRIU's files", "the image beside CRIU's files", "the image, CRIU's files in memory"],
)
def test_dump_disk_full_group_runs_on(
    survivor: Survivor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, leave_running: bool, spare: int
) -> None:
    # No machine has so much memory to spare that CRIU's files would be in it.
    monkeypatch.setattr(tmpfs, "_SPARE_BYTES", spare)
    raw = dump_group(survivor.name, survivor.image, leave_running=True).raw_size
    place = tmp_path / "small"
    place.mkdir()
    syscalls.mount("tmpfs", str(place), kind="tmpfs", data=f"size={int(raw * share)}")
    try:
        with pytest.raises(CkptError):
            dump_group(survivor.name, place / "image.ckpt", codec="none", leave_running=leave_running)
        assert list(place.iterdir()) == []
    finally:
        syscalls.umount2(str(place), syscalls.MNT_DETACH)
    assert survivor.runs
    assert survivor.check() == ()
