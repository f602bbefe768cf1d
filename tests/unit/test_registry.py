"""The registry: entries and operations survive their writer, and what is not sound is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt import registry
from ckpt.errors import ExistsError, NotFoundError, StorageError
from ckpt.registry import GroupEntry, Operation


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CKPT_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def own_entry(name: str = "web") -> GroupEntry:
    """An entry whose root task is this very process."""
    return GroupEntry(
        name=name,
        pid=os.getpid(),
        start_time=registry.start_time(os.getpid()) or 0,
        isolation="netns",
        netns=4026531840,
        links=("ckpt00000001",),
        bridge="br0",
        bridge_made=True,
        addresses=("10.0.0.2/24", "fd00::2/64"),
        log="/var/log/ckpt/web.log",
        command=("sleep", "", "odd \udcff\n\x1b[0m"),
        created=1.5,
    )


def test_get_returns_what_was_added() -> None:
    entry = own_entry()
    registry.add(entry)
    assert registry.get("web") == entry
    assert registry.entries() == (entry,)
    assert registry.by_pid(os.getpid()) == entry


def test_state_directory_is_for_its_owner_alone(state: Path) -> None:
    registry.add(own_entry())
    assert {path: path.stat().st_mode & 0o777 for path in (state, state / "groups")} == {
        state: 0o700,
        state / "groups": 0o700,
    }
    assert (state / "groups/web.json").stat().st_mode & 0o777 == 0o600


def test_add_refuses_a_taken_name() -> None:
    registry.add(own_entry())
    with pytest.raises(ExistsError) as caught:
        registry.add(replace(own_entry(), pid=1))
    assert caught.value.code == "group-exists"
    assert registry.get("web").pid == os.getpid()


def test_get_of_an_unknown_name_names_near_ones() -> None:
    registry.add(own_entry("redis-main"))
    registry.add(own_entry("postgres"))
    with pytest.raises(NotFoundError) as caught:
        registry.get("redis-mian")
    assert (caught.value.code, caught.value.hint) == ("group-unknown", "did you mean redis-main?")


@pytest.mark.parametrize("name", ["", ".", "..", "../web", "a/b", ".web"])
def test_find_never_leaves_its_directory(name: str, state: Path) -> None:
    registry.add(own_entry())
    (state / "web.json").write_text("{}")
    assert registry.find(name) is None


def test_alive_is_false_for_a_pid_given_away_again() -> None:
    entry = own_entry()
    assert entry.alive
    assert not replace(entry, start_time=entry.start_time + 1).alive


def test_alive_is_false_for_a_zombie() -> None:
    child = subprocess.Popen(["sleep", "60"])
    started = registry.start_time(child.pid)
    assert started is not None
    assert registry.alive(child.pid, started)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not registry.alive(child.pid, started)
    child.wait()


def test_remove_with_another_pid_keeps_the_entry() -> None:
    registry.add(own_entry())
    assert not registry.remove("web", pid=1)
    assert registry.remove("web", pid=os.getpid())
    assert not registry.remove("web")


def test_entries_ignore_fields_of_a_later_version(state: Path) -> None:
    registry.add(own_entry())
    path = state / "groups/web.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later": 1}))
    assert registry.entries() == (own_entry(),)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"name": "web"}'])
def test_a_damaged_entry_is_refused_by_name(content: str, state: Path) -> None:
    registry.add(own_entry())
    (state / "groups/web.json").write_text(content)
    with pytest.raises(StorageError) as caught:
        registry.get("web")
    assert caught.value.code == "registry-damaged"


def test_operation_is_written_before_its_body_and_gone_after() -> None:
    with Operation("dump", "web") as operation:
        operation.note(directories=["/tmp/x"], lock_tables=["ckpt-lock-00000000"], netns_pid=7)
        operation.note(links="ckpt0")
        (found,) = registry.operations()
        assert (found.kind, found.group, found.pid, found.alive) == ("dump", "web", os.getpid(), True)
        assert found.texts("directories") == ("/tmp/x",)
        assert found.texts("links") == ("ckpt0",)
        assert found.texts("bridge") == ()
        assert found.number("netns_pid") == 7
    assert registry.operations() == ()


def test_operation_ends_with_a_body_that_fails() -> None:
    with pytest.raises(ZeroDivisionError), Operation("run"):
        raise ZeroDivisionError
    assert registry.operations() == ()


def test_operation_abandoned_stays() -> None:
    with Operation("run") as operation:
        operation.abandon()
    (left,) = registry.operations()
    registry.forget(left.id)
    assert registry.operations() == ()


def test_operation_of_a_killed_process_is_not_alive() -> None:
    script = (
        "import os; from ckpt.registry import Operation; Operation('dump', 'web').__enter__(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    (left,) = registry.operations()
    assert (left.kind, left.alive) == ("dump", False)


def test_locked_excludes_other_processes() -> None:
    script = "from ckpt import registry\nwith registry.locked(): print('in', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin is not None and other.stdout is not None
    assert other.stdout.readline() == b"in\n"
    probe = f"import fcntl; fcntl.flock(open({str(registry.state_dir() / 'lock')!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert b"BlockingIOError" in subprocess.run([sys.executable, "-c", probe], capture_output=True).stderr
    other.communicate(b"\n")
    with registry.locked(), registry.locked():
        assert b"BlockingIOError" in subprocess.run([sys.executable, "-c", probe], capture_output=True).stderr
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
