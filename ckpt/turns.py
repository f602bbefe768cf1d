"""Dumps take turns while CRIU is at work.

CRIU's parasite makes a directory called `proc.crtools` in the working directory of each task for a moment (get_proc_fd,
criu/pie/parasite.c), and for most groups that is `/`: a second dump at the same time would fail with "Can't create a
directory (-17)". The writing of images is not part of the turn.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack

from ckpt import registry


class Turn:
    """The turn of one dump on this host: ``take`` waits for it, ``end`` or the end of ``stack`` gives it up."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack.enter_context(ExitStack())

    def take(self) -> None:
        """Wait until no other dump has CRIU at work. Ends with this process, however that ends."""
        descriptor = os.open(registry.directory("") / "criu", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._stack.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    def end(self) -> None:
        """Let the next one. Again is nothing."""
        self._stack.close()
