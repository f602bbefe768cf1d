"""Making the first process of a group.

ckpt forks a helper; the helper enters the prepared network namespace, unshares the PID, IPC and UTS namespaces and
forks once more: that child is PID 1 of the group. It waits until ckpt has written its PID down and says go, so a
ckpt that dies before leaves nothing behind, and then becomes a session of its own with the log as its output and
executes. The helper stays its parent until the command itself runs, and then ends: the group belongs to the
host's init, or to ckpt when that is a subreaper.

CRIU can restore only what a group owns: nothing is inherited but the three standard streams, none of them a
terminal, and the session is led from inside the PID namespace. Between fork and exec the children only make system
calls; they never return into the caller's code.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import NoReturn

from ckpt.errors import CkptError, NotFoundError, PermissionDeniedError, UnsupportedError
from ckpt.kernel import syscalls
from ckpt.kernel.proc import children
from ckpt.kernel.procfs import read_stat
from ckpt.kernel.repeating import close_all_but
from ckpt.records import dataclass

# include/linux/sched.h, PF_FORKNOEXEC: forked, but did not exec yet.
_FORKED_NOT_EXECUTED = 0x40

_POLL_SECONDS = 0.003


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What PID 1 is kept in from before its first instruction, and all that come from it.

    ``cgroups`` are directories, ``limits`` values of resources (hard and soft), ``nice`` the best nice value.
    ``capabilities`` are the numbers of those that nobody shall have again but PID 1, whose business it is to execute
    everything else without them (``dropping``): CRIU needs them in it (get_proc_fd, criu/pie/parasite.c, mounts).
    """

    cgroups: Sequence[str] = ()
    capabilities: Sequence[int] = ()
    limits: Mapping[int, int] = field(default_factory=dict)
    nice: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstProcess:
    """What PID 1 of a group shall be.

    ``argv[0]`` is a path. ``netns`` and ``log`` are open descriptors; without ``netns`` the group stays in the
    caller's network namespace.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    workdir: str
    hostname: str
    umask: int
    log: int
    netns: int | None = None
    bounds: Bounds | None = None
    launcher: str | None = None
    """The program that the command is executed by, and that is not yet the command."""


class Starting:
    """A first process that exists and waits: ``pid`` is the host's. ``go`` lets it execute."""

    def __init__(self, pid: int, report: socket.socket, go: socket.socket) -> None:
        self.pid = pid
        self._report = report
        self._go = go

    def go(self) -> int | None:
        """Let it execute, and return when its command runs: None, or the wait status when it has already ended."""
        self._go.send(b"g")
        word, value = _receive(self._report)
        if word == "ended":
            return value
        if word != "runs":
            raise _start_error(word, value)
        return None


@contextlib.contextmanager
def starting(first: FirstProcess) -> Iterator[Starting]:
    """The first process, made and waiting. Unless ``go`` is called within the block, it ends without executing."""
    report, child_report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    go, child_go = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with report, go:
        with child_report, child_go:
            helper = os.fork()
            if helper == 0:
                _helper(first, child_report.fileno(), child_go.fileno())
        try:
            word, value = _receive(report)
            if word != "pid":
                raise _start_error(word, value)
            yield Starting(value, report, go)
        finally:
            go.close()
            with contextlib.suppress(ChildProcessError):
                os.waitpid(helper, 0)


def _helper(first: FirstProcess, report: int, go: int) -> NoReturn:
    """The helper's whole life, in the forked child."""
    stage = "prepare"
    try:
        report, go, log = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (report, go, first.log))
        netns = None if first.netns is None else fcntl.fcntl(first.netns, fcntl.F_DUPFD_CLOEXEC, 10)
        null = fcntl.fcntl(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), fcntl.F_DUPFD_CLOEXEC, 10)
        close_all_but({0, 1, 2, report, go, log, null} | ({netns} if netns is not None else set()))
        _reset_signals()
        if netns is not None:
            stage = "setns"
            syscalls.setns(netns, syscalls.CLONE_NEWNET)
            os.close(netns)
        stage = "unshare"
        syscalls.unshare(syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
        socket.sethostname(first.hostname)
        stage = "fork"
        child = os.fork()
        if child == 0:
            _first(first, report, go, log, null)
        os.close(go)
        _send(report, "pid", child)
        status = _wait_until_command_runs(child, first.launcher)
        if status is None:
            _send(report, "runs", 0)
        else:
            _send(report, "ended", status)
    except OSError as error:
        _send(report, stage, error.errno or 0)
    finally:
        os._exit(0)


def _first(first: FirstProcess, report: int, go: int, log: int, null: int) -> NoReturn:
    """The first process until it executes, in the forked child of the helper."""
    stage = "setsid"
    try:
        os.setsid()
        if not os.read(go, 1):
            os._exit(0)
        stage = "bounds"
        if first.bounds is not None:
            _enter_bounds(first.bounds)
        stage = "workdir"
        os.chdir(first.workdir)
        os.umask(first.umask)
        stage = "streams"
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        stage = "exec"
        os.execve(first.argv[0], list(first.argv), dict(first.environment))
    except OSError as error:
        _send(report, stage, error.errno or 0)
    finally:
        os._exit(127)


def _enter_bounds(bounds: Bounds) -> None:
    """Be confined: from here on nothing is made that is not, and there is no way back."""
    for cgroup in bounds.cgroups:
        procs = os.open(f"{cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        os.write(procs, b"0")
        os.close(procs)
    syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    if bounds.nice is not None and os.getpriority(os.PRIO_PROCESS, 0) < bounds.nice:
        os.setpriority(os.PRIO_PROCESS, 0, bounds.nice)
    for number, value in bounds.limits.items():
        # A lower one that holds already stays: raising it may need what ckpt itself has not.
        hard = resource.getrlimit(number)[1]
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (lowest, lowest))


def _reset_signals() -> None:
    """Every signal as a fresh process has it: Python ignores SIGPIPE, and nohup SIGHUP, which exec would keep."""
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _wait_until_command_runs(pid: int, launcher: str | None) -> int | None:
    """None as soon as a child of ``pid`` has executed; the wait status when ``pid`` has ended before."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if any(_has_executed(child, launcher) for child in children(pid)):
            return None
        time.sleep(_POLL_SECONDS)


def _has_executed(pid: int, launcher: str | None) -> bool:
    stat = read_stat(pid)
    if stat is None or stat.flags & _FORKED_NOT_EXECUTED:
        return False
    try:
        return launcher is None or not os.path.samefile(f"/proc/{pid}/exe", launcher)
    except OSError:
        return False  # it has ended, and its status says how


def _send(report: int, word: str, value: int) -> None:
    with contextlib.suppress(OSError):
        os.write(report, f"{word} {value}".encode())


def _receive(report: socket.socket) -> tuple[str, int]:
    word, _, value = report.recv(64).decode().partition(" ")
    return (word, int(value)) if word else ("lost", 0)


def _start_error(stage: str, number: int) -> CkptError:
    """The error for a step before the command's exec that failed with ``number``."""
    reason = os.strerror(number) if number else "the helper ended without a word"
    details = f"{stage}: {reason}"
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDeniedError(
            "the group's first process cannot be made", code=f"start-{stage}", details=details, hint="run as root"
        )
    if stage == "workdir":
        return NotFoundError("the working directory is not there", code="workdir-missing", details=reason)
    return UnsupportedError(
        "the group's first process cannot be made",
        code=f"start-{stage}",
        details=details,
        hint="`ckpt check` shows what is missing on this host",
    )
