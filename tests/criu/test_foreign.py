"""Groups that `ckpt run` did not start, and groups whose PIDs are taken."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from ckpt import registry
from tests import lab
from tests.criu.capture import capturing
from tests.criu.groups import Group, Starter, python, wait_for
from tests.criu.segment import Addresses, Segment, run

Launch = Callable[[Sequence[str]], int]


@pytest.fixture
def launch(tmp_path: Path, children: list[int]) -> Launch:
    """Starts a command as a session of its own, with a file as its output; its PID when it has said ``ready``."""

    def started(argv: Sequence[str]) -> int:
        log = tmp_path / f"log{len(children)}"
        with log.open("w") as output:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
            )
        children.append(child.pid)
        # It is waited for by its PID alone: Popen would take the status away, and complain that it was not asked.
        child.returncode = 0
        wait_for(lambda: "ready" in log.read_text(), "the program is ready")
        return child.pid

    return started


@pytest.fixture
def netns_name(unique: Callable[[str], str]) -> Iterator[str]:
    """A network namespace with a name, as `ip netns` makes them."""
    name = unique("ns")
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    yield name
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def attach(segment: Segment, pid: int, port: str) -> Addresses:
    """Give the namespace of ``pid`` a link on the segment, with a pair of addresses."""
    addresses = segment.addresses()
    run("ip", "link", "add", port, "master", segment.bridge, "up", "type", "veth", "peer", "eth0", "netns", str(pid))
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
    for address in addresses:
        run(*inside, "addr", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
    run(*inside, "link", "set", "eth0", "up")
    run(*inside, "link", "set", "lo", "up")
    return addresses


@pytest.fixture
def foreign(
    request: pytest.FixtureRequest,
    start: Starter,
    launch: Launch,
    netns_name: str,
    unique: Callable[[str], str],
) -> Iterator[Group]:
    """A stream server in a namespace made by other tools than ckpt; the parameter says how it got there."""
    ways = {
        "unshare": ["unshare", "--net", "--"],
        "nsenter": ["nsenter", f"--net=/run/netns/{netns_name}", "--"],
        "ip netns exec": ["ip", "netns", "exec", netns_name],
    }
    pid = launch([*ways[request.param], *python("stream_server.py")])
    port = unique("po")
    yield start.adopt(pid, attach(start.segment, pid, port))
    with contextlib.suppress(AssertionError):
        run("ip", "link", "delete", port)


@pytest.mark.parametrize("foreign", ["unshare", "nsenter", "ip netns exec"], indirect=True)
def test_round_trip_of_a_namespace_made_by_others(foreign: Group, stack: ExitStack, netns_name: str) -> None:
    named = foreign_is_named(foreign.pid, netns_name)
    streams = [
        stack.enter_context(foreign.stream(address, from_host=from_host))
        for address in (foreign.addresses.v4, foreign.addresses.v6)
        for from_host in (False, True)
    ]
    for stream in streams:
        stream.progress()
    links = {trace for trace in lab.traces() if trace.startswith("link")}
    with capturing() as capture:
        for _ in range(2):
            pid = foreign.pid
            foreign.dump()
            assert registry.start_time(pid) is None
            assert len(links - lab.traces()) == 1, "the dump took its link away, and nothing else"
            assert (f"network namespace {netns_name}" in lab.traces()) is not named
            report = foreign.restore()
            assert (report.connections, report.own_pid_namespace) == (len(streams), False)
            for stream in streams:
                stream.progress()
            assert foreign_is_named(foreign.pid, netns_name) is named
        assert capture.betrayals(*streams_addresses(foreign)) == []
    for stream in streams:
        stream.finish()


def streams_addresses(group: Group) -> tuple[str, str]:
    """The addresses of a group."""
    return group.addresses.v4, group.addresses.v6


def foreign_is_named(pid: int, name: str) -> bool:
    """Whether the namespace of ``pid`` is the one of that name."""
    path = Path("/run/netns", name)
    return path.exists() and path.stat().st_ino == os.stat(f"/proc/{pid}/ns/net").st_ino


def test_round_trip_in_the_hosts_namespace_connections_go_on(start: Starter, launch: Launch, stack: ExitStack) -> None:
    before = lab.traces()
    host = start.segment.host
    group = start.adopt(launch(python("stream_server.py")), host)
    other = start.adopt(launch(python("stream_server.py", "--port", 7009)), host)
    streams = [stack.enter_context(group.stream(address)) for address in (host.v4, host.v6)]
    bystander = stack.enter_context(other.stream(port=7009))
    for stream in streams:
        stream.progress()
    with capturing() as capture:
        for _ in range(2):
            group.dump()
            # Others on the host are not disturbed, also while the group is away.
            bystander.progress()
            assert group.restore().connections == len(streams)
            for stream in streams:
                stream.progress()
        assert capture.betrayals(host.v4, host.v6) == []
    for stream in (*streams, bystander):
        stream.finish()
    assert lab.traces() - before <= {f"registry entry {registry.state_dir()}"}


@pytest.mark.parametrize("foreign", ["unshare"], indirect=True)
def test_restore_with_pids_taken_makes_a_pid_namespace(foreign: Group, stack: ExitStack) -> None:
    stream = stack.enter_context(foreign.stream())
    stream.progress()
    pid = foreign.pid
    foreign.dump()
    holder = subprocess.Popen(python("pid_holder.py", pid), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        report = foreign.restore()
        assert report.own_pid_namespace
        assert report.pid != pid
        stream.progress()
        # From now on the namespace travels with the group.
        again = foreign.round_trip()
        assert not again.own_pid_namespace
        stream.progress()
        foreign.round_trip()
        stream.progress()
        stream.finish()
        holder.stdin.close()


def test_restore_again_while_the_first_runs_under_another_name(
    start: Starter, launch: Launch, unique: Callable[[str], str]
) -> None:
    """A program without a network: its PIDs are its own first copy's."""
    group = start.adopt(launch([*("unshare", "--net", "--"), *python("stream_server.py")]), start.segment.addresses())
    original = group.pid
    group.dump(leave_running=True)
    report = group.restore(name=unique("g"))
    assert report.own_pid_namespace
    assert registry.start_time(original) is not None
    assert registry.start_time(report.pid) is not None
    assert Path(f"/proc/{report.pid}/ns/net").readlink() != Path(f"/proc/{original}/ns/net").readlink()
