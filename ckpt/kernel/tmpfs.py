"""A directory in memory that is nowhere in the file system: it is there as long as somebody has it open.

What is in it has a place only by way of the descriptor, and is gone with the last process that had that, however it
ended. It lies in small pages: huge ones, which are seldom at hand, took two to three times as long to get and to fill.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path

from ckpt.kernel import host, syscalls

_log = logging.getLogger(__name__)

_SPARE_BYTES = 64 * 1024 * 1024


def room_for(memory: int) -> int:
    """Bytes for the files that CRIU makes of a group with so many bytes of memory, and for that memory beside them."""
    return 2 * memory + _SPARE_BYTES


def in_memory(room: int, passing: ExitStack) -> Path | None:
    """A directory for ``room`` bytes that touches no disk, and is there until ``passing`` ends.

    None where memory has not so much to spare, or the kernel makes no such thing.
    """
    if host.memory_available() <= room:
        return None
    try:
        directory = detached(room)
    except OSError as error:
        _log.info("no directory in memory: %s", error.strerror)
        return None
    passing.callback(os.close, directory)
    return Path(f"/proc/self/fd/{directory}")


def detached(size: int) -> int:
    """A descriptor of a new directory, for root alone, in which files of ``size`` bytes have room.

    OSError where the kernel makes no such thing (before 5.2).
    """
    context = syscalls.fsopen("tmpfs")
    try:
        syscalls.fsconfig_set(context, "mode", "0700")
        syscalls.fsconfig_set(context, "size", str(size))
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
    finally:
        os.close(context)
