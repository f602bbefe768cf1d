"""What a ckpt that was killed leaves in the kernel's hands: a CRIU that still works, and namespaces that still live.

A CRIU outlives its ckpt until it next asks it something; then it undoes its work by itself, and whoever disturbs it
before that harms the group. It is known by its images directory, which it holds open. A network namespace is known by
the lock in it, whose random name the dead ckpt had written down, never by its number, which the kernel gives away
again. Nothing here kills or removes anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ckpt.kernel import lock, netns, syscalls
from ckpt.kernel.procfs import read_stat, read_text
from ckpt.kernel.takedown import NETNS_NAMES

_POLL_SECONDS = 0.02


def crius_in(directories: Sequence[Path]) -> tuple[int, ...]:
    """The PIDs of the CRIUs that hold one of ``directories`` open, and of what they are about to restore."""
    wanted = set()
    for directory in directories:
        with contextlib.suppress(OSError):
            found = directory.stat()
            wanted.add((found.st_dev, found.st_ino))
    if not wanted:
        return ()
    return tuple(pid for pid in _pids() if _holds(pid, wanted) and _is_criu(pid))


def wait_for_crius(directories: Sequence[Path], timeout: float) -> tuple[int, ...]:
    """Wait until no CRIU works in ``directories`` any more; those that still do after ``timeout`` seconds.

    One that somebody has stopped is told to go on: while it stands still, so does the group.
    """
    deadline = time.monotonic() + timeout
    while crius := crius_in(directories):
        for pid in crius:
            found = read_stat(pid)
            if found is not None and found.state == "T":
                with contextlib.suppress(ProcessLookupError), _pidfd(pid) as pidfd:
                    syscalls.pidfd_send_signal(pidfd, signal.SIGCONT)
        if time.monotonic() > deadline:
            return crius
        time.sleep(_POLL_SECONDS)
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedNamespace:
    """A network namespace with lock tables ``locks`` of those that were asked for.

    ``descriptor`` keeps it alive for the time of the block; ``pids`` are in it, ``pins`` name it in /run/netns.
    """

    descriptor: int
    locks: tuple[str, ...]
    pids: tuple[int, ...]
    pins: tuple[str, ...]


@contextlib.contextmanager
def locked_namespaces(names: Collection[str]) -> Iterator[tuple[LockedNamespace, ...]]:
    """Every other network namespace, as far as processes and names lead to it, that has one of the lock tables."""
    with ExitStack() as opened:
        found = []
        if names:
            for place, pids, pins in _namespaces():
                try:
                    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    continue  # gone meanwhile
                opened.callback(os.close, descriptor)
                locks = tuple(name for name in lock.find(descriptor) if name in names)
                if locks:
                    found.append(LockedNamespace(descriptor=descriptor, locks=locks, pids=pids, pins=pins))
        yield tuple(found)


def _namespaces() -> Iterator[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    """A path to each namespace but our own, the PIDs in it, and its names."""
    own = os.stat("/proc/thread-self/ns/net")
    paths: dict[int, str] = {}
    pids: dict[int, list[int]] = {}
    pins: dict[int, list[str]] = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            inode = os.stat(f"/proc/{pid}/ns/net").st_ino
            paths.setdefault(inode, f"/proc/{pid}/ns/net")
            pids.setdefault(inode, []).append(pid)
    for pin in sorted(NETNS_NAMES.glob("*")):
        pinned = netns_of_pin(pin)
        if pinned is not None:
            paths.setdefault(pinned, str(pin))
            pins.setdefault(pinned, []).append(pin.name)
    paths.pop(own.st_ino, None)
    for inode, path in paths.items():
        yield path, tuple(pids.get(inode, ())), tuple(pins.get(inode, ()))


def netns_of_pin(pin: Path) -> int | None:
    """The number of the namespace that a name of ``ip netns`` stands for; None when nothing is mounted there."""
    try:
        found = pin.stat()
    except OSError:
        return None
    # An nsfs file lies on a device of its own; the file that `ip netns` mounts it over is one of /run.
    return found.st_ino if found.st_dev == os.stat("/proc/self/ns/net").st_dev else None


def is_empty_pin(pin: Path) -> bool:
    """Whether ``pin`` is the file of a name without a namespace: its maker was killed before it mounted one."""
    try:
        found = pin.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == 0 and netns_of_pin(pin) is None


def is_covered(pid: int) -> bool:
    """Whether the cover that a dump puts over the /proc of ``pid``'s mount namespace is there."""
    return any(" - proc ckpt-proc " in line for line in read_text(f"/proc/{pid}/mountinfo").splitlines())


def is_in(namespace: int, pid: int) -> bool:
    """Whether ``pid`` is in the network namespace behind the descriptor."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/net").st_ino == netns.inode(namespace)
    return False


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _holds(pid: int, wanted: set[tuple[int, int]]) -> bool:
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for place in ("cwd", *(f"fd/{fd}" for fd in fds)):
        with contextlib.suppress(OSError):
            found = os.stat(f"/proc/{pid}/{place}")
            if (found.st_dev, found.st_ino) in wanted:
                return True
    return False


def _is_criu(pid: int) -> bool:
    """Whether ``pid`` runs CRIU: its program may be started by a loader of its own, so the mappings tell."""
    return any(line.endswith("/criu") for line in read_text(f"/proc/{pid}/maps").splitlines())


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    pidfd = syscalls.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)
