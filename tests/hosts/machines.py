"""Hosts made of namespaces: each with its own network, mounts, PIDs, name, /run, disk of ckpt's, and a real sshd.

Two hosts and a router are ports of one switch, a bridge of the lab; behind the router is a client. The lab's own
namespace is only the wire, so a capture there sees what passes between the machines and nothing else. A host's root
file system is the lab's but for what would tell them apart: /run, /root with the ssh configuration, /var/lib/ckpt,
which survives a loss of power, and /usr/local/bin with the ckpt under test. Keys are made for the session.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt.kernel import cgroup2, context_places, netns
from tests.outcome import Outcome

ROOT = Path(__file__).resolve().parents[2]
BRIDGE = "br0"
"""What every host's groups are attached to."""

GATEWAY, GATEWAY6 = "10.88.0.254", "fd88::fe"
PATIENCE = 60.0

_SSHD = """\
Port 22
ListenAddress {address}
HostKey {keys}/host_{name}
AuthorizedKeysFile {keys}/user.pub .ssh/authorized_keys
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
X11Forwarding no
"""

_SSH = """\
Host a
    HostName 10.88.0.1
Host b
    HostName 10.88.0.2
Host *
    IdentityFile {keys}/user
    IdentitiesOnly yes
    UserKnownHostsFile {keys}/known_hosts
    BatchMode yes
    ConnectTimeout 5
"""


@dataclass(slots=True)
class Machine:
    """One host: ``init`` is its first process, and all others are below it; ``cookie`` is its network namespace's."""

    name: str
    address: str
    place: Path
    port: str
    keys: Path
    program: str
    init: subprocess.Popen[bytes] | None = None
    cookie: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def mac(self) -> str:
        """Its bridge's: a bridge without one of its own changes it with its ports, and its peers lose it meanwhile."""
        return f"02:88:00:00:00:{int(self.address.rpartition('.')[2]):02x}"

    @property
    def address6(self) -> str:
        """Its other address."""
        return f"fd88::{self.address.rpartition('.')[2]}"

    @property
    def disk(self) -> Path:
        """What is its /var/lib/ckpt, as seen from outside."""
        return self.place / "disk"

    def command(self, *argv: str) -> list[str]:
        """What runs ``argv`` on this host."""
        assert self.init is not None
        inside = ["--net", "--mount", "--pid", "--uts"]
        plain = ["env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]
        return ["nsenter", f"--target={_first(self.init.pid)}", *inside, "--", *plain, *argv]

    def run(self, *argv: str, timeout: float = PATIENCE, input: bytes | None = None) -> Outcome:
        """Run a command to its end."""
        done = subprocess.run(self.command(*argv), capture_output=True, timeout=timeout, input=input)
        return Outcome(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def ckpt(self, *words: str, timeout: float = PATIENCE) -> Outcome:
        """Run ckpt, for JSON."""
        return self.run("ckpt", "--json", *words, timeout=timeout)

    def must(self, *words: str) -> Any:
        """What ckpt prints where it must not fail."""
        done = self.ckpt(*words)
        assert done.status == 0, f"ckpt {' '.join(words)} on {self.name}: {done.err}"
        return json.loads(done.out) if done.out.strip() else None

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """Start a command; the caller ends it."""
        return subprocess.Popen(self.command(*argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def groups(self) -> dict[str, str]:
        """The groups that it knows, with their states."""
        return {one["name"]: one["state"] for one in self.must("ps")}

    def records(self) -> list[dict[str, Any]]:
        """What is written down of migrations that have not come to their end."""
        return [json.loads(path.read_text()) for path in sorted(self.disk.glob("migrations/*.json"))]

    def boot(self) -> None:
        """Start it, with what is on its disk."""
        for name in ("disk", "bin", "root/.ssh"):
            (self.place / name).mkdir(parents=True, exist_ok=True)
        self._write_files()
        script = f"""
            set -e
            mount --make-rprivate /
            mount -t tmpfs -o mode=755 none /run
            mkdir -p /run/sshd /run/lock /run/netns /var/lib/ckpt
            mount --bind {self.place}/root /root
            mount --bind {self.place}/bin /usr/local/bin
            mount --bind {self.disk} /var/lib/ckpt
            hostname {self.name}
            ip link set lo up
            ip link add {BRIDGE} address {self.mac} up type bridge
            touch /run/up
            exec tini -s -- sleep infinity
        """
        self.init = subprocess.Popen(
            [
                "unshare",
                "--net",
                "--mount",
                "--pid",
                "--uts",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                script,
            ]
        )
        self._wait(lambda: self.run("test", "-e", "/run/up").status == 0, "it is up")
        space = netns.open_of(_first(self.init.pid))
        with netns.entered(space):
            self.cookie = context_places.netns_cookie()
        os.close(space)
        self.plug()
        self.run("ip", "address", "add", f"{self.address}/24", "dev", BRIDGE)
        self.run("ip", "route", "add", "default", "via", GATEWAY)
        self.run("ip", "address", "add", f"{self.address6}/64", "dev", BRIDGE, "nodad")
        self.run("ip", "route", "add", "default", "via", GATEWAY6)
        self.run("/usr/sbin/sshd", "-f", str(self.place / "sshd_config"), "-E", str(self.place / "sshd.log"))
        self._wait(lambda: self.run("ssh", self.address, "true").status == 0, "its sshd answers")
        # A switch forwards for a port some time after its cable was put in.
        self._wait(lambda: self.run("ping", "-qc1", "-W1", GATEWAY).status == 0, "it reaches the router")

    def plug(self) -> None:
        """Put the cable in."""
        assert self.init is not None
        inner = f"p{secrets.token_hex(4)}"
        _must("ip", "link", "add", self.port, "up", "type", "veth", "peer", inner)
        _must("ip", "link", "set", self.port, "master", _switch_of(self.port))
        _must("ip", "link", "set", inner, "netns", str(_first(self.init.pid)))
        for words in (["set", inner, "name", "eth0"], ["set", "eth0", "master", BRIDGE], ["set", "eth0", "up"]):
            assert self.run("ip", "link", *words).status == 0

    def cut(self) -> None:
        """Cut the cable: nobody is told, and nothing passes."""
        _must("ip", "link", "set", self.port, "nomaster")

    def mend(self) -> None:
        """Mend the cable that was cut."""
        _must("ip", "link", "set", self.port, "master", _switch_of(self.port))

    def lose_power(self) -> None:
        """All its processes are gone at once, with all that was not on its disk; not a packet says so."""
        subprocess.run(["ip", "link", "delete", self.port], capture_output=True)
        if self.init is not None:
            # Its first process goes with the one that made it (--kill-child).
            self.init.kill()
            self.init.wait()
            self.init = None
            # Its cgroups would have gone with its kernel, which is the lab's.
            for cgroup in cgroup2.root().glob(f"ckpt-{self.cookie:x}-*"):
                cgroup2.remove(cgroup)

    def _write_files(self) -> None:
        names = {"keys": self.keys, "address": self.address, "name": self.name}
        (self.place / "sshd_config").write_text(_SSHD.format(**names))
        config = self.place / "root/.ssh/config"
        config.write_text(_SSH.format(**names))
        config.chmod(0o600)
        program = self.place / "bin/ckpt"
        program.write_text(f'#!/bin/sh\n{self.program} "$@"\n')
        program.chmod(0o755)

    def _wait(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{self.name}: waited in vain until {what}"
            time.sleep(0.05)


@dataclass(slots=True)
class World:
    """Two hosts, a router, a client behind it, and the switch; ``client`` and ``router`` are namespaces."""

    a: Machine
    b: Machine
    client: int
    router: int
    place: Path


def _first(pid: int) -> int:
    """The first process of the PID namespace below `unshare --fork`."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if children:
                return int(children[0])
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
        time.sleep(0.01)
    raise AssertionError("the host does not run")


def _must(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"


def _switch_of(port: str) -> str:
    return f"sw{port[2:]}"


# Byte code beside the program, on the host's disk: not in the tree under test, and not compiled anew at every start.
TESTED = f'PYTHONPATH={ROOT} PYTHONPYCACHEPREFIX="${{0%/*}}/pycache" exec {sys.executable} -m tests.hosts.fault_program'


@contextmanager
def made(place: Path, program: str = TESTED) -> Iterator[World]:
    """The world; nothing of it is left after the block. ``program`` is what runs ckpt, in the words of a shell."""
    mark = secrets.token_hex(3)
    keys = place / "keys"
    keys.mkdir()
    for name in ("user", "host_a", "host_b"):
        _must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(keys / name))
    with ExitStack() as stack:
        hosts = {}
        addresses = {"a": "10.88.0.1", "b": "10.88.0.2"}
        known = [f"{addresses[name]} {(keys / f'host_{name}.pub').read_text()}" for name in addresses]
        (keys / "known_hosts").write_text("".join(known))
        switch = f"sw{mark}"
        _must("ip", "link", "add", switch, "up", "type", "bridge")
        stack.callback(subprocess.run, ["ip", "link", "delete", switch], capture_output=True)
        client, router = _behind_a_router(switch, mark, stack)
        for name, address in addresses.items():
            # The switch is named by the port's last digits; a prefix tells the ports apart.
            host = Machine(name, address, place / name, f"{name}p{mark}", keys, program)
            hosts[name] = host
            stack.callback(host.lose_power)
            host.boot()
        yield World(hosts["a"], hosts["b"], client, router, place)


def _behind_a_router(switch: str, mark: str, stack: ExitStack) -> tuple[int, int]:
    """A client that reaches the switch by a router which tracks connections, and drops what belongs to none."""
    client, router = netns.create(), netns.create()
    stack.callback(os.close, client)
    stack.callback(os.close, router)
    port = f"rp{mark}"
    _must("ip", "link", "add", port, "master", switch, "up", "type", "veth", "peer", f"rx{mark}")
    stack.callback(subprocess.run, ["ip", "link", "delete", port], capture_output=True)
    _must("ip", "link", "set", f"rx{mark}", "netns", f"/proc/{os.getpid()}/fd/{router}")
    with netns.entered(router):
        _must("ip", "link", "add", "inside", "type", "veth", "peer", "eth0")
        _must("ip", "link", "set", "eth0", "netns", f"/proc/{os.getpid()}/fd/{client}")
        _must("ip", "link", "set", f"rx{mark}", "name", "outside")
        for link, four, six in (("outside", GATEWAY, GATEWAY6), ("inside", "10.99.0.1", "fd99::1")):
            _must("ip", "address", "add", f"{four}/24", "dev", link)
            _must("ip", "address", "add", f"{six}/64", "dev", link, "nodad")
            _must("ip", "link", "set", link, "up")
        _must("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        _must("nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; }")
        _must("nft", "add rule inet t f ct state invalid drop")
    with netns.entered(client):
        _must("ip", "link", "set", "lo", "up")
        _must("ip", "address", "add", "10.99.0.2/24", "dev", "eth0")
        _must("ip", "address", "add", "fd99::2/64", "dev", "eth0", "nodad")
        _must("ip", "link", "set", "eth0", "up")
        for gateway in ("10.99.0.1", "fd99::1"):
            _must("ip", "route", "add", "default", "via", gateway)
    return client, router
