"""IP-set contexts: what they cost inside, beside them, and against a namespace behind a bridge.

Four places for one and the same program: on a host that never had a context, on a host that has some but outside of
them, inside of one, and in a network namespace that is attached to the host's bridge by a veth pair. Its peer is always
behind a link of the host. What is counted: seconds in ``bind``, of sockets made, bound and closed, of connections made
and accepted, of datagrams there and back, and of bytes that the program takes in. ``bind`` is the call alone;
everything else is as the program sees it.

Some of it takes a microsecond, and others use the machine meanwhile. So a round is a few milliseconds of one thing, in
one place after the other, and there are many: what disturbs one hardly touches the median of their ratios.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benches import measure
from benches.measure import Peer, Row, Seconds
from ckpt.kernel import context, netns
from ckpt.model.context import parse_set

WORK = {
    "bind": 1000,
    "bind any": 1000,
    "socket": 500,
    "socket any": 500,
    "connect": 60,
    "accept": 60,
    "datagrams": 400,
    "bytes": 16 << 20,
}
TURNS = 60
"""How many rounds of a thing are one of those that were asked for."""
GOALS = {
    ("bind", "inside"): 1.6,
    ("bind", "beside"): 1.03,
    ("bytes", "inside"): 1.05,
    ("bytes", "beside"): 1.03,
    ("connect", "beside"): 1.03,
    ("accept", "beside"): 1.03,
    ("datagrams", "beside"): 1.03,
}
OTHERS = 3
"""Contexts that are there besides, each with two addresses and a server on `*`."""

_WORKER = """
import json, socket, sys, threading, time
from time import perf_counter
for place in sys.argv[1:]:
    open(place + '/cgroup.procs', 'w').write('0')

def serve(kind, address, port, work):
    s = socket.socket(type=kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port))
    if kind == socket.SOCK_STREAM:
        s.listen(4096)
    threading.Thread(target=work, args=(s,), daemon=True).start()

def greet(s):
    while True:
        s.accept()[0].close()

def swallow(s):
    buffer = bytearray(1 << 18)
    while True:
        c = s.accept()[0]
        while c.recv_into(buffer):
            pass
        c.sendall(b'x')
        c.close()

def echo(s):
    while True:
        data, peer = s.recvfrom(2048)
        s.sendto(data, peer)

def start(address):
    serve(socket.SOCK_STREAM, address, 7001, greet)
    serve(socket.SOCK_STREAM, address, 7002, swallow)
    serve(socket.SOCK_DGRAM, address, 7003, echo)

def bind(address, count):
    spent = 0.0
    for number in range(count):
        s = socket.socket()
        before = perf_counter()
        s.bind((address, 20000 + number % 10000))
        spent += perf_counter() - before
        s.close()
    return spent

def make(address, count):
    before = perf_counter()
    for number in range(count):
        s = socket.socket()
        s.bind((address, 20000 + number % 10000))
        s.close()
    return perf_counter() - before

def connect(address, count):
    before = perf_counter()
    for _ in range(count):
        c = socket.create_connection((address, 7001))
        c.recv(1)
        c.close()
    return perf_counter() - before

def datagrams(address, count):
    c = socket.socket(type=socket.SOCK_DGRAM)
    c.settimeout(5)
    c.connect((address, 7003))
    before = perf_counter()
    for _ in range(count):
        c.send(b'x' * 64)
        c.recv(2048)
    return perf_counter() - before

def send(address, count):
    block = bytes(1 << 18)
    c = socket.create_connection((address, 7002))
    before = perf_counter()
    for _ in range(count // len(block)):
        c.sendall(block)
    c.shutdown(socket.SHUT_WR)
    c.recv(1)
    spent = perf_counter() - before
    c.close()
    return spent

for line in sys.stdin:
    print(json.dumps(eval(json.loads(line))), flush=True)
"""


class Worker:
    """A process in a namespace, and in a context if ``cgroup`` is one, that computes what it is asked."""

    def __init__(self, space: int, *cgroup: str) -> None:
        with netns.entered(space):
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, *cgroup], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )

    def ask(self, code: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """One of the four places: the program there, its address, and its peer with the peer's."""

    name: str
    program: Worker
    address: str
    peer: Worker
    peer_address: str

    def measure(self, what: str) -> Seconds:
        target, source, count = repr(self.address), repr(self.peer_address), WORK[what]
        any_ = repr("")
        asked = {
            "bind": (self.program, f"bind({target}, {count})"),
            "bind any": (self.program, f"bind({any_}, {count})"),
            "socket": (self.program, f"make({target}, {count})"),
            "socket any": (self.program, f"make({any_}, {count})"),
            "connect": (self.program, f"connect({source}, {count})"),
            "accept": (self.peer, f"connect({target}, {count})"),
            "datagrams": (self.peer, f"datagrams({target}, {count})"),
            "bytes": (self.peer, f"send({target}, {count})"),
        }
        who, code = asked[what]
        return {what: who.ask(code)}


def compare(directory: Path, rounds: int) -> list[Row]:
    """Compare the four."""
    with ExitStack() as stack:
        plain, plain_peer = _host(stack)
        busy, busy_peer = _host(stack)
        inside = _contexts(busy, directory, stack)
        spaced = _behind_bridge(plain, stack)
        peers = {plain: _worker(stack, plain_peer), busy: _worker(stack, busy_peer)}
        stations = [
            _station("unconfined", _worker(stack, plain), "10.9.0.1", peers[plain]),
            _station("beside", _worker(stack, busy), "10.9.0.1", peers[busy]),
            _station("inside", _worker(stack, busy, inside), "10.9.0.10", peers[busy]),
            _station("netns with veth and bridge", _worker(stack, spaced), "10.9.0.3", peers[plain]),
        ]
        for station in stations:
            # Beside contexts nobody has `*`.
            station.program.ask(f"start({('' if station.name == 'inside' else station.address)!r})")
        for peer in peers.values():
            peer.ask("start('')")
        rows = []
        for what in WORK:
            print(f"context: {rounds * TURNS} rounds of {what}", file=sys.stderr)
            comparers = [Peer(name=one.name, measure=partial(one.measure, what)) for one in stations]
            rows += measure.compare("context", comparers, rounds * TURNS, GOALS, told=False)
        return rows


def _station(name: str, program: Worker, address: str, peer: Worker) -> Station:
    return Station(name=name, program=program, address=address, peer=peer, peer_address="10.9.0.2")


def _worker(stack: ExitStack, space: int, *cgroup: str) -> Worker:
    worker = Worker(space, *cgroup)
    stack.callback(worker.end)
    return worker


def _host(stack: ExitStack) -> tuple[int, int]:
    """A host with a bridge that its address is on, and a peer that is attached to it."""
    host, peer = (stack.enter_context(_space()) for _ in range(2))
    _ip(host, "link add br0 type bridge", "link set br0 up", "link set lo up", "addr add 10.9.0.1/24 dev br0")
    _ip(host, "addr add 10.9.0.10/24 dev br0", "link add e0 type veth peer name e1", "link set e0 master br0 up")
    _move(host, peer, "e1")
    _ip(peer, "link set lo up", "link set e1 up", "addr add 10.9.0.2/24 dev e1")
    return host, peer


def _behind_bridge(host: int, stack: ExitStack) -> int:
    space = stack.enter_context(_space())
    _ip(host, "link add g0 type veth peer name g1", "link set g0 master br0 up")
    _move(host, space, "g1")
    _ip(space, "link set lo up", "link set g1 up", "addr add 10.9.0.3/24 dev g1")
    return space


def _contexts(host: int, directory: Path, stack: ExitStack) -> str:
    """Contexts on ``host``, with servers in all but the one whose cgroup is returned."""
    with netns.entered(host):
        undo = stack.enter_context(_entered_at_the_end(host))
        wanted = context.create("bench", parse_set(["10.9.0.10"]), directory, undo)
        for number in range(OTHERS):
            addresses = [f"10.9.0.{20 + number}", f"10.9.0.{30 + number}"]
            _ip(host, *(f"addr add {address}/24 dev br0" for address in addresses))
            other = context.create(f"bench{number}", parse_set(addresses), directory, undo)
            worker = Worker(host, other.cgroup)
            undo.callback(worker.end)
            worker.ask("start('')")
    return wanted.cgroup


@contextlib.contextmanager
def _entered_at_the_end(host: int) -> Iterator[ExitStack]:
    """Undoing contexts wants to be in their namespace."""
    undo = ExitStack()
    try:
        yield undo
    finally:
        with netns.entered(host):
            undo.close()


@contextlib.contextmanager
def _space() -> Iterator[int]:
    space = netns.create()
    try:
        yield space
    finally:
        os.close(space)


def _ip(space: int, *commands: str) -> None:
    with netns.entered(space):
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)


def _move(host: int, other: int, ifname: str) -> None:
    with netns.entered(host):
        subprocess.run(["ip", "link", "set", ifname, "netns", f"/proc/self/fd/{other}"], check=True, pass_fds=[other])
