"""A directory in memory that is nowhere in the file system: it is there as long as somebody has it open.

What is in it has a place only by way of the descriptor, and is gone with the last process that had that, however it
ended. It lies in small pages: huge ones, which are seldom at hand, took two to three times as long to get and to fill.
"""

from __future__ import annotations

import os

from ckpt.kernel import syscalls


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
