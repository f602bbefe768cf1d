"""The demonstration behind `scripts/demo`: a redis moves from host to host while its client counts.

The stage is a network, mount and PID namespace of this process's own, so nothing of it is seen on the host and nothing
is left when the process ends. In it stand two hosts, each with its own network, mounts, PIDs, /run and sshd, and behind
a router a client: the machines of the tests (`tests/hosts/machines.py`). The client keeps one TCP connection to redis,
sends INCR after INCR and checks every reply: a lost, repeated or refused one is an error. Meanwhile `ckpt` runs on the
hosts as it would from a shell.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ckpt.kernel import netns  # noqa: E402
from tests.hosts import machines  # noqa: E402
from tests.hosts.machines import BRIDGE, GATEWAY, Machine, World  # noqa: E402

ADDRESS, PORT = "10.88.0.10", 6379


class CountingClient(threading.Thread):
    """One connection, one INCR at a time; every reply must be the next number."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.checked = 0
        self.errors: list[str] = []
        self.longest_gap = 0.0
        self._stopping = threading.Event()
        self._connection = connected(world)

    def run(self) -> None:
        replies = self._connection.makefile("rb")
        last = time.monotonic()
        try:
            while not self._stopping.is_set():
                self._connection.sendall(b"INCR counter\r\n")
                reply = replies.readline()
                if reply != b":%d\r\n" % (self.checked + 1):
                    raise OSError(f"the reply after {self.checked} was {reply!r}")
                self.checked += 1
                now = time.monotonic()
                self.longest_gap, last = max(self.longest_gap, now - last), now
        except OSError as error:
            self.errors.append(str(error))

    def gap(self) -> float:
        """The longest wait for a reply since this was last asked."""
        found, self.longest_gap = self.longest_gap, 0.0
        return found

    def stop(self) -> None:
        self._stopping.set()
        self.join(timeout=60)


def connected(world: World) -> socket.socket:
    """A connection of the client's to a server that is perhaps still starting."""
    deadline = time.monotonic() + 20
    while True:
        with netns.entered(world.client):
            connection = socket.socket()
        connection.settimeout(60)
        try:
            connection.connect((ADDRESS, PORT))
            return connection
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def ckpt(host: Machine, *words: str) -> None:
    """Run `ckpt` on a host; shown as typed."""
    print(f"{host.name}$ ckpt {shlex.join(words)}", flush=True)
    subprocess.run(host.command("ckpt", *words), check=True)


def quietly(host: Machine, *words: str) -> Any:
    """The same for what it prints as JSON."""
    print(f"{host.name}$ ckpt {shlex.join(words)}", flush=True)
    return host.must(*words)


def perform(world: World) -> int:
    """The whole demonstration; the exit status."""
    a, b = world.a, world.b
    say("A redis on host a, with an address of its own; its client is behind a router")
    ckpt(a, "run", "--name", "redis", "--link", BRIDGE, "--address", f"{ADDRESS}/24", "--gateway", GATEWAY, "--",
         "redis-server", "--bind", ADDRESS, "--protected-mode", "no", "--save", "")  # fmt: skip
    ckpt(a, "ps")
    client = CountingClient(world)
    client.start()
    wait_for(client, 1000)
    print(f"the client has checked {client.checked} replies, on one connection")

    say("It moves to host b; the client keeps sending")
    client.gap()
    moved = quietly(a, "migrate", "redis", "--host", "b")
    wait_for(client, client.checked + 1000)
    blackout = client.gap()
    ckpt(a, "ps")
    ckpt(a, "ps", "--host", "b")

    say("It leaves host b into a file, is looked at, and goes on at host a: the same connection counts on")
    image = "/var/lib/ckpt/redis.ckpt"
    dumped = quietly(b, "dump", "redis", "-o", image)
    ckpt(b, "inspect", image)
    ckpt(b, "ps")
    ckpt(b, "restore", image, "--host", "a")
    wait_for(client, client.checked + 1000)
    client.stop()
    ckpt(a, "ps")
    ckpt(a, "stop", "redis")

    say("In numbers")
    for name, value in (
        ("moved: stood still for", f"{moved['away_seconds'] * 1000:.0f} ms"),
        ("moved: longest wait", f"{blackout * 1000:.0f} ms, as the client saw it"),
        ("dumped: frozen for", f"{dumped['frozen_seconds'] * 1000:.0f} ms"),
        ("dumped and restored", f"{client.gap():.2f} s (with the pause between them)"),
        ("image size", f"{dumped['size'] / 1024:.0f} KiB"),
        ("connections kept", str(dumped["connections"])),
        ("replies checked", str(client.checked)),
        ("errors", str(len(client.errors))),
    ):
        print(f"  {name:<28}{value}")
    for error in client.errors:
        print(f"  error: {error}", file=sys.stderr)
    return 1 if client.errors else 0


def wait_for(client: CountingClient, replies: int) -> None:
    """Wait until the client has checked so many replies, or has failed."""
    deadline = time.monotonic() + 60
    while client.checked < replies and not client.errors and time.monotonic() < deadline:
        time.sleep(0.01)
    if client.checked < replies and not client.errors:
        client.errors.append(f"no reply after {client.checked}")


def main() -> int:
    """Set the stage, perform, and clear it whatever happens."""
    if os.geteuid() != 0:
        print("demo: run it as root: sudo scripts/demo", file=sys.stderr)
        return 7
    if "CKPT_DEMO_STAGE" not in os.environ:
        stage = {**os.environ, "CKPT_DEMO_STAGE": "1"}
        spaces = ["--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
        os.execvpe("unshare", ["unshare", *spaces, "--", sys.executable, *sys.argv], stage)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    program = f"exec {shlex.quote(str(Path(sys.executable).with_name('ckpt')))}"
    with tempfile.TemporaryDirectory(prefix="ckpt-demo-") as place, machines.made(Path(place), program) as world:
        return perform(world)


if __name__ == "__main__":
    sys.exit(main())
