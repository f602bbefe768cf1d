"""A place for tests of IP-set contexts: a host with many addresses, a peer behind a link, and agents that hold sockets.

An agent is a process of its own, somewhere: in a context, unconfined on the host, or at the peer. It does what it is
told, a line of Python at a time, and answers with a value or with the errno of the call that failed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ckpt.kernel import cgroup2, context, context_books, context_places, netns, syscalls
from ckpt.model.context import Context, parse_set
from tests.conftest import random_name, require
from tests.net import spaces

SECONDS = 5.0
"""How long an agent waits for a packet that has to come."""

HOST = {
    "first": ("10.77.0.11/24", "fd77::11/64"),
    "second": ("10.77.1.11/24", "fd77:1::11/64"),
    "other": ("10.77.0.12/24", "fd77::12/64"),
    "free": ("10.77.0.1/24", "fd77::1/64"),
    "free2": ("10.77.1.1/24", "fd77:1::1/64"),
}
PEER = {"near": ("10.77.0.2", "fd77::2"), "second": ("10.77.1.2", "fd77:1::2"), "far": ("10.99.0.2", "fd99::2")}

_NOT_OF_CGROUPS = {"rw", "ro", "seclabel", "nsdelegate"}
"""What is told of a cgroup2 mount and not to be said when it is mounted, or is what is at issue."""

LEAVING = """
import pathlib, socket
for line in open('/proc/self/mountinfo'):
    fields, _, rest = line.partition(' - ')
    if rest.split()[0] == 'cgroup2':
        root = pathlib.Path(fields.split()[4])
try:
    (root / 'cgroup.procs').write_text('0')
except FileNotFoundError:
    print('refused')
else:
    print('left')
try:
    socket.socket().bind(('ADDRESS', 8080))
except OSError as error:
    print(error.strerror)
else:
    print('bound')
"""
"""What a program that wants to leave its context does, and whether it has an address then that is not of the set."""
STAYED = ["refused", "Cannot assign requested address"]
"""What it says in vain."""

_OF_TESTS = re.compile(r"ckpt-[0-9a-f]+-[cg][0-9a-f]{8}")

_AGENT = """
import json, os, socket, sys, threading, errno, time
socket.setdefaulttimeout(SECONDS)
names = globals()
def plain(value):
    if isinstance(value, bytes): return value.decode()
    if isinstance(value, (list, tuple)): return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else None
for line in sys.stdin:
    code = json.loads(line)
    try:
        try:
            compiled = compile(code, 'agent', 'eval')
        except SyntaxError:
            exec(compile(code, 'agent', 'exec'), names); answer = {'value': None}
        else:
            answer = {'value': plain(eval(compiled, names))}
    except TimeoutError:
        answer = {'errno': errno.ETIMEDOUT, 'text': 'timed out'}
    except OSError as error:
        answer = {'errno': error.errno, 'text': str(error)}
    except BaseException as error:
        answer = {'failed': repr(error)}
    print(json.dumps(answer), flush=True)
"""


class Agent:
    """A process that does as it is told. ``cgroup`` is where it was before it made any socket."""

    def __init__(self, space: int, cgroup: str | None = None) -> None:
        code = _AGENT.replace("SECONDS", str(SECONDS))
        if cgroup is not None:
            code = f"open({str(Path(cgroup) / 'cgroup.procs')!r}, 'w').write('0')\n{code}"
        with netns.entered(space):
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def do(self, code: str) -> Any:
        """Run a statement, or evaluate an expression; OSError as in the agent."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"failed": "the agent has ended"}')
        if "failed" in answer:
            raise AssertionError(f"{code}: {answer['failed']}")
        if "errno" in answer:
            raise OSError(answer["errno"], f"{code}: {answer['text']}")
        return answer["value"]

    def fails(self, code: str) -> str:
        """The name of the errno with which ``code`` fails; empty when it does not."""
        try:
            self.do(code)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return ""

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass
class Lab:
    """The host, the peer, and everything that was started; all of it ends with ``stack``."""

    host: int
    peer: int
    directory: Path
    stack: ExitStack
    agents: list[Agent] = field(default_factory=list)

    def context(self, *texts: str) -> Context:
        """A context of the host."""
        with netns.entered(self.host):
            return context.create(random_name("c"), parse_set(texts), self.directory, self.stack)

    def inside(self, confined: Context) -> Agent:
        """An agent in a context."""
        return self.inside_of(Path(confined.cgroup))

    def inside_of(self, cgroup: Path) -> Agent:
        """An agent in a cgroup."""
        return self._agent(self.host, str(cgroup))

    def unconfined(self) -> Agent:
        """An agent of the host's, in no context."""
        return self._agent(self.host)

    def at_peer(self) -> Agent:
        """An agent at the other end of the host's link."""
        return self._agent(self.peer)

    def _agent(self, space: int, cgroup: str | None = None) -> Agent:
        agent = Agent(space, cgroup)
        self.agents.append(agent)
        # an exit stack ends what came last first: agents before the contexts that they are in
        self.stack.callback(agent.end)
        return agent

    def end_agents(self) -> None:
        while self.agents:
            self.agents.pop().end()

    def books(self) -> list[str]:
        """What the books have, as text."""
        with netns.entered(self.host):
            return sorted(f"{one.protocol} {one.address} {one.port} ×{one.sockets}" for one in context_books.claims())


def ip(which: str, family: int, hosts: dict[str, tuple[str, str]] | None = None) -> str:
    """The plain address of the host (or of another table) that is called ``which``."""
    return (hosts or HOST)[which][family == 6].partition("/")[0]


@contextlib.contextmanager
def lab(directory: Path) -> Iterator[Lab]:
    """A host and a peer, joined by a link with all of ``HOST`` on one end and all of ``PEER`` on the other."""
    _sweep()
    with spaces.fresh() as host, spaces.fresh() as peer, ExitStack() as stack:
        for space in (host, peer):
            spaces.shell("sysctl -qw net.ipv6.conf.default.accept_dad=0; ip link set lo up", space)
        spaces.shell(f"ip link add eth0 type veth peer name eth0 netns {spaces.path(peer)}; ip link set eth0 up", host)
        spaces.shell("ip link set eth0 up", peer)
        _fill(host, [address for pair in HOST.values() for address in pair])
        _fill(peer, [f"{ip(which, family, PEER)}/{24 if family == 4 else 64}" for which in PEER for family in (4, 6)])
        spaces.shell("ip route add default via 10.77.0.2; ip -6 route add default via fd77::2", host)
        spaces.shell("ip route add default via 10.77.0.1; ip -6 route add default via fd77::1", peer)
        spaces.settle(host)
        spaces.settle(peer)
        with netns.entered(host):
            yield Lab(host=host, peer=peer, directory=directory, stack=stack)
            stack.close()


def _sweep() -> None:
    """Remove cgroups of tests that were killed an hour ago or more: no process, and a name that only tests give."""
    for root in (*cgroup2.mount_points("cgroup2"), *cgroup2.mount_points("cgroup")):
        for path in root.glob("ckpt-*"):
            with contextlib.suppress(OSError):
                if _OF_TESTS.fullmatch(path.name) and time.time() - path.stat().st_mtime > 3600:
                    path.rmdir()


def _fill(space: int, addresses: Sequence[str]) -> None:
    script = "\n".join(f"ip addr add {address} dev eth0" + " nodad" * (":" in address) for address in addresses)
    spaces.shell(script, space)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """No other session of tests is in such a block."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def boundaries(*, on: bool) -> Iterator[None]:
    """Cgroup namespaces are boundaries (``nsdelegate``), or are none, for the time of the block.

    That is the whole hierarchy's, and said by who mounts it last, from the first cgroup namespace
    (kernel/cgroup/cgroup.c, apply_cgroup_root_flags).
    """
    with tempfile.TemporaryDirectory() as directory, _alone(cgroup2.root()):
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
        (was, *_) = (line.rpartition(" ")[2].split(",") for line in lines if " - cgroup2 " in line)
        if not on and "nsdelegate" in was:
            pytest.skip("this host has them as boundaries, and shall not be without")
        others = set(was) - _NOT_OF_CGROUPS

        def mount(options: set[str]) -> None:
            syscalls.mount("cgroup2", directory, kind="cgroup2", data=",".join(sorted(options)))
            syscalls.umount2(directory)

        mount(others | {"nsdelegate"} if on else others)
        try:
            require(cgroup2.is_delegated() is on, "the options of cgroup2 are not this machine's to set")
            yield
        finally:
            mount(others.union({"nsdelegate"}.intersection(was)))


def cgroups_left() -> list[str]:
    """Contexts of the caller's namespace that are still there."""
    return [name for name, _ in context_places.found()]


def processes_in(confined: Context) -> tuple[int, ...]:
    return cgroup2.pids(Path(confined.cgroup))


def can_be_made() -> bool:
    """Whether contexts can be made here at all."""
    return os.geteuid() == 0
