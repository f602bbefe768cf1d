"""The groups that live through faults: each with a client that never rests, made by a function of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ckpt.kernel import ending
from ckpt.model.process import Isolation
from tests.conftest import random_name
from tests.criu.fault_lab import Hammer, Survivor, patient
from tests.criu.groups import Group, Starter, python, wait_for
from tests.criu.nested_groups import routed
from tests.criu.segment import run
from tests.criu.test_servers import REDIS, Counter

Maker = Callable[[Starter, ExitStack], Survivor]


def streaming(start: Starter, stack: ExitStack) -> Survivor:
    """A stream server under `ckpt run`, its client hammering."""
    group = start.stream_server("--family", "v4")
    return _with_stream(group, start, stack)


def redis(start: Starter, stack: ExitStack) -> Survivor:
    """A redis under `ckpt run`, with a client that counts."""
    group = start(REDIS)
    group.wait_for_log("Ready to accept connections")
    connection = start.segment.connect(group.addresses.v4, 6379)
    counter = stack.enter_context(Counter(connection, random_name("key")))
    stack.enter_context(Hammer(start.segment, connection))
    return Survivor(group, counter.progress, start.images / "group.ckpt", group.addresses.v4)


def nested(start: Starter, stack: ExitStack) -> Survivor:
    """A stream server in a namespace below that of the root task, which forwards to it."""
    group = routed(start, "--family", "v4")
    survivor = _with_stream(group, start, stack, "10.78.0.2")
    stack.callback(start.segment.in_client, "ip", "route", "delete", "10.78.0.0/24")
    return survivor


def host(start: Starter, stack: ExitStack) -> Survivor:
    """A stream server in the host's own namespace, which its lock must outlive."""
    group = start.adopt(
        _launched(python("stream_server.py", "--family", "v4"), start.images, stack), start.segment.host
    )
    survivor = _with_stream(group, start, stack)
    survivor.in_hosts_namespace = True
    group.round_trip()
    return survivor


def context(start: Starter, stack: ExitStack) -> Survivor:
    """A stream server in an IP-set context, with addresses that ckpt puts on the bridge and takes away."""
    group = start.stream_server("--family", "v4", isolation=Isolation.IPSET)
    survivor = _with_stream(group, start, stack)
    survivor.in_hosts_namespace = True
    return survivor


def named(start: Starter, stack: ExitStack) -> Survivor:
    """A stream server under `ip netns exec`: a namespace with a name, and a mount namespace of its own."""
    name, port = random_name("ns"), random_name("po")
    run("ip", "netns", "add", name)
    stack.callback(subprocess.run, ["ip", "netns", "delete", name], capture_output=True)
    inside = ["ip", "-n", name]
    run(*inside, "link", "set", "lo", "up")
    addresses = start.segment.addresses()
    run("ip", "link", "add", port, "master", start.segment.bridge, "up", "type", "veth", "peer", "eth0", "netns", name)
    stack.callback(subprocess.run, ["ip", "link", "delete", port], capture_output=True)
    run(*inside, "addr", "add", f"{addresses.v4}/24", "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")
    command = ["ip", "netns", "exec", name, *python("stream_server.py", "--family", "v4")]
    group = start.adopt(_launched(command, start.images, stack), addresses)
    survivor = _with_stream(group, start, stack)
    group.round_trip()
    return survivor


def _with_stream(group: Group, start: Starter, stack: ExitStack, address: str | None = None) -> Survivor:
    stream = stack.enter_context(patient(group.stream(address)))
    stack.enter_context(Hammer(start.segment, stream.socket))
    stream.progress()
    return Survivor(group, lambda: stream.progress(100), start.images / "group.ckpt", address or group.addresses.v4)


def _launched(argv: list[str], directory: Path, stack: ExitStack) -> int:
    """A command that `ckpt run` knows nothing of, as a session of its own; its PID when it has said ``ready``."""
    log = directory.with_name(f"{random_name('log')}")
    with log.open("w") as output:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
        )
    # It is waited for by its PID alone: Popen would take the status away.
    child.returncode = 0
    stack.callback(_end, child.pid)
    wait_for(lambda: "ready" in log.read_text(), "the program is ready")
    return child.pid


def _end(pid: int) -> None:
    """End our child, if it is ours still: a dump takes it away, and its PID may be another's."""
    try:
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            ending.end_tree(pid, timeout=0)
            os.waitpid(pid, 0)
    except ChildProcessError:
        return
