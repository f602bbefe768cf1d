"""Datagram sockets that are connected to a name outside of the group: syslog's /dev/log, above all.

Such a connection is no more than a name to send to. CRIU makes it anew where the group shares the network namespace of
the other end; from a namespace of the group's own it cannot see that end, and gives up ("Unix socket N without peer
M", criu/sk-unix.c). So while the tasks are frozen the sockets are disconnected, and connected again by their name when
the group goes on, there or where it is restored. Should ckpt die in between, syslog(3) finds its socket unconnected
and connects it itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator, Sequence

from ckpt.kernel import syscalls
from ckpt.model.checkpoint import ConnectedDatagram
from ckpt.model.socket import Socket


def outside(sockets: Sequence[Socket]) -> tuple[ConnectedDatagram, ...]:
    """The datagram sockets among ``sockets`` that are connected to a path of a socket that is not among them."""
    own = {one.inode for one in sockets}
    found = []
    for one in sockets:
        if one.family != "unix" or one.type != "dgram" or not one.peer or one.peer in own:
            continue
        owner = one.owners[0]
        with contextlib.suppress(OSError), _duplicate(owner.pid, owner.fd) as duplicate:
            path = duplicate.getpeername()
            if isinstance(path, str) and path.startswith("/"):
                found.append(ConnectedDatagram(pid=owner.pid, ns_pid=owner.ns_pid, fd=owner.fd, path=path))
    return tuple(found)


def disconnect(sockets: Sequence[ConnectedDatagram]) -> None:
    """Take their connection from ``sockets``; connect(2) calls that dissolving the association."""
    for one in sockets:
        with _duplicate(one.pid, one.fd) as duplicate:
            _connect_nowhere(duplicate)


def reconnect(sockets: Sequence[ConnectedDatagram]) -> tuple[str, ...]:
    """Connect ``sockets`` to their names again; those names that nobody listens at."""
    missing = []
    for one in sockets:
        try:
            with _duplicate(one.pid, one.fd) as duplicate:
                duplicate.connect(one.path)
        except OSError:
            missing.append(one.path)
    return tuple(missing)


def _connect_nowhere(duplicate: socket.socket) -> None:
    address = struct.pack("=H14x", socket.AF_UNSPEC)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(duplicate.fileno(), address, len(address)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def _duplicate(pid: int, fd: int) -> Iterator[socket.socket]:
    """The socket that ``pid`` has as ``fd``, for a moment."""
    pidfd = syscalls.pidfd_open(pid)
    try:
        duplicate = socket.socket(fileno=syscalls.pidfd_getfd(pidfd, fd))
    finally:
        os.close(pidfd)
    with duplicate:
        yield duplicate
