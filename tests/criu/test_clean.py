"""`ckpt clean`: all that a dead ckpt has left goes; what is a living one's, an image's or somebody else's stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ckpt import clean, held, registry
from ckpt.clean import CleanAction
from ckpt.dump import dump_group
from ckpt.kernel import lock, netns, outside, proc, remains
from ckpt.kernel import run as tools
from ckpt.restore import restore_group
from tests import lab
from tests.conftest import random_name
from tests.criu import fault_groups, fault_lab
from tests.criu.fault_lab import Fault, Survivor
from tests.criu.fault_world import World, made_world
from tests.criu.groups import Starter, wait_for
from tests.criu.segment import PATIENCE

CKPT = (sys.executable, "-c", "from ckpt.cli.main import main; main()")

_DUMP, _RESTORE = "ckpt.dump:_Dump", "ckpt.restore:_Restore"


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With the group that the parameter makes, a stream server if there is none; one world at a time."""
    with made_world(tmp_path_factory.mktemp("clean"), getattr(request, "param", fault_groups.streaming)) as made:
        yield made


@pytest.fixture
def survivor(world: World) -> Iterator[Survivor]:
    """Its group, running, as it has to be after the test."""
    with world.survivor() as survivor:
        yield survivor
        survivor.check()


def killed(survivor: Survivor, work: str, point: str) -> None:
    """Have a ckpt killed at a step, and wait until its CRIU and what held its locks have ended."""
    if work == "restore":
        dump_group(survivor.name, survivor.image)
    outcome = fault_lab.run(survivor.plan(Fault(work=work, point=point)))
    assert outcome.status == -signal.SIGKILL, outcome
    wait_for(lambda: not remains.crius_in(working_directories()), "CRIU has ended")
    groups = {pid for entry in registry.entries() for pid in fault_lab.tree(entry.pid)}
    for pid in groups:
        remains.wait_for_dying(pid, PATIENCE)
    wait_for(lambda: not set(lab.strays()) - groups, "everything that the killed ckpt had started has ended")


def working_directories() -> list[Path]:
    """Where each CRIU works, as noted; a path need not lead there."""
    return [Path(directory) for work in registry.operations() for directory in work.texts("directories")]


def ckpt(*arguments: str) -> str:
    """What the command line says."""
    done = subprocess.run([*CKPT, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def footprint(survivor: Survivor) -> set[str]:
    """Everything of ckpt's on this host, as far as a test can see."""
    state = registry.state_dir()
    files = [*survivor.image.parent.rglob("*"), *state.rglob("*")]
    locks = [f"{inode} {name}" for inode, name in fault_lab.locks()]
    return {*map(str, files), *lab.traces(), *locks}


# -- what it does --------------------------------------------------------------------------------------------------

STEPS = [
    ("dump", f"return {_DUMP}._read_frozen"),
    ("dump", "return ckpt.image.publish>link"),
    ("dump", f"return {_DUMP}._commit"),
    ("dump", f"call {_DUMP}._take_away"),
    ("restore", f"return {_RESTORE}._unpack"),
    ("restore", "return ckpt.rebuild:furnish"),
    ("restore", f"call {_RESTORE}._release"),
]


@pytest.mark.parametrize(("work", "point"), STEPS)
def test_clean_dry_run_changes_nothing_and_says_the_same(survivor: Survivor, work: str, point: str) -> None:
    killed(survivor, work, point)
    before = footprint(survivor)
    announced = clean.clean(dry_run=True)
    assert footprint(survivor) ^ before == set()
    assert announced != ()
    assert clean.clean() == announced
    assert clean.clean() == ()


def test_clean_says_what_it_did(survivor: Survivor) -> None:
    killed(survivor, "restore", "return ckpt.rebuild:furnish")
    said = json.loads(ckpt("clean", "--dry-run", "--json"))
    assert [action["kind"] for action in said] == ["namespace", "link", "note"]
    assert all(action["done"] for action in said)
    table = ckpt("clean")
    assert "KIND" in table and "removed" in table and f"restore of {survivor.name}, whose ckpt (PID " in table
    assert ckpt("clean") == "nothing to clean\n"


def test_clean_group_that_a_killed_ckpt_has_restored_is_known(survivor: Survivor) -> None:
    killed(survivor, "restore", f"return {_RESTORE}._release")
    clean.clean()
    (group,) = json.loads(ckpt("ps", "--json"))
    assert (group["name"], group["state"]) == (survivor.name, "running")
    survivor.progress()


def test_clean_ends_what_was_half_restored(survivor: Survivor) -> None:
    """ckpt and CRIU both killed: nobody is left who would undo anything."""
    dump_group(survivor.name, survivor.image)
    fault = Fault(work="restore", point=f"return {_RESTORE}._notify[post-setup-namespaces]", fault="criu-STOP")
    with fault_lab.start(survivor.plan(fault)) as restoring:
        assert restoring.stderr is not None
        assert restoring.stderr.readline() == "struck\n"
        directories = working_directories()
        wait_for(lambda: remains.crius_in(directories), "CRIU works")
        (first,) = [pid for pid in remains.crius_in(directories) if pid in proc.children(restoring.pid)]
        # Stopped, ckpt does not see its CRIU die.
        restoring.send_signal(signal.SIGSTOP)
        wait_for(lambda: fault_lab.state(restoring.pid) == "T", "ckpt is stopped")
        os.kill(first, signal.SIGKILL)
        restoring.kill()
        restoring.wait()
    wait_for(lambda: fault_lab.state(first) in "ZX", "CRIU is dead")
    assert "process" in {action.kind for action in clean.clean()}


def test_clean_puts_a_group_in_order_whose_ckpt_and_criu_were_killed(world: World) -> None:
    """In a dump: its connections are in repair mode, and nobody has taken them out."""
    with world.survivor(is_lost=True) as survivor:
        fault = Fault(work="dump", point=f"call {_DUMP}._notify[post-dump]", fault="ckpt-STOP")
        with fault_lab.start(survivor.plan(fault)) as dumping:
            assert dumping.stderr is not None
            assert dumping.stderr.readline() == "struck\n"
            wait_for(lambda: fault_lab.state(dumping.pid) == "T", "ckpt is stopped")
            for pid in (*remains.crius_in(working_directories()), dumping.pid):
                os.kill(pid, signal.SIGKILL)
            dumping.wait()
        clean.clean()
        fault_lab.nothing(fault_lab.left_behind(survivor.image.parent))
        assert survivor.runs
        # What the server did in the meantime may have cost it its connection, but it can be reached.
        with survivor.group.stream() as stream:
            stream.progress(100)


UNNAMED = """
import os, sys, time
held = open(sys.argv[1] + "/one", "w+")
held.write("kept"); held.flush()
os.link(sys.argv[1] + "/one", sys.argv[1] + "/two"); os.unlink(sys.argv[1] + "/one")
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""


@pytest.mark.parametrize("victim", ["criu", "both"])
def test_clean_leaves_no_second_name_of_a_file_that_lost_its_own(start: Starter, tmp_path: Path, victim: str) -> None:
    group = start(["python3", "-c", UNNAMED, str(tmp_path)])
    group.wait_for_log("ready")
    survivor = Survivor(group, lambda: None, group.images / "group.ckpt", group.addresses.v4)
    outcome = fault_lab.run(survivor.plan(Fault(work="dump", point=f"call {_DUMP}._notify[post-dump]", fault=victim)))
    assert outcome.struck
    names = {path.name for path in tmp_path.glob("link_remap.*")}
    assert bool(names) == (victim == "both")
    assert names <= {Path(action.subject).name for action in clean.clean()}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["two"]
    group.round_trip()
    assert (tmp_path / "two").read_text() == "kept"


# -- what it leaves alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "point"),
    [
        ("dump", f"return {_DUMP}._read_frozen"),
        ("dump", "return ckpt.image.publish>link"),
        ("dump", "return ckpt.kernel.lock:NetworkLock.close"),
        ("restore", "return ckpt.rebuild:furnish"),
        ("restore", f"return {_RESTORE}._verify"),
        ("restore", f"call {_RESTORE}._release"),
    ],
)
def test_clean_work_of_a_living_ckpt_is_not_touched(survivor: Survivor, work: str, point: str) -> None:
    if work == "restore":
        dump_group(survivor.name, survivor.image)
    with fault_lab.start(survivor.plan(Fault(work=work, point=point, fault="ckpt-STOP"))) as ckpt:
        assert ckpt.stderr is not None
        assert ckpt.stderr.readline() == "struck\n"
        wait_for(lambda: fault_lab.state(ckpt.pid) == "T", "ckpt is stopped")
        before = footprint(survivor)
        assert clean.clean() == ()
        assert footprint(survivor) ^ before == set()
        ckpt.send_signal(signal.SIGCONT)
        assert ckpt.wait(60) == 0
    assert survivor.runs == (work == "restore")
    assert clean.clean() == ()


@contextmanager
def others(survivor: Survivor) -> Iterator[list[Callable[[], bool]]]:
    """Things that look like ckpt's and are not; each with a question whether it still is there."""
    with ExitStack() as stack:
        tables = ["ckpt-lock", "my-ckpt-lock-0123abcd", "ckpt-lock-0123abcd-mine", "ckpt-lock-XYZ"]
        for table in tables:
            tools.run(["nft", "add", "table", "inet", table])
            stack.callback(tools.run, ["nft", "delete", "table", "inet", table])
        tools.run(["nft", "add", "table", "ip", "ckpt-lock-0123abcd"])
        stack.callback(tools.run, ["nft", "delete", "table", "ip", "ckpt-lock-0123abcd"])
        links = [random_name("ckpt")[:15], random_name("br")]
        tools.run(["ip", "link", "add", links[0], "type", "veth"])
        tools.run(["ip", "link", "add", links[1], "type", "bridge"])
        made = [random_name("br"), random_name("br")]
        for bridge in made:
            outside.ensure_bridge(bridge)
        # Ours, but somebody has given it an address; ours, but somebody has plugged in.
        tools.run(["ip", "addr", "add", "10.99.0.1/24", "dev", made[0]])
        tools.run(["ip", "link", "set", links[0], "master", made[1]])
        links += made
        for link in links:
            stack.callback(outside.delete, link)
        directory = survivor.image.parent
        files = [directory / ".group.ckpt.criu-mine", directory / ".other.ckpt.partial-0123ab", directory / ".note"]
        for file in files:
            file.touch()
            stack.callback(file.unlink)
        own = netns.open_own()
        stack.callback(os.close, own)
        yield [
            lambda: set(tables) <= set(_inet_tables()),
            lambda: "table ip ckpt-lock-0123abcd" in tools.run(["nft", "list", "tables"]).decode(),
            lambda: all(outside.find(link) for link in links),
            lambda: all(file.exists() for file in files),
        ]


def _inet_tables() -> list[str]:
    return [line.split()[2] for line in tools.run(["nft", "list", "tables", "inet"]).decode().splitlines()]


def test_clean_what_is_not_ours_stays(survivor: Survivor) -> None:
    with others(survivor) as questions:
        killed(survivor, "restore", "return ckpt.rebuild:furnish")
        assert clean.clean() != ()
        assert clean.clean() == ()
        for question in questions:
            assert question()


def test_clean_bridge_of_ours_goes_when_nobody_uses_it(survivor: Survivor) -> None:
    bridge = random_name("br")
    outside.ensure_bridge(bridge)
    assert clean.clean(dry_run=True) == clean.clean()
    assert outside.find(bridge) is None


def test_clean_file_that_was_being_written(survivor: Survivor) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = registry.directory("groups") / f".web.json.{dead.pid}-0123abcd"
    ours = registry.directory("ops") / f".dump-1-0123abcd.json.{os.getpid()}-0123abcd"
    left.touch()
    ours.touch()
    assert [(action.kind, action.subject) for action in clean.clean()] == [("file", str(left))]
    assert (left.exists(), ours.exists()) == (False, True)
    ours.unlink()


def test_clean_log_is_kept_for_a_day(survivor: Survivor) -> None:
    old, new = (registry.state_dir() / f"{random_name('dump')}.log" for _ in range(2))
    for path, age in ((old, 25 * 3600), (new, 3600)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    assert [(action.kind, action.subject) for action in clean.clean()] == [("log", str(old))]
    new.unlink()


# -- locks that wait for an image ----------------------------------------------------------------------------------


in_hosts_namespace = pytest.mark.parametrize("world", [fault_groups.host], indirect=True, ids=["host"], scope="module")


def host_locks() -> tuple[str, ...]:
    own = netns.open_own()
    try:
        return lock.find(own)
    finally:
        os.close(own)


@in_hosts_namespace
@pytest.mark.parametrize("point", [None, "return ckpt.held:hold", f"call {_DUMP}._take_away"])
def test_clean_held_lock_stays_until_its_image_is_restored(world: World, point: str | None) -> None:
    with world.survivor() as survivor:
        if point is None:
            dump_group(survivor.name, survivor.image)
        else:
            killed(survivor, "dump", point)
        actions = clean.clean()
        if survivor.runs:
            assert host_locks() == ()
            return
        (name,) = host_locks()
        reason = f"keeps the peers of {survivor.image} waiting until it is restored"
        waiting = CleanAction(kind="lock", subject=f"{name} (host)", done=False, reason=reason)
        assert waiting in actions
        assert clean.clean() == (waiting,)
        assert host_locks() == (name,)
        restore_group(survivor.image)
        assert (clean.clean(), host_locks(), held.held()) == ((), (), ())
        survivor.progress()


@in_hosts_namespace
def test_clean_held_lock_stays_when_what_was_half_restored_is_ended(world: World) -> None:
    with world.survivor() as survivor:
        dump_group(survivor.name, survivor.image)
        (name,) = host_locks()
        fault = Fault(work="restore", point=f"return {_RESTORE}._notify[post-restore]", fault="both")
        assert fault_lab.run(survivor.plan(fault)).struck
        assert ("process", True) in {(action.kind, action.done) for action in clean.clean()}
        assert host_locks() == (name,)
        restore_group(survivor.image)
        assert (clean.clean(), host_locks(), held.held()) == ((), (), ())
        survivor.progress()


@in_hosts_namespace
def test_clean_held_lock_goes_when_its_image_is_gone(world: World) -> None:
    with world.survivor(is_lost=True) as survivor:
        dump_group(survivor.name, survivor.image)
        (name,) = host_locks()
        elsewhere = survivor.image.with_name("elsewhere")
        survivor.image.rename(elsewhere)
        survivor.image.write_text("another file")
        (action,) = clean.clean()
        assert (action.kind, action.subject, action.done) == ("lock", f"{name} (host)", True)
        assert (host_locks(), held.held(), clean.clean()) == ((), (), ())
        elsewhere.unlink()
