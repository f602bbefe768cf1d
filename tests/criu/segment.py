"""An Ethernet segment for a test: a bridge of the lab with an address, and a client's namespace attached to it.

The lab is "the host" of the tests, so the bridge is where groups are attached, and its addresses are the host's. The
client is another machine as far as a group can tell. Nothing leaves the lab.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ckpt.kernel import netns

PATIENCE = 60.0

Socket = socket.socket


@dataclass(frozen=True, slots=True)
class Addresses:
    """The two addresses of one group."""

    v4: str
    v6: str

    def __iter__(self) -> Iterator[str]:
        """As `ckpt run` takes them."""
        yield f"{self.v4}/24"
        yield f"{self.v6}/64"


@dataclass(slots=True)
class Segment:
    """A bridge, its addresses on the host, and the namespace of the client."""

    bridge: str
    client: int
    host: Addresses = field(default_factory=lambda: Addresses("10.77.0.1", "fd77::1"))
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(10))

    def addresses(self) -> Addresses:
        """A pair of addresses that nobody has."""
        number = next(self._numbers)
        return Addresses(f"10.77.0.{number}", f"fd77::{number}")

    def connect(self, address: str, port: int, *, from_host: bool = False, buffer: int | None = None) -> Socket:
        """A TCP connection from the client, or from the host, as soon as somebody listens."""
        deadline = time.monotonic() + PATIENCE
        while True:
            connection = self.socket(address, socket.SOCK_STREAM, from_host=from_host)
            if buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            connection.settimeout(PATIENCE)
            try:
                connection.connect((address, port))
                return connection
            except ConnectionRefusedError:
                connection.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def socket(self, address: str, kind: socket.SocketKind, *, from_host: bool = False) -> Socket:
        """A socket of the client, or of the host, of the family of ``address``."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if from_host:
            return socket.socket(family, kind)
        with netns.entered(self.client):
            return socket.socket(family, kind)

    def listen(self, address: str, port: int) -> Socket:
        """A listening socket of the client."""
        listener = self.socket(address, socket.SOCK_STREAM)
        listener.bind((address, port))
        listener.listen()
        listener.settimeout(PATIENCE)
        return listener

    def in_client(self, *argv: str) -> str:
        """What a command says in the client's namespace."""
        with netns.entered(self.client):
            return run(*argv)


def run(*argv: str) -> str:
    """What a command says on its standard output."""
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


@contextmanager
def made() -> Iterator[Segment]:
    """A segment that is gone after the block, whatever is attached to it."""
    bridge, port = (f"{prefix}{secrets.token_hex(4)}" for prefix in ("br", "cl"))
    client = netns.create()
    segment = Segment(bridge, client)
    try:
        run("ip", "link", "add", bridge, "type", "bridge")
        run("ip", "link", "set", bridge, "up")
        for address in segment.host:
            run("ip", "addr", "add", address, "dev", bridge, "nodad")
        run("ip", "link", "add", port, "master", bridge, "up", "type", "veth", "peer", "eth0")
        run("ip", "link", "set", "eth0", "netns", f"/proc/{os.getpid()}/fd/{client}")
        segment.in_client("ip", "link", "set", "lo", "up")
        segment.in_client("ip", "link", "set", "eth0", "up")
        segment.in_client("ip", "addr", "add", "10.77.0.2/24", "dev", "eth0")
        segment.in_client("ip", "addr", "add", "fd77::2/64", "dev", "eth0", "nodad")
        yield segment
    finally:
        # The namespace goes some time after its last holder; its link must be gone when the test ends.
        for link in (port, bridge):
            subprocess.run(["ip", "link", "delete", link], capture_output=True)
        os.close(client)
