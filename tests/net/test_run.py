"""`ckpt run` and what ends it: real groups, seen from inside, from the bridge and from the host."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckpt import registry, run
from ckpt.errors import (
    CkptError,
    ExistsError,
    NetworkError,
    NotFoundError,
    PermissionDeniedError,
    StorageError,
    UnsupportedError,
)
from ckpt.kernel import apply, arp, ending, enter, netns, outside, spawn
from ckpt.kernel import run as tools
from ckpt.kernel.proc import children, read_tree, tree_pids
from ckpt.model.groupspec import GroupSpec, LinkKind
from ckpt.model.process import Isolation
from ckpt.registry import GroupEntry
from ckpt.stop import stop_group
from tests.conftest import random_name

CKPT = (sys.executable, "-c", "from ckpt.cli.main import main; main()")
PATIENCE = 20.0


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry and logs of the test's own, and no group of it left running."""
    monkeypatch.setenv("CKPT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CKPT_LOG_DIR", str(tmp_path / "log"))
    yield tmp_path / "state"
    for entry in registry.entries():
        stop_group(entry.name, timeout=0)


@pytest.fixture
def bridge() -> Iterator[str]:
    """A bridge of the test's own with 10.77.0.1/24 and fd77::1/64."""
    ifname = random_name("br")
    ip("link", "add", ifname, "up", "type", "bridge")
    ip("addr", "add", "10.77.0.1/24", "dev", ifname)
    ip("addr", "add", "fd77::1/64", "dev", ifname, "nodad")
    yield ifname
    outside.delete(ifname)


def ip(*arguments: str, namespace: int | None = None) -> str:
    return tools.run(["ip", *arguments], netns=namespace).decode()


def spec(*command: str, **changes: Any) -> GroupSpec:
    plain = GroupSpec(name=random_name("g"), command=command or ("sleep", "1000"), environment=dict(os.environ))
    return replace(plain, **changes)


def python(script: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script, *arguments)


def log_of(entry: GroupEntry) -> str:
    assert entry.log is not None
    return Path(entry.log).read_text()


def command_pid(entry: GroupEntry) -> int:
    """The PID of the command, the one child of the first process."""
    (pid,) = children(entry.pid)
    return pid


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def links() -> set[str]:
    return {link.ifname for link in outside.links()}


def test_group_has_namespaces_and_a_session_of_its_own() -> None:
    entry = run.start_group(spec())
    root, command = read_tree(entry.pid)
    own = {name: Path(f"/proc/self/ns/{name}").stat().st_ino for name in ("pid", "ipc", "uts", "net", "mnt", "user")}
    shared = {name for name, inode in own.items() if root.namespaces[name] == inode}
    assert shared == {"mnt", "user"}
    assert (root.ns_pids[-1], root.ns_sids[-1], root.name) == (1, 1, "tini")
    assert (command.ns_sids[-1], command.tty, command.cwd) == (1, None, "/")
    assert root.ppid not in (0, os.getpid())
    assert entry.netns == root.namespaces["net"]
    assert enter.run_inside(entry.pid, ["sh", "-c", f'test "$(hostname)" = {entry.name}']) == 0


def test_group_inherits_no_descriptor_but_its_streams() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    entry = run.start_group(spec())
    os.close(writer)
    for process in read_tree(entry.pid):
        assert {file.fd: file.path for file in process.files} == {0: "/dev/null", 1: entry.log, 2: entry.log}
        assert process.files[1].flags & os.O_APPEND
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_group_has_plain_signal_dispositions() -> None:
    entry = run.start_group(spec("cat", "/proc/self/status"))
    eventually(lambda: "SigCgt" in log_of(entry))
    masks = dict(line.split(":\t") for line in log_of(entry).splitlines() if line.startswith(("SigBlk", "SigIgn")))
    assert masks == {"SigBlk": "0" * 16, "SigIgn": "0" * 16}


@pytest.mark.parametrize("status", [0, 7, 126, 127, 255])
def test_run_group_returns_the_exit_status(status: int) -> None:
    outcome = run.run_group(spec("sh", "-c", f"exit {status}"))
    assert (outcome.status, outcome.dumped) == (status, False)
    assert registry.entries() == ()


def test_run_group_returns_the_signal_that_killed_the_command() -> None:
    assert run.run_group(spec("sh", "-c", "kill -SEGV $$")).status == 128 + signal.SIGSEGV


@pytest.mark.parametrize("number", run.FORWARDED)
def test_signal_to_a_waiting_ckpt_reaches_the_command(number: signal.Signals) -> None:
    script = "import os, signal, sys\nprint('ready', flush=True)\nsys.exit(signal.sigwait([int(sys.argv[1])]) + 20)"
    blocked = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [{number.value}])\n" + script
    name = random_name("g")
    waiting = subprocess.Popen([*CKPT, "run", "--name", name, "--wait", "--", *python(blocked, str(number.value))])
    eventually(lambda: (entry := registry.find(name)) is not None and "ready" in log_of(entry))
    waiting.send_signal(number)
    assert waiting.wait(PATIENCE) == number.value + 20
    assert registry.find(name) is None


def test_run_group_says_that_it_was_dumped_away() -> None:
    name = random_name("g")
    waiting = subprocess.Popen(
        [*CKPT, "run", "--name", name, "--wait", "--", "sleep", "1000"], stderr=subprocess.PIPE, text=True
    )
    eventually(lambda: (entry := registry.find(name)) is not None and entry.alive)
    entry = registry.get(name)
    # What a dump does: under its operation, it kills the tasks and forgets the group.
    with registry.Operation("dump", name):
        os.kill(entry.pid, signal.SIGKILL)
        _, words = waiting.communicate(timeout=PATIENCE)
    assert (waiting.returncode, words) == (
        0,
        f"ckpt: {name} was dumped away; `ckpt restore` brings it back\n",
    )


def test_orphans_are_reaped() -> None:
    script = (
        "import os, time\n"
        "for _ in range(20):\n"
        "  if os.fork() == 0:\n"
        "    if os.fork() == 0: time.sleep(0.05)\n"
        "    os._exit(0)\n"
        "for _ in range(20): os.wait()\n"
        "print('done', flush=True); time.sleep(1000)\n"
    )
    entry = run.start_group(spec(*python(script)))
    eventually(lambda: "done" in log_of(entry))
    eventually(lambda: len(tree_pids(entry.pid)) == 2)


@pytest.mark.parametrize(
    "arguments",
    [
        [
            "",
            " ",
            "a b",
            "",
            "'",
            '"',
            "$HOME",
            "*",
            "\\",
            "\n",
            "--",
            "-v",
            "--json",
            "\x1b[31m",
            "ü",
            "\udcff",
            "x" * 100000,
        ],
        ["--", "--name", "other"],
    ],
)
def test_any_arguments_reach_the_command(arguments: list[str]) -> None:
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    name = random_name("g")
    subprocess.run([*CKPT, "run", "--name", name, "--wait", "--", *python(script, *arguments)], check=True)
    assert json.loads((run.log_directory() / f"{name}.log").read_text()) == arguments


def test_environment_workdir_and_umask_are_as_asked(tmp_path: Path) -> None:
    script = "import json, os; print(json.dumps([dict(os.environ), os.getcwd(), os.umask(0)]))"
    name = random_name("g")
    options = ["--clear-env", "--env", "A=1=2", "--env", "PASSED", "--env", "NOT_THERE", "--umask", "077"]
    subprocess.run(
        [*CKPT, "run", "--name", name, "--wait", "--workdir", str(tmp_path), *options, "--", *python(script)],
        check=True,
        env=os.environ | {"PASSED": "on", "OTHER": "x"},
    )
    environment, workdir, umask = json.loads((run.log_directory() / f"{name}.log").read_text())
    environment.pop("LC_CTYPE", None)  # Python's own
    assert environment == run.MINIMAL_ENVIRONMENT | {"A": "1=2", "PASSED": "on"}
    assert (workdir, umask) == (str(tmp_path), 0o077)


def test_log_of_an_earlier_group_is_kept() -> None:
    name = random_name("g")
    for word in ("one", "two"):
        run.run_group(spec("echo", word, name=name))
    log = run.log_directory() / f"{name}.log"
    assert log.read_text() == "one\ntwo\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_isolation_none_stays_in_the_network_of_the_host() -> None:
    entry = run.start_group(spec(isolation=Isolation.NONE))
    assert Path(f"/proc/{entry.pid}/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    assert (entry.isolation, entry.netns) == ("none", None)


def test_without_link_the_group_has_lo_alone() -> None:
    entry = run.start_group(spec())
    namespace = netns.open_of(entry.pid)
    shown = json.loads(ip("-json", "addr", namespace=namespace))
    os.close(namespace)
    assert [(link["ifname"], "UP" in link["flags"]) for link in shown] == [("lo", True)]
    assert [item["local"] for item in shown[0]["addr_info"]] == ["127.0.0.1", "::1"]


def test_addresses_answer_ping_and_tcp_from_the_bridge(bridge: str) -> None:
    script = (
        "import socket\n"
        "listener = socket.create_server(('::', 80), family=socket.AF_INET6, dualstack_ipv6=True)\n"
        "while True:\n"
        "  connection, peer = listener.accept(); connection.sendall(b'hello'); connection.close()\n"
    )
    entry = run.start_group(
        spec(
            *python(script),
            link=bridge,
            addresses=("10.77.0.2/24", "fd77::2/64"),
            gateways=("10.77.0.1", "fd77::1"),
        )
    )
    ((link,), made) = (entry.links, entry.bridge_made)
    assert (outside.ports(bridge), made) == ((link,), False)
    for address in ("10.77.0.2", "fd77::2"):
        tools.run(["ping", "-c", "1", "-W", "5", address])
        eventually(lambda address=address: can_connect(address))  # type: ignore[misc]
        with socket.create_connection((address, 80), timeout=PATIENCE) as connection:
            assert connection.recv(10) == b"hello"
    namespace = netns.open_of(entry.pid)
    routes = [
        json.loads(ip("-json", family, "route", "show", "default", namespace=namespace)) for family in ("-4", "-6")
    ]
    os.close(namespace)
    assert [route["gateway"] for (route,) in routes] == ["10.77.0.1", "fd77::1"]


def can_connect(address: str) -> bool:
    try:
        socket.create_connection((address, 80), timeout=1).close()
    except OSError:
        return False
    return True


def test_macvlan_group_is_on_the_link_below() -> None:
    inside, far = random_name("p"), random_name("q")
    ip("link", "add", inside, "up", "type", "veth", "peer", "name", far)
    ip("link", "set", far, "up")
    ip("addr", "add", "10.78.0.1/24", "dev", far)
    try:
        entry = run.start_group(spec(link=inside, kind=LinkKind.MACVLAN, addresses=("10.78.0.2/24",)))
        assert (entry.links, entry.bridge, entry.parent) == ((), None, inside)
        tools.run(["ping", "-c", "1", "-W", "5", "10.78.0.2"])
        refused(ExistsError, "address-in-use", link=inside, kind=LinkKind.MACVLAN, addresses=("10.78.0.2/24",))
    finally:
        outside.delete(inside)


def test_stop_ends_by_sigterm_and_removes_a_bridge_it_made() -> None:
    ifname = random_name("br")
    entry = run.start_group(spec(link=ifname, addresses=("10.79.0.2/24",)))
    assert entry.bridge_made
    assert {ifname, *entry.links} <= links()
    report = stop_group(entry.name)
    assert (report.signal, report.links, report.bridge) == ("SIGTERM", entry.links, ifname)
    assert not {ifname, *entry.links} & links()
    assert registry.entries() == ()
    assert ending.end_tree(entry.pid, timeout=0) is None


def test_stop_ends_by_sigkill_what_ignores_sigterm() -> None:
    entry = run.start_group(spec("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done"))
    eventually(lambda: "ready" in log_of(entry))
    command = command_pid(entry)
    assert stop_group(entry.name, timeout=0.05).signal == "SIGKILL"
    assert registry.start_time(command) is None


def test_bridge_goes_with_the_last_group_that_uses_it() -> None:
    ifname = random_name("br")
    first = run.start_group(spec(link=ifname, addresses=("10.79.0.2/24",)))
    second = run.start_group(spec(link=ifname, addresses=("10.79.0.3/24",)))
    assert stop_group(first.name).bridge is None
    assert ifname in links()
    assert stop_group(second.name).bridge == ifname
    assert ifname not in links()


def test_bridge_that_somebody_gave_an_address_stays() -> None:
    ifname = random_name("br")
    entry = run.start_group(spec(link=ifname, addresses=("10.79.0.2/24",)))
    ip("addr", "add", "10.79.0.1/24", "dev", ifname)
    assert stop_group(entry.name).bridge is None
    assert outside.delete(ifname)


def test_bridge_of_another_stays(bridge: str) -> None:
    entry = run.start_group(spec(link=bridge))
    assert stop_group(entry.name).bridge is None
    assert bridge in links()


def refused(error: type[CkptError], code: str, /, *command: str, **changes: Any) -> CkptError:
    """The error of a group that cannot be started; nothing of the attempt may be left."""
    before = (links(), registry.entries())
    with pytest.raises(error) as caught:
        run.start_group(spec(*command, **changes))
    assert caught.value.code == code
    assert (links(), registry.entries(), registry.operations()) == (*before, ())
    return caught.value


def test_address_of_another_group_is_refused(bridge: str) -> None:
    first = run.start_group(spec(link=bridge, addresses=("10.77.0.2/24",)))
    error = refused(ExistsError, "address-in-use", link=bridge, addresses=("fd77::3/64", "10.77.0.2/16"))
    assert error.details == f"by the group {first.name}"


@pytest.mark.parametrize("address", ["10.77.0.1/24", "fd77::1/64"])
def test_address_of_the_host_is_refused(address: str, bridge: str) -> None:
    error = refused(ExistsError, "address-in-use", link=bridge, addresses=(address,))
    assert error.details == f"by this host, on {bridge}"


@pytest.mark.parametrize("address", ["10.77.0.9/24", "fd77::9/64"])
def test_address_that_somebody_answers_for_is_refused(address: str, bridge: str) -> None:
    namespace, port = netns.create(), random_name("v")
    try:
        ip(
            "link",
            "add",
            port,
            "up",
            "master",
            bridge,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            f"/proc/{os.getpid()}/fd/{namespace}",
        )
        ip("link", "set", "eth0", "up", namespace=namespace)
        ip("addr", "add", address, "dev", "eth0", "nodad", namespace=namespace)
        (link,) = json.loads(ip("-json", "link", "show", "eth0", namespace=namespace))
        error = refused(ExistsError, "address-in-use", link=bridge, addresses=(address,))
        assert error.details == f"by {link['address']} on {bridge}"
    finally:
        os.close(namespace)
        outside.delete(port)


def test_link_that_is_no_bridge_is_refused() -> None:
    error = refused(NetworkError, "link-not-bridge", link="lo", addresses=("10.77.0.2/24",))
    assert error.brief == "lo is not a bridge"


def test_macvlan_without_its_link_is_refused() -> None:
    refused(NotFoundError, "link-missing", link=random_name("x"), kind=LinkKind.MACVLAN)


def test_name_of_another_group_is_refused() -> None:
    first = run.start_group(spec())
    error = refused(ExistsError, "group-exists", name=first.name)
    assert error.details == f"it runs as PID {first.pid}"


def test_name_of_an_exited_group_is_refused_until_it_is_stopped() -> None:
    first = run.start_group(spec("true"))
    eventually(lambda: not first.alive)
    refused(ExistsError, "group-exists", name=first.name)
    assert stop_group(first.name).signal is None
    run.start_group(spec(name=first.name))


def test_command_that_is_not_there_is_refused() -> None:
    refused(NotFoundError, "command-missing", random_name("nothing"))
    refused(NotFoundError, "command-missing", f"/{random_name('nothing')}")
    refused(NotFoundError, "command-missing", "/etc")


def test_command_that_may_not_be_executed_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    refused(PermissionDeniedError, "command-not-executable", str(plain))


def test_command_without_its_interpreter_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/nonexistent/interpreter\n")
    script.chmod(0o755)
    error = refused(
        NotFoundError, "command-not-executed", str(script), link=random_name("br"), addresses=("10.79.0.2/24",)
    )
    assert error.details is not None
    assert "No such file" in error.details


def test_missing_workdir_is_refused() -> None:
    refused(NotFoundError, "workdir-missing", workdir="/nonexistent")


def test_missing_tini_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    error = refused(UnsupportedError, "tool-missing", link=random_name("br"))
    assert error.hint == "apt-get install tini"


def test_unwritable_log_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CKPT_LOG_DIR", str(tmp_path / "file"))
    refused(StorageError, "log-open", link=random_name("br"), addresses=("10.79.0.2/24",))


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (outside, "ensure_bridge"),
        (apply, "apply"),
        (arp, "announce"),
        (spawn, "starting"),
        (registry, "add"),
        (spawn.Starting, "go"),
        (run, "_require_executed"),
    ],
)
def test_failure_at_any_step_leaves_nothing(module: Any, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NetworkError("injected", code="injected")

    monkeypatch.setattr(module, function, fail)
    refused(NetworkError, "injected", link=random_name("br"), addresses=("10.79.0.2/24",))


def test_interrupt_after_a_step_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = outside.ensure_bridge

    def interrupted(ifname: str) -> bool:
        original(ifname)
        raise KeyboardInterrupt

    monkeypatch.setattr(outside, "ensure_bridge", interrupted)
    before = links()
    with pytest.raises(KeyboardInterrupt):
        run.start_group(spec(link=random_name("br"), addresses=("10.79.0.2/24",)))
    assert (links(), registry.entries(), registry.operations()) == (before, (), ())


def test_first_process_ends_when_ckpt_dies_before_it_is_let_go() -> None:
    log = os.open("/dev/null", os.O_WRONLY)
    first = spawn.FirstProcess(
        argv=("/bin/sleep", "1000"), environment={}, workdir="/", hostname="x", umask=0o22, log=log
    )
    with spawn.starting(first) as starting:
        pid = starting.pid
        assert registry.start_time(pid) is not None
    os.close(log)
    eventually(lambda: registry.start_time(pid) is None)


def test_exec_runs_inside_and_keeps_the_exit_status(bridge: str) -> None:
    entry = run.start_group(spec(link=bridge, addresses=("10.77.0.2/24",)))
    done = subprocess.run(
        [*CKPT, "exec", entry.name, "--", "sh", "-c", 'hostname; ip -o -4 addr show eth0; cat; exit "$1"', "x", "9"],
        input="from the terminal\n",
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, lines[0], lines[2]) == (9, "", entry.name, "from the terminal")
    assert "10.77.0.2/24" in lines[1]


def test_exec_reports_a_signal_and_a_missing_command() -> None:
    entry = run.start_group(spec())
    assert enter.run_inside(entry.pid, ["sh", "-c", "kill -TERM $$"]) == 128 + signal.SIGTERM
    with pytest.raises(NotFoundError) as caught:
        enter.run_inside(entry.pid, [random_name("nothing")])
    assert caught.value.code == "command-not-executable"


def test_exec_passes_signals_on() -> None:
    entry = run.start_group(spec())
    inside = subprocess.Popen(
        [*CKPT, "exec", entry.name, "sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"],
        stdout=subprocess.PIPE,
    )
    assert inside.stdout is not None
    assert inside.stdout.readline() == b"ready\n"
    inside.terminate()
    inside.stdout.close()
    assert inside.wait(PATIENCE) == 5


def test_logs_follow_until_the_group_has_exited() -> None:
    entry = run.start_group(spec("sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"))
    done = subprocess.run([*CKPT, "logs", "-f", entry.name], capture_output=True, timeout=PATIENCE)
    assert done.stdout == b"1\n2\n3\n"


def test_detached_ckpt_can_be_killed_without_the_group() -> None:
    name = random_name("g")
    done = subprocess.run(
        [*CKPT, "--json", "run", "--name", name, "--", "sleep", "1000"], capture_output=True, start_new_session=True
    )
    entry = registry.get(name)
    assert json.loads(done.stdout)["pid"] == entry.pid
    assert entry.alive
    # The group hears nothing of a terminal's hang-up: it is in a session of its own.
    assert os.getsid(entry.pid) == entry.pid


def test_verbose_shows_each_step(bridge: str) -> None:
    name = random_name("g")
    arguments = ["run", "-v", "--name", name, "--link", bridge, "--address", "10.77.0.2/24", "--", "true"]
    done = subprocess.run([*CKPT, *arguments], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines[0] == f"ckpt: asking on {bridge} who has 10.77.0.2"
    assert [line.split()[1:3] for line in lines[1:]] == [["filled", "the"], ["made", "the"]]


def test_is_subreaper_only_while_it_starts() -> None:
    run.run_group(spec("true"))
    value = ctypes.c_int(-1)
    assert ctypes.CDLL(None).prctl(37, ctypes.byref(value), 0, 0, 0) == 0  # PR_GET_CHILD_SUBREAPER
    assert value.value == 0
