"""The demonstration behind `scripts/demo`: a redis leaves and comes back while its client counts.

The stage is a network and mount namespace of this process's own, so nothing of it is seen on the host and nothing is
left when the process ends. A client keeps one TCP connection to redis, sends INCR after INCR and checks every reply:
a lost, repeated or refused one is an error. Meanwhile `ckpt` runs as it would from a shell.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

CKPT = Path(sys.executable).with_name("ckpt")
BRIDGE, GATEWAY, ADDRESS, PORT = "ckptdemo0", "10.77.0.1", "10.77.0.2", 6379


class CountingClient(threading.Thread):
    """One connection, one INCR at a time; every reply must be the next number."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.checked = 0
        self.errors: list[str] = []
        self.longest_gap = 0.0
        self._stopping = threading.Event()
        self._connection = connected((ADDRESS, PORT))

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

    def stop(self) -> None:
        self._stopping.set()
        self.join(timeout=60)


def connected(address: tuple[str, int]) -> socket.socket:
    """A connection to a server that is perhaps still starting."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(address, timeout=60)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def ckpt(*words: str, quiet: bool = False) -> Any:
    """Run `ckpt`; shown as typed, or with ``quiet`` for what it prints as JSON."""
    if quiet:
        output = subprocess.run([CKPT, "--json", *words], check=True, stdout=subprocess.PIPE).stdout
        return json.loads(output)
    print(f"$ ckpt {shlex.join(words)}", flush=True)
    return subprocess.run([CKPT, *words], check=True)


def perform(place: Path) -> int:
    """The whole demonstration; the exit status."""
    image = place / "redis.ckpt"
    say("A redis with an address of its own, on a bridge that ckpt makes")
    ckpt("run", "--name", "redis", "--link", BRIDGE, "--address", f"{ADDRESS}/24", "--",
         "redis-server", "--bind", ADDRESS, "--protected-mode", "no", "--save", "")  # fmt: skip
    subprocess.run(["ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE], check=True)
    ckpt("ps")

    say("A client counts on one connection and checks every reply")
    client = CountingClient()
    client.start()
    wait_for(client, 1000)
    before = client.checked
    print(f"{before} replies checked")

    say("The group leaves, into one file; the client keeps sending")
    print(f"$ ckpt dump redis -o {image}", flush=True)
    dumped = ckpt("dump", "redis", "-o", str(image), quiet=True)
    print(f"frozen for {dumped['frozen_seconds'] * 1000:.0f} ms, image of {dumped['size'] / 1024:.0f} KiB")
    ckpt("ps")
    ckpt("inspect", str(image))

    say("It comes back, and the same connection counts on")
    ckpt("restore", str(image))
    wait_for(client, client.checked + 1000)
    client.stop()
    ckpt("ps")
    ckpt("stop", "redis")

    say("In numbers")
    for name, value in (
        ("frozen", f"{dumped['frozen_seconds'] * 1000:.0f} ms"),
        ("longest wait of the client", f"{client.longest_gap:.2f} s (with the pause between dump and restore)"),
        ("image size", f"{dumped['size'] / 1024:.0f} KiB"),
        ("connections kept", str(dumped["connections"])),
        ("replies checked", f"{client.checked} ({before} of them before the dump)"),
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
        argv = ["unshare", "--net", "--mount", "--", sys.executable, *sys.argv]
        os.execvpe("unshare", argv, stage)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    place = Path(tempfile.mkdtemp(prefix="ckpt-demo-"))
    os.environ |= {"CKPT_STATE_DIR": str(place / "run"), "CKPT_LOG_DIR": str(place / "log")}
    try:
        return perform(place)
    finally:
        subprocess.run([CKPT, "stop", "--timeout", "0", "redis"], capture_output=True, check=False)
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
