"""What a ckpt that was killed leaves in the kernel's hands: a CRIU that still works, and namespaces that still live.

A CRIU outlives its ckpt until it next asks it something; then it undoes its work by itself, and whoever disturbs it
before that harms the group. It is known by its images directory, which it holds open. A network namespace is known by
the file that the dead ckpt has bound it to, never by its number alone, which the kernel gives away again. Nothing
here kills or removes anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ckpt.kernel import syscalls
from ckpt.kernel.procfs import PF_EXITING, parse_status, read_stat, read_text
from ckpt.records import dataclass

STUCK_SECONDS = 2.0
"""A CRIU whose ckpt is gone never sleeps for that long: who would answer it, or wake it?"""

_POLL_SECONDS = 0.02


def mark(directory: Path) -> str:
    """The name of a file by which a directory that no path leads to is told to be ``directory``."""
    return f"{directory.name}.mark"


def crius_in(directories: Sequence[Path]) -> tuple[int, ...]:
    """The PIDs of the CRIUs that hold one of ``directories`` open, and of what they are about to restore."""
    if not directories:
        return ()
    wanted = set()
    for directory in directories:
        with contextlib.suppress(OSError):
            found = directory.stat()
            wanted.add((found.st_dev, found.st_ino))
    marks = [mark(directory) for directory in directories]
    return tuple(pid for pid in _pids() if _is_criu(pid) and _holds(pid, wanted, marks))


@dataclass(frozen=True, slots=True)
class Crius:
    """The CRIUs that still are there; ``stuck`` says that none of them will ever do anything any more.

    What a CRIU that was killed had forked waits for it for ever.
    """

    pids: tuple[int, ...] = ()
    stuck: bool = False


def wait_for_crius(directories: Sequence[Path], timeout: float) -> Crius:
    """Wait until no CRIU works in ``directories`` any more; those that still do after ``timeout`` seconds.

    One that somebody has stopped is told to go on: while it stands still, so does the group.
    """
    deadline = time.monotonic() + timeout
    last: tuple[str, ...] = ()
    last_time = time.monotonic()
    while pids := crius_in(directories):
        now = time.monotonic()
        if now > deadline:
            return Crius(pids)
        states = {pid: found.state for pid in pids if (found := read_stat(pid)) is not None}
        for pid, state in states.items():
            if state == "T":
                with contextlib.suppress(ProcessLookupError), _pidfd(pid) as pidfd:
                    syscalls.pidfd_send_signal(pidfd, signal.SIGCONT)
        work = tuple(_work_of(pid) for pid in pids)
        # Who waits for a processor, or for a disk, does nothing either; but it will.
        if work != last or set("RD").intersection(states.values()):
            last, last_time = work, now
        elif now > last_time + STUCK_SECONDS:
            return Crius(pids, stuck=True)
        time.sleep(_POLL_SECONDS)
    return Crius()


def _work_of(pid: int) -> str:
    """How much ``pid`` has done so far: it differs as soon as it was awake for a moment."""
    return f"{pid}: {[line for line in read_text(f'/proc/{pid}/status').splitlines() if 'ctxt_switches' in line]}"


def wait_for_dying(pid: int, timeout: float) -> None:
    """Wait until ``pid`` has ended, if it was killed already: the first of a PID namespace waits for all the others."""
    deadline = time.monotonic() + timeout
    while _is_dying(pid) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _is_dying(pid: int) -> bool:
    line = read_stat(pid)
    if line is None or line.state in ("Z", "X"):
        return False
    values = parse_status(read_text(f"/proc/{pid}/status"))
    pending = int(values.get("SigPnd", "0"), 16) | int(values.get("ShdPnd", "0"), 16)
    return bool(line.flags & PF_EXITING or pending >> (signal.SIGKILL - 1) & 1)


def pids_in(inode: int) -> tuple[int, ...]:
    """The processes in the network namespace ``inode``, which something has to hold meanwhile."""
    return tuple(pid for pid in _pids() if _netns_of(pid) == inode)


def is_held(path: Path) -> bool:
    """Whether a process has ``path`` open, or works in it."""
    try:
        found = path.stat()
    except OSError:
        return False
    return any(_holds(pid, {(found.st_dev, found.st_ino)}) for pid in _pids())


def netns_of_pin(pin: Path) -> int | None:
    """The number of the namespace that is bound to the file ``pin``; None when none is."""
    try:
        found = pin.stat()
    except OSError:
        return None
    # A namespace's file lies on a device of its own; the file that it is bound to is one of /run.
    return found.st_ino if found.st_dev == os.stat("/proc/self/ns/net").st_dev else None


def is_covered(pid: int) -> bool:
    """Whether the cover that a dump puts over the /proc of ``pid``'s mount namespace is there."""
    return any(" - proc ckpt-proc " in line for line in read_text(f"/proc/{pid}/mountinfo").splitlines())


def one_in_each_netns(pids: Iterable[int]) -> tuple[int, ...]:
    """The first of ``pids`` in each network namespace that one of them is in, without the one that we are in."""
    found = {os.stat("/proc/thread-self/ns/net").st_ino: 0}
    for pid in pids:
        inode = _netns_of(pid)
        if inode is not None:
            found.setdefault(inode, pid)
    return tuple(found.values())[1:]


def _netns_of(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    return None


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _holds(pid: int, wanted: set[tuple[int, int]], marks: Sequence[str] = ()) -> bool:
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for place in ("cwd", *(f"fd/{fd}" for fd in fds)):
        with contextlib.suppress(OSError):
            found = os.stat(f"/proc/{pid}/{place}")
            if (found.st_dev, found.st_ino) in wanted:
                return True
            # An empty one has no mark; and to look for it in one that another serves (`fuse`) would be waiting for it.
            may_be_marked = stat.S_ISDIR(found.st_mode) and found.st_size
            if may_be_marked and any(os.path.lexists(f"/proc/{pid}/{place}/{one}") for one in marks):
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
