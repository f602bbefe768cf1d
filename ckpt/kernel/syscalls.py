"""Thin wrappers of the system calls that Python 3.11 does not offer.

Each takes and returns plain numbers and raises OSError with the kernel's errno; none retries, decides or cleans up.
File descriptors that are made here are close-on-exec, as the kernel makes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MNT_DETACH = 0x2
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36

# The numbers of calls added since Linux 5.1 are the same on every architecture.
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_PIDFD_GETFD = 438

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def setns(fd: int, kind: int = 0) -> None:
    """Move the calling thread into the namespace behind ``fd`` (setns(2)); ``kind`` is a CLONE_NEW* or 0 for any."""
    _checked(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own (unshare(2))."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def pidfd_open(pid: int) -> int:
    """A descriptor of the process ``pid`` (pidfd_open(2))."""
    return os.pidfd_open(pid)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A duplicate of another process's descriptor ``fd`` (pidfd_getfd(2))."""
    number, flags = ctypes.c_long(_SYS_PIDFD_GETFD), ctypes.c_uint(0)
    return _checked(_libc.syscall(number, ctypes.c_int(pidfd), ctypes.c_int(fd), flags), "pidfd_getfd")


def pidfd_send_signal(pidfd: int, signum: int) -> None:
    """Send a signal to exactly the process that ``pidfd`` was opened for (pidfd_send_signal(2))."""
    signal.pidfd_send_signal(pidfd, signal.Signals(signum))


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Attach a file system or change a mount (mount(2))."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode() or None, flags, data.encode() or None)
    _checked(_libc.mount(*arguments), f"mount {target}")


def umount2(target: str, flags: int = 0) -> None:
    """Detach a mount (umount2(2))."""
    _checked(_libc.umount2(ctypes.c_char_p(os.fsencode(target)), ctypes.c_int(flags)), f"umount2 {target}")


def fsopen(kind: str) -> int:
    """The beginnings of a file system (fsopen(2))."""
    number = ctypes.c_long(_SYS_FSOPEN)
    return _checked(_libc.syscall(number, ctypes.c_char_p(kind.encode()), ctypes.c_uint(_CLOEXEC)), "fsopen")


def fsconfig_set(context: int, key: str, value: str) -> None:
    """Give a file system that is made one of its options (fsconfig(2), FSCONFIG_SET_STRING)."""
    words = (ctypes.c_char_p(key.encode()), ctypes.c_char_p(value.encode()))
    number, command = ctypes.c_long(_SYS_FSCONFIG), ctypes.c_uint(_FSCONFIG_SET_STRING)
    _checked(_libc.syscall(number, ctypes.c_int(context), command, *words, ctypes.c_int(0)), f"fsconfig {key}")


def fsconfig_create(context: int) -> None:
    """Make the file system (fsconfig(2), FSCONFIG_CMD_CREATE)."""
    number, command, none = ctypes.c_long(_SYS_FSCONFIG), ctypes.c_uint(_FSCONFIG_CMD_CREATE), ctypes.c_void_p(None)
    _checked(_libc.syscall(number, ctypes.c_int(context), command, none, none, ctypes.c_int(0)), "fsconfig")


def fsmount(context: int, attributes: int) -> int:
    """A mount of a file system that was made, attached to nothing (fsmount(2)); ``attributes`` are MOUNT_ATTR_*."""
    flags = (ctypes.c_uint(_CLOEXEC), ctypes.c_uint(attributes))
    return _checked(_libc.syscall(ctypes.c_long(_SYS_FSMOUNT), ctypes.c_int(context), *flags), "fsmount")


def keep_freed_memory(size: int = 16 << 20) -> None:
    """Have the C library give no memory back to the kernel below ``size`` bytes of it (mallopt(3)).

    What is freed and taken again for each piece of a large image would have to be cleared by the kernel each time.
    """
    with contextlib.suppress(AttributeError):  # not every C library has it
        for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            _libc.mallopt(ctypes.c_int(option), ctypes.c_int(size))


def prctl(option: int, argument: int) -> None:
    """Operate on the calling process or thread (prctl(2)), for options of one number."""
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), zero, zero, zero), "prctl")
