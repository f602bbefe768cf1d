"""The first process of a PID namespace that a restore makes for a group whose PIDs are taken.

A group that was dumped without a PID namespace of its own needs its very PIDs back. Where others have them, CRIU is
run in a fresh PID namespace, below this program: it starts CRIU, adopts the tree that CRIU leaves behind, passes
signals on to it, reaps what ends, and ends with the tree's root. From then on it belongs to the group and is dumped
with it.

Run by path, with an isolated interpreter and nothing but the standard library: the less it maps, the less travels.
    python3 -I -S adopter.py NETNS CRIU ARGUMENTS…
NETNS is the descriptor of the network namespace that the group lives in, or - when that is the caller's. CRIU itself
stays outside of it: it tries TCP over lo when it starts, and the group's network is locked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def children() -> list[int]:
    """The direct children of this process."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as source:
        return [int(word) for word in source.read().split()]


def pass_on(number: int, _: FrameType | None) -> None:
    """Send a signal that came for the group to the root of its tree."""
    for pid in children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def join(fd: int) -> None:
    """Enter the namespace that ``fd`` stands for."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0):
        raise OSError(ctypes.get_errno(), "setns")


def join_time_namespace(pid: int) -> None:
    """Enter the time namespace of ``pid``: CRIU makes one to keep the clocks, and dumps only one for a whole tree."""
    fd = os.open(f"/proc/{pid}/ns/time", os.O_RDONLY)
    join(fd)
    os.close(fd)


def drop_descriptors() -> None:
    """Let go of all that was inherited; a dump would find it open outside of the group."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def main() -> None:
    """Start CRIU, then be the first process."""
    os.setsid()
    criu = os.fork()
    if criu == 0:
        os.execv(sys.argv[2], sys.argv[2:])
    if sys.argv[1] != "-":
        join(int(sys.argv[1]))
    drop_descriptors()
    os.chdir("/")
    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    root: int | None = None
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            os._exit(1)
        if pid == criu:
            root = next(iter(children()), None)
            if root is None or status != 0:
                # What it has half made goes with this namespace.
                os._exit(1)
            join_time_namespace(root)
        elif pid == root:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
