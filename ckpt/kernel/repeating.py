"""Something small that is done again a few times after who wanted it done has gone on, or has ended.

A forked process of its own does it, which holds nothing of its parent's but the descriptors that it is left: no pipe
that somebody waits at the end of, and no lock. It ends when all is done, or at once when the process that it is done
for has ended, so that nothing is said of a group that is not here any more.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from ckpt.kernel import syscalls

NAME = "ckpt-again"
"""What such a process is called; it is in the way of nothing, since it ends with the process that it is for."""


def repeat(act: Callable[[], None], after: Sequence[float], *, pid: int, keep: Collection[int] = ()) -> None:
    """Have ``act`` called ``after`` so many seconds from now each, as long as ``pid`` lives; returns at once.

    ``keep`` are the descriptors that ``act`` uses. OSError when there can be no such process.
    """
    if not after:
        return
    began = time.monotonic()
    subject = syscalls.pidfd_open(pid)
    try:
        # Two: the one that stays is nobody's to wait for but init's.
        child = os.fork()
        if child == 0:
            _become_nobodys(act, [began + seconds for seconds in after], subject, {*keep, subject})
        os.waitpid(child, 0)
    finally:
        os.close(subject)


def _become_nobodys(act: Callable[[], None], times: Sequence[float], subject: int, keep: set[int]) -> NoReturn:
    """The forked child's whole life, and its child's."""
    with contextlib.suppress(BaseException):
        if os.fork() == 0:
            with open("/proc/self/comm", "w", encoding="ascii") as name:
                name.write(NAME)
            os.setsid()
            close_all_but(keep)
            os.chdir("/")
            _do(act, times, subject)
    os._exit(0)


def _do(act: Callable[[], None], times: Sequence[float], subject: int) -> None:
    poll = select.poll()
    poll.register(subject, select.POLLIN)
    for at in times:
        if poll.poll(max(0.0, at - time.monotonic()) * 1000):
            return
        act()


def close_all_but(kept: set[int]) -> None:
    """Close every descriptor of this process that is not ``kept``."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))
