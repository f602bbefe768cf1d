"""Network namespaces as file descriptors.

A namespace is named by an open descriptor, never by a path or a mount: it lives as long as something holds it, and
nothing is left on the file system when ckpt dies. ``entered`` moves only the calling thread, so other threads go on
where they are; what is opened or started inside belongs to the namespace for good.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from ckpt.errors import NotFoundError, PermissionDeniedError
from ckpt.kernel import syscalls

_OWN = "/proc/thread-self/ns/net"


def create() -> int:
    """A descriptor of a fresh, empty network namespace, which lives as long as the descriptor."""
    made: list[int] = []
    failures: list[OSError] = []

    def make() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            made.append(os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            failures.append(error)

    # A thread of its own, so that no failure can leave the caller in the new namespace.
    thread = threading.Thread(target=make, name="ckpt-netns-create")
    thread.start()
    thread.join()
    if failures:
        raise PermissionDeniedError(
            "cannot make a network namespace",
            code="netns-create",
            details=str(failures[0]),
            hint="run as root, with CAP_SYS_ADMIN",
        ) from failures[0]
    return made[0]


def open_own() -> int:
    """A descriptor of the network namespace that the calling thread is in."""
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def open_of(pid: int) -> int:
    """A descriptor of the network namespace of the process ``pid``."""
    try:
        return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFoundError(f"there is no process {pid}", code="process-missing", details=str(error)) from error
    except PermissionError as error:
        raise PermissionDeniedError(
            f"cannot open the network namespace of process {pid}",
            code="netns-open",
            details=str(error),
            hint="run as root, with CAP_SYS_PTRACE",
        ) from error


@contextlib.contextmanager
def entered(netns: int) -> Iterator[None]:
    """The calling thread is inside ``netns`` for the time of the block."""
    before = open_own()
    try:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        try:
            yield
        finally:
            syscalls.setns(before, syscalls.CLONE_NEWNET)
    finally:
        os.close(before)


def inode(netns: int) -> int:
    """The number by which the kernel, ``ls -l /proc/PID/ns`` and CRIU name the namespace."""
    return os.fstat(netns).st_ino
