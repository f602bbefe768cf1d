"""A group that is moved between the two hosts, with a client behind the router that never rests.

Whichever host has it is the source of the next move. After a fault the machines are repaired, what waits is resumed and
cleaned as docs/migration.md tells a user to, and then there has to be exactly one running copy, or one whole image; and
nothing else.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ckpt.kernel import netns
from tests.conftest import random_name
from tests.criu.fault_lab import patient
from tests.criu.groups import PROGRAMS
from tests.criu.stream import Stream
from tests.hosts.fault_steps import SOURCE, Fault
from tests.hosts.machines import BRIDGE, GATEWAY, GATEWAY6, PATIENCE, Machine, World
from tests.outcome import Outcome

PORT = 7000

LEAVING_SECONDS = 10.0

LIMIT = "20"
"""The downtime limit where nothing has to wait for it."""

LIMITS = {"cable": "5", "host": "10"}
"""Those where a fault has one side wait for it, by the fault."""

UNREACHABLE = 15
"""The exit status of a ckpt that cannot reach the other host: try again when it can be reached."""


def run_server(host: Machine, name: str, address: str, *, isolation: str = "netns") -> None:
    """Run the stream server as a group of ``host``."""
    six = ":" in address
    program = [sys.executable, "-I", "-S", str(PROGRAMS / "stream_server.py"), "--family", "v6" if six else "v4"]
    network = ["--isolation", isolation, "--link", BRIDGE, "--address", f"{address}/{64 if six else 24}"]
    network += ["--gateway", GATEWAY6 if six else GATEWAY] if isolation == "netns" else ["--root-may-leave"]
    host.must("run", "--name", name, *network, "--clear-env", "--", *program)


def connect(world: World, address: str, port: int = PORT) -> socket.socket:
    """A connection of the client, as soon as somebody listens."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with netns.entered(world.client):
            connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        connection.settimeout(PATIENCE)
        try:
            connection.connect((address, port))
            return connection
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@dataclass(slots=True)
class Moving:
    """The group, and where it is."""

    world: World
    name: str
    address: str
    source: Machine
    target: Machine
    stream: Stream
    isolation: str = "netns"
    _stack: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def made(cls, world: World, isolation: str = "netns", address: str = "10.88.0.10") -> Moving:
        """A fresh one on A."""
        name = random_name("g")
        run_server(world.a, name, address, isolation=isolation)
        stack = ExitStack()
        stream = stack.enter_context(patient(Stream(connect(world, address))))
        # What the client still had to send when the group was ended would be answered by the next one with RST.
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.progress(100)
        return cls(world, name, address, world.a, world.b, stream, isolation, stack)

    def end(self) -> None:
        """The client first, which would complain."""
        self._stack.close()
        for host in (self.world.a, self.world.b):
            if host.init is not None:
                host.ckpt("stop", "--timeout", "0", self.name)
                host.ckpt("clean")

    def move(self, *options: str) -> Outcome:
        """Migrate it."""
        return self.source.ckpt("migrate", self.name, "--host", self.target.address, *options, timeout=120)

    def moved(self) -> None:
        """It is on the other host now."""
        self.source, self.target = self.target, self.source

    # -- faults ----------------------------------------------------------------------------------------------------

    def strike(self, fault: Fault) -> Outcome:
        """Migrate it with a fault, and repair the machines."""
        step = fault.step
        host = self.source if step.side == "source" else self.target
        command = "migrate" if step.side == "source" else "agent"
        plan = {"command": command, "point": step.point, "passage": step.passage, "fault": fault.fault}
        (host.disk / "fault.json").write_text(json.dumps(plan))
        outcome = self.move("--downtime-limit", LIMITS.get(fault.fault, LIMIT))
        struck = host.disk / "struck"
        assert struck.exists(), f"the fault never struck: {outcome}"
        struck.unlink()
        if fault.fault == "host":
            host.lose_power()
            host.boot()
        elif fault.fault == "cable":
            assert host.run("ip", "link", "set", "eth0", "master", BRIDGE).status == 0
        return outcome

    def leave_held(self, fault: str) -> str:
        """Let a fault strike the source when the target holds the group; the migration's id."""
        step = next(one for one in SOURCE if one.point.startswith("return") and "agree" in one.point)
        self.strike(Fault(step, fault))
        (record,) = self.target.records()
        assert record["state"] == "ready"
        return str(record["id"])

    def settle(self) -> list[Any]:
        """Do what a user is told to; what was said."""
        said: list[Any] = []
        # The source is asked first; what the target still has a record of, it finds out from the source.
        for host, other in ((self.source, self.target), (self.target, self.source)):
            for record in host.records():
                words = ["--host", other.address] if record["role"] == "target" else []
                deadline = time.monotonic() + PATIENCE
                while (done := host.ckpt("migrate", "--resume", record["id"], *words)).status == UNREACHABLE:
                    assert time.monotonic() < deadline, done
                said.append(done)
        for host in (self.source, self.target):
            said.append(host.must("clean"))
        return said

    def copies(self) -> list[Machine]:
        """The hosts on which it runs."""
        return [host for host in (self.source, self.target) if host.groups().get(self.name) == "running"]

    def images(self) -> list[str]:
        """The whole images that the source of a move may have kept, as the hosts name them."""
        return [str(path) for host in (self.source, self.target) for path in sorted(host.disk.glob("*.ckpt"))]

    def restore_image(self, image: str) -> None:
        """Restore it on the host that has it, and remove it."""
        host = next(one for one in (self.source, self.target) if image.startswith(str(one.disk)))
        path = f"/var/lib/ckpt/{image.rpartition('/')[2]}"
        host.must("restore", path)
        host.run("rm", path)

    def left_behind(self) -> list[str]:
        """What nobody may find when all is settled; what is on its way out may end."""
        deadline = time.monotonic() + LEAVING_SECONDS
        while (found := self._found()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _found(self) -> list[str]:
        found = []
        for host in (self.source, self.target):
            found += [f"{host.name}: migration {one}" for one in host.records()]
            kept = [path for path in host.disk.rglob("*") if path.is_file() and path.name != "lock"]
            found += [f"{host.name}: {path.name}" for path in kept]
            listed = host.run(
                "sh", "-c", "ps -e -o comm= | grep -E '^(criu|ssh)$'; ls -A /run/ckpt/ops /run/ckpt/netns"
            )
            found += [f"{host.name}: {one}" for one in listed.out.split() if not one.endswith(":")]
        return found
