"""Where the fault tests happen: one group with a connection that never rests, and what is to be found after a fault.

The group and its client live through many faults, so that every one of them also shows that those before did no harm.
Beside the verified stream a hammer sends segments of the very connection, some hundred a second: whatever moment the
server's kernel has the address and neither the socket nor the lock, it answers one of them with a RST.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt import clean, context, registry
from ckpt.image import Reader
from ckpt.kernel import netns, syscalls
from ckpt.kernel.proc import read_tree, tree_pids
from ckpt.model.process import FileKind
from ckpt.restore import restore_group
from tests import lab
from tests.criu.groups import Group
from tests.criu.segment import PATIENCE, Segment
from tests.criu.stream import Stream

RUNNER = Path(__file__).parent / "fault_runner.py"

HAMMER_SECONDS = 0.002
_ACK = 0x10
_TCP_REPAIR = 19
_TCP_RTO_MAX_MS = 44


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens where: at the ``passage``-th time that ``point`` is passed in ``work``. See ``fault_runner``."""

    work: str
    point: str
    fault: str = "ckpt"
    passage: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        step = self.point.replace("ckpt.kernel.", "").replace("ckpt.", "")
        mode = "-leave" if self.arguments.get("leave_running") else ""
        times = f" #{self.passage}" if self.passage > 1 else ""
        return f"{self.fault}: {self.work}{mode}: {step}{times}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the runner ended: its exit status (negative: by that signal), and what it said."""

    status: int
    said: dict[str, Any]
    errors: str

    @property
    def struck(self) -> bool:
        """Whether the fault happened."""
        return "struck" in self.errors


def run(plan: dict[str, Any], timeout: float = 60.0) -> Outcome:
    """One dump or restore in a process of its own."""
    with start(plan) as process:
        try:
            said, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return Outcome(status=process.returncode, said=json.loads(said) if said.strip() else {}, errors=errors)


def start(plan: dict[str, Any]) -> subprocess.Popen[str]:
    """Start it."""
    return subprocess.Popen(
        [sys.executable, str(RUNNER), json.dumps(plan)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


class Hammer:
    """Sends segments that belong to ``connection`` but for their numbers, all the time."""

    def __init__(self, segment: Segment, connection: socket.socket) -> None:
        (self._source, source_port), (self._target, target_port) = connection.getsockname(), connection.getpeername()
        self._ports = struct.pack(">HH", source_port, target_port)
        with netns.entered(segment.client):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="hammer", daemon=True)

    def __enter__(self) -> Hammer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _work(self) -> None:
        while not self._stop.wait(HAMMER_SECONDS):
            # Numbers far from any window: a socket answers with an ACK now and then, a kernel without it with a RST.
            body = self._ports + secrets.token_bytes(8) + struct.pack(">BBHHH", 5 << 4, _ACK, 1024, 0, 0)
            with contextlib.suppress(OSError):
                self._socket.sendto(body[:16] + self._checksum(body) + body[18:], (self._target, 0))

    def _checksum(self, body: bytes) -> bytes:
        pseudo = socket.inet_aton(self._source) + socket.inet_aton(self._target)
        words = struct.unpack(f">{(12 + len(body)) // 2}H", pseudo + struct.pack(">HH", 6, len(body)) + body)
        total = sum(words)
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return struct.pack(">H", ~total & 0xFFFF)


def patient(stream: Stream) -> Stream:
    """A stream whose client asks at least every second, so that a test need not wait for its back-off."""
    with contextlib.suppress(OSError):
        stream.socket.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, 1000)
        # The kernel counts in such steps as well when it gives up (tcp_model_timeout, net/ipv4/tcp_timer.c): after
        # 13 s, which a dump and a restore take on a busy machine.
        stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 600_000)
    return stream


# -- what is left --------------------------------------------------------------------------------------------------


def left_behind(images: Path) -> list[str]:
    """Everything that a dump or a restore has while it is under way, and that nobody may find after ``ckpt clean``."""
    found = [f"file {path}" for path in images.iterdir() if path.name.startswith(".")]
    state = registry.state_dir()
    found += [f"file {path}" for path in state.rglob("*") if path.is_file() and _is_transient(path, state)]
    deadline = time.monotonic() + PATIENCE
    # Those of another session's CRIU, which tries its kernel, are there for a moment.
    while any(Path("/tmp").glob(".criu*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    found += [f"file {path}" for path in Path("/tmp").glob(".criu*")]
    found += [f"lock {name} in namespace {inode}" for inode, name in locks()]
    found += [f"context {name}" for name in context.names() if registry.find(name) is None]
    known = {pid for entry in registry.entries() for pid in tree(entry.pid)}
    # A CRIU that was only just started has yet to see that nobody speaks to it any more.
    while (strays := {pid: said for pid, said in lab.strays().items() if pid not in known}) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.02)
    found += [f"process {pid}: {command}" for pid, command in strays.items()]
    for entry in registry.entries():
        found += [f"PID {pid} of {entry.name} {what}" for pid, what in wrong_tasks(entry.pid)]
    return found


def _is_transient(path: Path, state: Path) -> bool:
    known = path.parent in (state / "groups", state / "locks") and path.suffix == ".json"
    # Pins of programs, for as long as there is a context.
    known = known or (path.parent == state / "bpf" and bool(context.names()))
    return not known and path != state / "lock" and path.suffix != ".log"


def nothing(left: Iterable[object]) -> None:
    """Fail with all that is left."""
    text = "\n".join(map(str, left))
    assert not text, f"there is left:\n{text}"


def locks() -> list[tuple[int, str]]:
    """The lock tables of every network namespace that the session's processes are in."""
    found = {}
    for pid in (os.getpid(), *lab.strays(), *(pid for entry in registry.entries() for pid in tree(entry.pid))):
        with contextlib.suppress(OSError):
            found[os.stat(f"/proc/{pid}/ns/net").st_ino] = pid
    return [(inode, name) for inode, pid in found.items() for name in _locks_of(pid)]


def _locks_of(pid: int) -> list[str]:
    namespace = netns.open_of(pid)
    try:
        with netns.entered(namespace):
            lines = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout.splitlines()
    finally:
        os.close(namespace)
    return [line for line in lines if "ckpt" in line]


def state(pid: int) -> str:
    """The state letter of a process, X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    return list(tree_pids(pid)) if Path(f"/proc/{pid}").exists() else []


def wrong_tasks(root: int) -> Iterator[tuple[int, str]]:
    """The tasks of a living group that stand still, are traced, or hold a connection in repair mode."""
    if registry.start_time(root) is None:
        return
    for process in read_tree(root):
        status = Path(f"/proc/{process.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        if fields["State"][0] in "Tt":
            yield process.pid, f"is in state {fields['State']}"
        if fields["TracerPid"] != "0":
            yield process.pid, f"is traced by {fields['TracerPid']}"
        if " ckpt-proc " in Path(f"/proc/{process.pid}/mountinfo").read_text():
            yield process.pid, "has a /proc of ours"
        for file in process.files:
            if file.kind is FileKind.SOCKET and in_repair(process.pid, file.fd):
                yield process.pid, f"has the connection {file.fd} in repair mode"


def in_repair(pid: int, fd: int) -> bool:
    """Whether a descriptor is a TCP socket in repair mode."""
    pidfd = os.pidfd_open(pid)
    try:
        with socket.socket(fileno=syscalls.pidfd_getfd(pidfd, fd)) as duplicate:
            return duplicate.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR) == 1
    except OSError:
        return False
    finally:
        os.close(pidfd)


def portrait(group: Group) -> str:
    """What can be seen of a group and of its client's connections: for whoever reads why a test failed."""
    show = "ss -tneimo; nft list ruleset; ip -s neigh; cat /proc/net/netstat"
    told = []
    for pid in tree(group.pid):
        seen = {what: Path(f"/proc/{pid}/{what}") for what in ("comm", "stat", "wchan", "syscall")}
        told.append(f"PID {pid}: " + " | ".join(path.read_text().strip() for path in seen.values() if path.exists()))
    for who, pid in (("the group", group.pid), ("its host", os.getpid())):
        with contextlib.suppress(OSError):
            told += [f"-- {who}", _said("nsenter", f"--net=/proc/{pid}/ns/net", "sh", "-c", show)]
    with netns.entered(group.segment.client):
        told += ["-- its client", _said("sh", "-c", show)]
    return "\n".join(told)


def _said(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True).stdout


def is_whole(image: Path) -> bool:
    """Whether there is an image, and every byte of it is what it should be."""
    if not image.exists():
        return False
    with Reader(image) as reader:
        reader.verify()
    return True


# -- the invariant -------------------------------------------------------------------------------------------------


def socket_flags(root: int) -> dict[tuple[int, int], int]:
    """The status flags of every socket of a group, by PID (within) and descriptor: O_NONBLOCK above all."""
    return {
        (process.ns_pid, file.fd): file.flags
        for process in read_tree(root)
        for file in process.files
        if file.kind is FileKind.SOCKET
    }


@dataclass(slots=True)
class Survivor:
    """The group under test, its image, and how its client shows that the connection has not noticed anything.

    While a group of the host's own namespace is away, its lock has to stay.
    """

    group: Group
    progress: Callable[[], None]
    image: Path
    address: str
    in_hosts_namespace: bool = False
    flags: dict[tuple[int, int], int] = field(init=False)

    def __post_init__(self) -> None:
        """What holds now has to hold for ever."""
        self.flags = socket_flags(self.group.pid)

    @property
    def name(self) -> str:
        """Its name in the registry."""
        assert isinstance(self.group.target, str)
        return self.group.target

    @property
    def runs(self) -> bool:
        """Whether `ckpt ps` knows it as running."""
        entry = registry.find(self.name)
        return entry is not None and entry.alive

    def plan(self, fault: Fault) -> dict[str, Any]:
        """What the runner is told."""
        return {
            "work": fault.work,
            "target": self.name,
            "image": str(self.image),
            "arguments": fault.arguments,
            "point": fault.point,
            "passage": fault.passage,
            "fault": fault.fault,
        }

    def check(self) -> tuple[clean.CleanAction, ...]:
        """Clean, see that nothing is left and that the group runs or is restored; what was cleaned."""
        done = clean.clean()
        held = [
            one for one in done if not one.done and one.kind == "lock" and self.in_hosts_namespace and not self.runs
        ]
        nothing(set(clean.clean()) - set(held))
        nothing(one for one in left_behind(self.image.parent) if not (held and one.startswith("lock ")))
        nothing(one for one in done if not one.done and one not in held)
        if not self.runs:
            assert is_whole(self.image), "it neither runs nor is there an image"
            restore_group(self.image)
            nothing(left_behind(self.image.parent))
        self.progress()
        assert socket_flags(registry.get(self.name).pid) == self.flags
        return done
