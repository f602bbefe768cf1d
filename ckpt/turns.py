"""Dumps take turns while CRIU is at work in one place.

CRIU's parasite makes a directory called `proc.crtools` in the working directory of each task for a moment (get_proc_fd,
criu/pie/parasite.c), and for most groups that is `/`: a second dump at the same time would fail with "Can't create a
directory (-17)". So what is locked is these directories themselves, which every ckpt that shares them sees, whatever
its state directory, its namespaces or its container. What is written of an image when CRIU is done is not part of the
turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Collection
from contextlib import ExitStack

from ckpt.kernel.procfs import read_text

_log = logging.getLogger(__name__)

PATIENCE = 60.0
"""How long another dump may have CRIU at work. Who holds the lock for longer may be no dump at all."""

_POLL_SECONDS = 0.02


class Turn:
    """The turn of one dump: ``take`` waits for it, ``end`` or the end of ``stack`` gives it up."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack.enter_context(ExitStack())

    def take(self, pids: Collection[int]) -> None:
        """Wait until no other dump has CRIU at work where these tasks work. Ends with this process, however it ends."""
        places: dict[tuple[int, int], int] = {}
        for pid in pids:
            with contextlib.suppress(OSError):  # it has just ended, or has nothing any more
                descriptor = os.open(f"/proc/{pid}/cwd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self._stack.callback(os.close, descriptor)
                found = os.fstat(descriptor)
                places.setdefault((found.st_dev, found.st_ino), descriptor)
        # In one order, so that two do not wait for each other.
        for place in sorted(places):
            _lock(places[place], pids)

    def end(self) -> None:
        """Let the next one. Again is nothing."""
        self._stack.close()


def _lock(descriptor: int, pids: Collection[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    told = False
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if _holders(descriptor) & set(pids):
                return  # the group has locked the directory itself
        except OSError:
            return  # a file system without locks for directories
        if not told:
            _log.info("waiting for another dump in %s", os.readlink(f"/proc/self/fd/{descriptor}"))
            told = True
        time.sleep(_POLL_SECONDS)
    _log.warning("somebody has %s locked; going on without", os.readlink(f"/proc/self/fd/{descriptor}"))


def _holders(descriptor: int) -> set[int]:
    """The PIDs of those who have a lock on the file, as far as they can be seen from here."""
    found = os.fstat(descriptor)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    lines = (line.split() for line in read_text("/proc/locks").splitlines())
    return {int(words[4]) for words in lines if len(words) > 5 and words[5] == place}
