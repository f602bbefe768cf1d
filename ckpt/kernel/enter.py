"""Running a command inside the namespaces of a process.

ckpt stays where it is: a forked helper enters, all namespaces at once by the pidfd of the process, so that none of
them can be another one's whose PID was given away meanwhile. PID namespaces hold for children only, hence the
helper's own child executes the command. The command keeps ckpt's terminal; what the terminal sends reaches it
directly, and what is sent to ckpt is passed on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from ckpt.errors import CkptError, NotFoundError, PermissionDeniedError, UnsupportedError
from ckpt.kernel import syscalls

_NAMESPACES = {
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "ipc": syscalls.CLONE_NEWIPC,
    "mnt": syscalls.CLONE_NEWNS,
    "net": syscalls.CLONE_NEWNET,
    "pid": syscalls.CLONE_NEWPID,
    "user": syscalls.CLONE_NEWUSER,
    "uts": syscalls.CLONE_NEWUTS,
}

_BY_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_inside(pid: int, argv: Sequence[str], *, cgroup: str | None = None, without: Sequence[int] = ()) -> int:
    """Run ``argv`` in the namespaces and working directory of ``pid``; its exit status, 128+N after signal N.

    With ``cgroup``, a directory, in that as well; ``without`` are capabilities that it shall not have.
    """
    try:
        pidfd = syscalls.pidfd_open(pid)
        workdir = os.open(f"/proc/{pid}/cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (ProcessLookupError, FileNotFoundError) as error:
        raise NotFoundError(f"there is no process {pid}", code="process-missing", details=str(error)) from error
    reader, writer = os.pipe()
    try:
        helper = os.fork()
        if helper == 0:
            _helper(pidfd, _other_namespaces(pid), workdir, argv, writer, cgroup, without)
    finally:
        for descriptor in (pidfd, workdir, writer):
            os.close(descriptor)
    with os.fdopen(reader) as report, _passing_on(lambda number: os.kill(helper, number)):
        failure = report.read()
        status = _wait(helper)
    if failure:
        raise _error(failure, argv[0])
    return status


def _other_namespaces(pid: int) -> int:
    """The namespaces of ``pid`` that are not ours, as flags; entering one's own user namespace is an error."""
    flags = 0
    for name, flag in _NAMESPACES.items():
        if os.stat(f"/proc/{pid}/ns/{name}").st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
            flags |= flag
    return flags


def _helper(
    pidfd: int, flags: int, workdir: int, argv: Sequence[str], report: int, cgroup: str | None, without: Sequence[int]
) -> NoReturn:
    """The helper's whole life, in the forked child."""
    stage = "cgroup"
    try:
        if cgroup is not None:
            procs = os.open(f"{cgroup}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            os.write(procs, b"0")
            os.close(procs)
        stage = "setns"
        if flags:
            syscalls.setns(pidfd, flags)
        os.fchdir(workdir)
        stage = "fork"
        child = os.fork()
        if child == 0:
            stage = "capabilities"
            for capability in without:  # root's exec is given what the bounding set holds
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
            stage = "exec"
            for number in (*_BY_THE_TERMINAL, *_PASSED_ON, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.execvp(argv[0], list(argv))
        os.close(report)
        with _passing_on(lambda number: os.kill(child, number)):
            os._exit(_wait(child))
    except OSError as error:
        os.write(report, f"{stage} {error.errno}".encode())
    finally:
        os._exit(127)


@contextlib.contextmanager
def _passing_on(send: Callable[[int], None]) -> Iterator[None]:
    """While the block runs, signals to this process go to the command; those of the terminal it has already."""

    def pass_on(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            send(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _BY_THE_TERMINAL}
    before |= {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(pid: int) -> int:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - status if status < 0 else status


def _error(failure: str, command: str) -> CkptError:
    stage, _, number = failure.partition(" ")
    reason = os.strerror(int(number))
    if stage != "exec":
        return UnsupportedError("the group's namespaces cannot be entered", code=f"enter-{stage}", details=reason)
    kind = PermissionDeniedError if isinstance(OSError(int(number), ""), PermissionError) else NotFoundError
    return kind(f"{command} cannot be executed in the group", code="command-not-executable", details=reason)
