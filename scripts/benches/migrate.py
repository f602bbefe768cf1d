"""A redis moved to another host while its client asks on: `ckpt migrate` against the same done by hand.

The hosts are those of the tests (`tests/hosts/machines.py`), with a client behind a router. Each peer moves a group
that `ckpt run` has started, full of so many megabytes of noise. By hand is what somebody does who knows how: all that
can be prepared on the target is, the link is taken away before the freeze, `criu dump`, `scp`, `criu restore` into the
prepared namespace, and only then it is plugged in and makes itself heard, so that no kernel without the socket ever
answers. ``blackout`` is the longest that the client waited for an answer, ``wall`` the time of all the commands.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from benches import host, measure
from benches.measure import Peer, Row, Seconds
from ckpt.kernel import criu, netns
from tests.hosts import machines
from tests.hosts.machines import BRIDGE, GATEWAY, Machine, World

ADDRESS, PORT = "10.88.0.10", 6379
GOALS = {("blackout", "ckpt"): 0.4}
PATIENCE = 120.0

# What can be done while the group runs.
_PREPARE = f"""\
set -e
ip netns add {{space}}
ip link add {{port}} type veth peer eth0 netns {{space}}
ip -n {{space}} link set lo up
ip -n {{space}} link set eth0 address {{mac}} up
ip -n {{space}} address add {ADDRESS}/24 dev eth0
ip link set {{port}} up
ip -n {{space}} route add default via {GATEWAY}
"""

_MOVE = """\
set -e
ip link set {old} nomaster
mkdir {images}
{criu} dump --tree {pid} --images-dir {images} --external 'net[{inode}]:hand' --tcp-established --ext-unix-sk \\
    --file-locks --network-lock skip --log-file log
{copy}
ssh b {there}
"""

_THERE = f"""\
{{criu}} restore --images-dir {{arrived}} --inherit-fd 'fd[9]:hand' --tcp-established --ext-unix-sk --file-locks \\
    --restore-detached --log-file log 9</run/netns/{{space}} </dev/null >/dev/null 2>&1 &&
ip link set {{port}} master {BRIDGE} && ip netns exec {{space}} ping -qc1 {GATEWAY} >/dev/null"""


def compare(megabytes: int, rounds: int, place: Path) -> list[Row]:
    """Move a redis of that size, in turn."""

    def peer(name: str, move: Callable[[World], None]) -> Peer:
        return Peer(name=name, measure=lambda: _measured(megabytes, place, move))

    host.install({"rsync": "rsync"})
    # rsync is asked not to compare what is new anyway.
    peers: Sequence[Peer] = (
        peer("by hand", lambda world: _by_hand(world, "scp -qrO {images} b:{arrived}")),
        peer("by rsync", lambda world: _by_hand(world, "rsync --archive --whole-file {images}/ b:{arrived}/")),
        peer("ckpt", _ckpt),
    )
    return measure.compare(f"{megabytes} MB", peers, rounds, GOALS)


def _ckpt(world: World) -> None:
    world.a.must("migrate", "redis", "--host", "b")


def _by_hand(world: World, copy: str) -> None:
    (pid,) = (group["pid"] for group in world.a.must("ps"))
    (old,) = (link["ifname"] for link in _links(world.a, "master", BRIDGE) if link["ifname"].startswith("ckpt"))
    (inner,) = json.loads(_said(world.a, "nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-j", "link", "show", "eth0"))
    mark = secrets.token_hex(3)
    words = {
        "space": f"hand{mark}",
        "port": f"hand{mark}",
        "mac": inner["address"],
        "old": old,
        "images": f"{world.a.place}/{mark}-there",
        "arrived": f"{world.b.place}/{mark}-here",
        "criu": str(criu.find().path),
        "pid": pid,
        "inode": _said(world.a, "stat", "-Lc", "%i", f"/proc/{pid}/ns/net").strip(),
    }
    _said(world.b, "sh", "-c", _PREPARE.format(**words))
    words["copy"] = copy.format(**words)
    _said(world.a, "sh", "-c", _MOVE.format(**words, there=shlex.quote(_THERE.format(**words))))


def _links(host: Machine, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_said(host, "ip", "-j", "link", "show", *words))
    return found


def _said(host: Machine, *argv: str) -> str:
    done = host.run(*argv, timeout=PATIENCE)
    if done.status:
        raise SystemExit(f"bench: {shlex.join(argv)} on {host.name}: {done.err or done.out}")
    return done.out


def _measured(megabytes: int, place: Path, move: Callable[[World], None]) -> Seconds:
    program = f"exec {shlex.quote(str(Path(sys.executable).with_name('ckpt')))}"
    with tempfile.TemporaryDirectory(dir=place) as directory, machines.made(Path(directory), program) as world:
        network = ["--link", BRIDGE, "--address", f"{ADDRESS}/24", "--gateway", GATEWAY]
        redis = ["redis-server", "--bind", ADDRESS, "--protected-mode", "no", "--save", ""]
        world.a.must("run", "--name", "redis", *network, "--", *redis)
        with _Client(world) as client:
            client.fill(megabytes)
            client.start()
            host.fetch_memory(4 * megabytes)
            client.wait_for_answers()
            client.longest = 0.0
            begin = time.perf_counter()
            move(world)
            wall = time.perf_counter() - begin
            client.wait_for_answers()
            return {"blackout": client.longest, "wall": wall}


class _Client(threading.Thread):
    """Asks on one connection all the time; ``longest`` is the longest wait for an answer."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0
        self._answers = 0
        self._failure: BaseException | None = None
        self._stop_asking = threading.Event()
        self._connection = _connected(world)
        self._replies = self._connection.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asking.set()
        if self.is_alive():
            self.join()
        self._connection.close()

    def fill(self, megabytes: int) -> None:
        """Give redis so much noise to keep."""
        for number in range(megabytes):
            value = os.urandom(1 << 20)
            self._ask(b"SET %d " % number, value)

    def _ask(self, command: bytes, value: bytes | None = None) -> None:
        words = [*command.split(), *([value] if value is not None else [])]
        parts = (b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        self._connection.sendall(b"*%d\r\n" % len(words) + b"".join(parts))
        reply = self._replies.readline()
        if not reply.startswith((b"+OK", b"+PONG")):
            raise OSError(f"the answer was {reply!r}")

    def run(self) -> None:
        last = time.perf_counter()
        try:
            while not self._stop_asking.is_set():
                self._ask(b"PING")
                now = time.perf_counter()
                self._answers += 1
                self.longest, last = max(self.longest, now - last), now
        except OSError as error:
            self._failure = error

    def wait_for_answers(self) -> None:
        """Wait for more answers."""
        wanted, deadline = self._answers + 100, time.monotonic() + PATIENCE
        while self._answers < wanted:
            if self._failure is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: the client has lost its connection: {self._failure!r}")
            time.sleep(0.01)


def _connected(world: World) -> socket.socket:
    """A connection to a server that is perhaps still starting."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with netns.entered(world.client):
            connection = socket.socket()
        connection.settimeout(PATIENCE)
        try:
            connection.connect((ADDRESS, PORT))
            return connection
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
