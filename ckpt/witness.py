"""A witness of a move's ckpt: should that die before the commit, it writes down that the group stays where it is.

When ckpt dies, CRIU lets the group go on at once, and what the target holds is of the past from then on. Without a
witness nobody could tell this later, when the group has ended for another reason, from a host that lost its power with
the group still frozen. The witness is a child that stands on a pipe and holds nothing else; it ends with its parent.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ckpt import migrations
from ckpt.errors import CkptError


@contextmanager
def witnessed(migration: str) -> Iterator[None]:
    """Have a witness while the block runs; before there are threads."""
    theirs, ours = os.pipe()
    child = os.fork()
    if child == 0:
        _watch(migration, theirs)
    os.close(theirs)
    try:
        yield
    finally:
        os.write(ours, b"done")
        os.close(ours)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def _watch(migration: str, pipe: int) -> None:
    """In the child: wait for the parent's end, and decide as anybody who asked then would."""
    try:
        # ^C and the like are for the parent to answer.
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.dup2(pipe, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        if os.read(3, 4) != b"done":
            with suppress(CkptError):
                migrations.decide(migration, holds=False)
    finally:
        os._exit(0)
