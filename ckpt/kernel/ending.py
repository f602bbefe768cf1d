"""Ending processes, by pidfd: a PID that was given away again is never signalled.

A group started by ckpt is the whole of a PID namespace, whose first process takes all others with it. A group that
came from elsewhere is a tree, so what is left below the root is killed as well.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator

from ckpt.kernel import syscalls
from ckpt.kernel.proc import tree_pids


def end_tree(root: int, *, timeout: float) -> str | None:
    """End ``root`` and all below it: SIGTERM to the root, after ``timeout`` seconds SIGKILL to all.

    Returns the name of the signal that did it, None when ``root`` had ended before. On return none of them runs.
    """
    with contextlib.ExitStack() as stack:
        pidfds = [pidfd for pid in tree_pids(root)[1:] if (pidfd := stack.enter_context(_opened(pid))) is not None]
        root_fd = stack.enter_context(_opened(root))
        if root_fd is None or wait_gone(root_fd, 0):
            return None
        used = signal.SIGTERM if timeout > 0 else signal.SIGKILL
        _send(root_fd, used)
        if not wait_gone(root_fd, timeout):
            used = signal.SIGKILL
        for pidfd in (root_fd, *pidfds):
            _send(pidfd, signal.SIGKILL)
            wait_gone(pidfd, None)
        return used.name


def wait_gone(pidfd: int, timeout: float | None) -> bool:
    """Wait until the process has ended (it may still be a zombie); False when it has not after ``timeout`` seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


@contextlib.contextmanager
def _opened(pid: int) -> Iterator[int | None]:
    try:
        pidfd = syscalls.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _send(pidfd: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        syscalls.pidfd_send_signal(pidfd, number)
