"""A directory in memory that is nowhere in the file system: it is there as long as somebody has it open.

What is in it has a place only by way of the descriptor, and is gone with the last process that had that, however it
ended. It lies in huge pages where the kernel has such for it: they are quicker to get, to fill and to read.
"""

from __future__ import annotations

import contextlib
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
        with contextlib.suppress(OSError):
            # EINVAL from a kernel without them (CONFIG_TRANSPARENT_HUGEPAGE).
            syscalls.fsconfig_set(context, "huge", "always")
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
    finally:
        os.close(context)
