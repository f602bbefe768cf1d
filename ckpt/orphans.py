"""Processes that a restore meets or makes beside the group: those that have its PIDs, and those CRIU abandons."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ckpt import registry
from ckpt.kernel import ending, proc
from ckpt.kernel.syscalls import PR_SET_CHILD_SUBREAPER, prctl
from ckpt.model.process import Process

ZOMBIE_SECONDS = 2.0
END_SECONDS = 10.0


def wait_for_end(pid: int, start_time: int) -> bool:
    """Wait until the killed task ``pid`` has ended, be it to a zombie; whether it has."""
    deadline = time.monotonic() + END_SECONDS
    while registry.alive(pid, start_time):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def are_pids_taken(processes: Sequence[Process]) -> bool:
    """Whether something here has an id that these processes and threads need.

    A zombie is waited for a moment: the group itself may have been dumped just now, and its parent be slow.
    """
    wanted = {thread.ns_ids[-1] for one in processes for thread in one.threads if thread.ns_ids}
    wanted |= {one.ns_pid for one in processes}
    deadline = time.monotonic() + ZOMBIE_SECONDS
    while True:
        taken = [number for number in wanted if Path(f"/proc/{number}").exists()]
        if not taken:
            return False
        if any(registry.start_time(number) is not None for number in taken) or time.monotonic() > deadline:
            return True
        time.sleep(0.02)


@contextlib.contextmanager
def killed_on_failure(released: Callable[[], bool]) -> Iterator[None]:
    """While the block runs, what a CRIU that was killed leaves half made falls to us; if it fails, we kill it.

    Once ``released`` says so, what was restored is a group of its own.
    """
    before = set(proc.children(os.getpid()))
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    except BaseException:
        for pid in () if released() else set(proc.children(os.getpid())) - before:
            ending.end_tree(pid, timeout=0)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        raise
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)
