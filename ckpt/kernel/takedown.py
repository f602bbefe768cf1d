"""Taking down what a group that was taken away leaves on a host, without a packet.

The namespace of a group goes with its last process, but the kernel does that some time later, and a name given by
`ip netns` keeps it for ever: its address would go on answering ARP for a service that now lives elsewhere. So its
links are removed one by one, which takes their ends on the host along, and its names are taken away as
`ip netns delete` does. And when CRIU was killed in a dump, connections that it had put into repair mode are put back
to work.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckpt.errors import NetworkError
from ckpt.kernel import netns as namespaces
from ckpt.kernel import outside, syscalls
from ckpt.model.network import FALLBACK_DEVICES
from ckpt.model.process import FileKind, Process

NETNS_NAMES = Path("/run/netns")
"""Where `ip netns` keeps its names, as mounts."""

Place = tuple[int, int]
"""A PID and a descriptor of it."""

# include/uapi/linux/tcp.h
_TCP_REPAIR = 19
_TCP_REPAIR_OFF_NO_WP = -1

_SPARE_DESCRIPTORS = 64
"""What has to be left for the rest of a dump."""


def remove_links(netns: int) -> tuple[str, ...]:
    """Remove every link of ``netns`` that somebody made; their names. Those below others go first, or with them."""
    removed = []
    with namespaces.entered(netns):
        for link in list(outside.links()):
            if link.kind in ("", "loopback") or link.ifname in FALLBACK_DEVICES:
                continue
            if outside.delete(link.ifname):
                removed.append(link.ifname)
    return tuple(removed)


def unpin(names: Sequence[str]) -> None:
    """Take the names of ``ip netns`` away from a namespace; harmless where they are gone."""
    for name in names:
        let_go(NETNS_NAMES / name)


def pin(netns: int, name: str) -> None:
    """Give ``netns`` a name of ``ip netns``. Raises NetworkError (`netns-name-taken`)."""
    NETNS_NAMES.mkdir(mode=0o755, parents=True, exist_ok=True)
    keep_alive(netns, NETNS_NAMES / name)


def keep_alive(netns: int, path: Path) -> None:
    """Keep ``netns``, with all that is in it, beyond its last process and ours: bind it to the new file ``path``.

    A namespace must not be left to die with links in it, however well it is locked: the kernel takes its nft hooks
    away some milliseconds before the links (nf_tables_pre_exit_net), and answers in between. So before the links are
    removed one by one something has to hold it that does not die with ckpt.
    Raises NetworkError (`netns-name-taken`, `netns-name`).
    """
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except FileExistsError as error:
        raise NetworkError(
            f"the network namespace cannot be named {path.name}",
            code="netns-name-taken",
            details=f"{path} is there",
            hint=f"`ip netns delete {path.name}`, if nobody needs it",
        ) from error
    try:
        syscalls.mount(f"/proc/self/fd/{netns}", str(path), "", syscalls.MS_BIND)
    except OSError as error:
        path.unlink()
        raise NetworkError(
            f"the network namespace cannot be named {path.name}", code="netns-name", details=str(error)
        ) from error


def let_go(path: Path) -> None:
    """Undo ``keep_alive``; harmless where that was not done."""
    with contextlib.suppress(OSError):
        syscalls.umount2(str(path), syscalls.MNT_DETACH)
    with contextlib.suppress(OSError):
        path.unlink()


def in_repair(processes: Sequence[Process]) -> bool:
    """Whether a TCP connection that ``processes`` hold is in repair mode."""
    return any(_in_repair(connection) for _, connection in _connections(processes))


def leave_repair(processes: Sequence[Process]) -> tuple[Place, ...]:
    """Put the TCP connections that ``processes`` hold out of repair mode; those that were in it.

    CRIU does that itself, unless it is killed: then the group runs on at once, and is refused every read and write
    (EPERM, EINVAL). Without a window probe, as CRIU does after a dump that goes on.
    """
    found = []
    for place, connection in _connections(processes):
        if _in_repair(connection):
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _TCP_REPAIR_OFF_NO_WP)
            found.append(place)
    return tuple(found)


def enter_repair(places: Sequence[Place]) -> None:
    """Put connections into repair mode again, in which they end without a packet when their process does."""
    for pid, fd in places:
        with contextlib.suppress(OSError), _duplicated(pid, fd) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)


class Rescue:
    """Takes connections out of repair mode in the moment in which CRIU dies, before the group has used them.

    The tasks go on as soon as CRIU is gone, so whatever takes time is done beforehand: the sockets are held open, as
    far as the limit of descriptors allows. That wins the race nearly always, and never with certainty.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def prepare(self, processes: Sequence[Process]) -> None:
        """Open the connections of ``processes``, which stand still."""
        for process in processes:
            for file in process.files:
                if file.kind is FileKind.SOCKET and not self._open(process.pid, file.fd):
                    return

    def __call__(self) -> None:
        """CRIU is dead."""
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _TCP_REPAIR_OFF_NO_WP)

    def close(self) -> None:
        """The danger is over: a duplicate must not be what keeps a socket of the group open. Again is nothing."""
        while self._sockets:
            self._sockets.pop().close()

    def _open(self, pid: int, fd: int) -> bool:
        """Hold one more; False when there are no more descriptors to be had."""
        try:
            with _duplicated(pid, fd) as duplicate:
                if _is_tcp(duplicate):
                    # Not duplicate.dup(): that makes it block, and with it the group's, whose socket it is.
                    self._sockets.append(socket.socket(fileno=duplicate.detach()))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                return True
            for connection in self._sockets[-_SPARE_DESCRIPTORS:]:
                connection.close()
            del self._sockets[-_SPARE_DESCRIPTORS:]
            return False
        return True


def _is_tcp(connection: socket.socket) -> bool:
    return connection.family in (socket.AF_INET, socket.AF_INET6) and connection.proto == socket.IPPROTO_TCP


def _in_repair(connection: socket.socket) -> bool:
    return connection.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR) == 1


def _connections(processes: Sequence[Process]) -> Iterator[tuple[Place, socket.socket]]:
    """Duplicates of the TCP sockets that ``processes`` hold, each closed when the next one is asked for."""
    for process in processes:
        for file in process.files:
            if file.kind is not FileKind.SOCKET:
                continue
            # The process may end, or close it, meanwhile.
            with contextlib.suppress(OSError), _duplicated(process.pid, file.fd) as duplicate:
                if _is_tcp(duplicate):
                    yield (process.pid, file.fd), duplicate


@contextlib.contextmanager
def _duplicated(pid: int, fd: int) -> Iterator[socket.socket]:
    pidfd = syscalls.pidfd_open(pid)
    try:
        with socket.socket(fileno=syscalls.pidfd_getfd(pidfd, fd)) as duplicate:
            yield duplicate
    finally:
        os.close(pidfd)
