"""Every socket a group holds, as the kernel knows it.

A socket is best asked itself: its descriptor is duplicated from its owner (``pidfd_getfd``), a few ``getsockopt`` are
made, and the duplicate is closed at once, so that ckpt never keeps a connection open that its owner closes. Only
options whose reading changes nothing are read (SO_ERROR, for one, would take a pending error away from the program).
What a socket does not tell, the other end of a unix connection and what waits in accept queues, comes from ``diag``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence

from ckpt.errors import PermissionDeniedError
from ckpt.kernel import diag, multicast, syscalls
from ckpt.model.process import FileKind, Process
from ckpt.model.socket import IPPROTO_MPTCP, IPPROTO_TCP, IPPROTO_UDP, Endpoint, Owner, Socket, SocketOptions

SO_DOMAIN = 39
SO_PROTOCOL = 38
SO_MEMINFO = 55
SIOCGSKNS = 0x894C
"""ioctl: a descriptor of the network namespace a socket was made in (it keeps it when its owner moves away)."""
SIOCOUTQ = 0x5411
SIOCINQ = 0x541B
IPV6_TRANSPARENT = 75
IPV6_FREEBIND = 78
TCP_ULP = 31
UDP_CORK = 1
IP_TRANSPARENT = 19
IP_FREEBIND = 15
TCP_INFO_COUNTS = struct.Struct("=8B4I2I")
"""The head of ``struct tcp_info``: eight bytes (state first), rto, ato, snd_mss, rcv_mss, unacked, sacked. Of a
listener, unacked is the length of the accept queue and sacked its limit (net/ipv4/tcp.c, tcp_get_info)."""

FAMILIES = {int(family): family.name[3:].lower() for family in socket.AddressFamily} | {43: "smc", 44: "xdp"}
TYPES = {int(kind): kind.name[5:].lower() for kind in socket.SocketKind} | {6: "dccp", 10: "packet"}


def read_sockets(processes: Sequence[Process]) -> tuple[Socket, ...]:
    """Every socket that any of ``processes`` holds, in the order of their first owner."""
    owners: dict[int, list[Owner]] = {}
    for process in processes:
        for file in process.files:
            # a unix socket's name opened with O_PATH is no socket but a file
            if file.kind is FileKind.SOCKET and not file.flags & os.O_PATH:
                owners.setdefault(file.inode, []).append(Owner(pid=process.pid, fd=file.fd, ns_pid=process.ns_pid))
    reader = _Reader()
    with reader:
        found = (reader.read(inode, tuple(holders)) for inode, holders in owners.items())
        return tuple(one for one in found if one is not None)


def accept_queue(netns: int) -> int:
    """How many TCP connections of ``netns`` are half open or wait to be accepted: what a dump cannot keep."""
    states = 1 << diag.STATE_NUMBERS["listen"] | 1 << diag.STATE_NUMBERS["syn_recv"]
    return sum(entry.receive_queue if entry.state == "listen" else 1 for entry in diag.tcp_sockets(netns, states))


def read_orphans(netns: int) -> tuple[Socket, ...]:
    """TCP connections of ``netns`` that were closed while their last data or FIN wait for the peer."""
    states = sum(1 << diag.STATE_NUMBERS[name] for name in ("fin_wait1", "fin_wait2", "closing", "last_ack"))
    number = os.fstat(netns).st_ino
    return tuple(
        Socket(
            inode=0,
            netns=number,
            family="inet6" if ":" in entry.local.address else "inet",
            type="stream",
            protocol=IPPROTO_TCP,
            state=entry.state,
            local=entry.local,
            remote=entry.remote,
            receive_queue=entry.receive_queue,
            send_queue=entry.send_queue,
        )
        for entry in diag.tcp_sockets(netns, states)
        if entry.inode == 0
    )


class _Reader:
    """Reads sockets one by one and keeps, for their time, what is asked once per process or per namespace."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._pidfds: dict[int, int | None] = {}
        self._unix: dict[int, Mapping[int, diag.UnixEntry]] = {}
        self._groups: dict[int, tuple[multicast.Membership, ...]] = {}

    def __enter__(self) -> None:
        self._stack.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read(self, inode: int, owners: tuple[Owner, ...]) -> Socket | None:
        """The socket ``inode``, or None when all its owners have closed it by now."""
        for owner in owners:
            with self._duplicate(owner, inode) as duplicate:
                if duplicate is not None:
                    return self._describe(duplicate, inode, owners)
        return None

    def _pidfd(self, pid: int) -> int | None:
        if pid not in self._pidfds:
            try:
                self._pidfds[pid] = pidfd = syscalls.pidfd_open(pid)
                self._stack.callback(os.close, pidfd)
            except OSError:
                self._pidfds[pid] = None
        return self._pidfds[pid]

    @contextlib.contextmanager
    def _duplicate(self, owner: Owner, inode: int) -> Iterator[socket.socket | None]:
        fd = self._take(owner)
        if fd is None:
            yield None
            return
        with _wrap(fd) as duplicate:
            # the number may have been closed and given to another file since it was listed
            yield duplicate if os.fstat(fd).st_ino == inode else None

    def _take(self, owner: Owner) -> int | None:
        pidfd = self._pidfd(owner.pid)
        if pidfd is None:
            return None
        try:
            fd = syscalls.pidfd_getfd(pidfd, owner.fd)
        except PermissionError as error:
            raise PermissionDeniedError(
                f"Cannot look at the sockets of process {owner.pid}",
                code="sockets-unreadable",
                details=str(error),
                hint="run as root, with CAP_SYS_PTRACE",
            ) from error
        except OSError:
            return None
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return None

    def _describe(self, duplicate: socket.socket, inode: int, owners: tuple[Owner, ...]) -> Socket:
        netns = fcntl.ioctl(duplicate.fileno(), SIOCGSKNS)
        try:
            described = describe(duplicate, inode, os.fstat(netns).st_ino, owners)
            if described.family == "unix":
                return self._add_unix(described, netns)
            return self._add_groups(described, duplicate, netns)
        finally:
            os.close(netns)

    def _add_groups(self, described: Socket, duplicate: socket.socket, netns: int) -> Socket:
        if not described.is_inet or described.type == "stream":
            return described
        if described.netns not in self._groups:
            self._groups[described.netns] = multicast.memberships(netns)
        groups = multicast.joined(duplicate.fileno(), duplicate.family, self._groups[described.netns])
        return dataclasses.replace(described, groups=groups) if groups else described

    def _add_unix(self, described: Socket, netns: int) -> Socket:
        if described.netns not in self._unix:
            self._unix[described.netns] = {entry.inode: entry for entry in diag.unix_sockets(netns)}
        entry = self._unix[described.netns].get(described.inode)
        if entry is None:
            return described
        listening = entry.state == "listen"
        return dataclasses.replace(
            described,
            state=entry.state,
            path=entry.name,
            peer=entry.peer,
            backlog=entry.send_queue if listening else None,
            accept_queue=entry.receive_queue if listening else None,
            pending=entry.pending,
            receive_queue=0 if listening else entry.receive_queue,
            send_queue=0 if listening else entry.send_queue,
        )


def _wrap(fd: int) -> socket.socket:
    """The socket object of a descriptor; its family is asked for, as Python's own way fails where it has no name."""
    unknown = socket.socket(socket.AF_UNIX, fileno=fd)
    family = _number(unknown, socket.SOL_SOCKET, SO_DOMAIN)
    unknown.detach()
    return socket.socket(socket.AF_UNIX if family is None else family, fileno=fd)


def describe(duplicate: socket.socket, inode: int, netns: int, owners: tuple[Owner, ...]) -> Socket:
    """The record of an open socket, from what it says itself."""
    family = _number(duplicate, socket.SOL_SOCKET, SO_DOMAIN) or 0
    kind = _number(duplicate, socket.SOL_SOCKET, socket.SO_TYPE) or 0
    protocol = _number(duplicate, socket.SOL_SOCKET, SO_PROTOCOL) or 0
    inet = family in (socket.AF_INET, socket.AF_INET6)
    tcp = inet and kind == socket.SOCK_STREAM and protocol in (IPPROTO_TCP, IPPROTO_MPTCP)
    remote = _name(duplicate.getpeername) if inet else None
    state, backlog, queue = _tcp_state(duplicate) if tcp else ("established" if remote else "close", None, None)
    received, sent = (0, 0) if state == "listen" else _queues(duplicate, tcp)
    return Socket(
        inode=inode,
        netns=netns,
        family=FAMILIES.get(family, str(family)),
        type=TYPES.get(kind, str(kind)),
        protocol=protocol,
        state=state,
        local=_name(duplicate.getsockname) if inet else None,
        remote=remote,
        device=_string(duplicate, socket.SOL_SOCKET, socket.SO_BINDTODEVICE),
        backlog=backlog,
        accept_queue=queue,
        receive_queue=received,
        send_queue=sent,
        options=_options(duplicate, family, protocol, tcp),
        owners=owners,
    )


def _options(duplicate: socket.socket, family: int, protocol: int, tcp: bool) -> SocketOptions:
    v6 = family == socket.AF_INET6
    inet = v6 or family == socket.AF_INET
    level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
    transparent, freebind = (IPV6_TRANSPARENT, IPV6_FREEBIND) if v6 else (IP_TRANSPARENT, IP_FREEBIND)
    return SocketOptions(
        reuse_address=bool(_number(duplicate, socket.SOL_SOCKET, socket.SO_REUSEADDR)),
        reuse_port=bool(_number(duplicate, socket.SOL_SOCKET, socket.SO_REUSEPORT)),
        mark=_number(duplicate, socket.SOL_SOCKET, socket.SO_MARK) or 0,
        v6only=_flag(duplicate, level, socket.IPV6_V6ONLY) if v6 else None,
        transparent=_flag(duplicate, level, transparent) if inet else None,
        freebind=_flag(duplicate, level, freebind) if inet else None,
        congestion=_string(duplicate, socket.IPPROTO_TCP, socket.TCP_CONGESTION) if tcp else None,
        user_timeout=_number(duplicate, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) if tcp else None,
        upper_protocol=_string(duplicate, socket.IPPROTO_TCP, TCP_ULP) if tcp else None,
        mss=_number(duplicate, socket.IPPROTO_TCP, socket.TCP_MAXSEG) if tcp else None,
        corked=_flag(duplicate, IPPROTO_UDP, UDP_CORK) if inet and protocol == IPPROTO_UDP else None,
    )


def _tcp_state(duplicate: socket.socket) -> tuple[str, int | None, int | None]:
    try:
        info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_COUNTS.size)
        state, *_, waiting, limit = TCP_INFO_COUNTS.unpack(info)
    except (OSError, struct.error):
        # a multipath socket before its first subflow
        return "close", None, None
    name = diag.TCP_STATES.get(state, str(state))
    return (name, limit, waiting) if name == "listen" else (name, None, None)


def _queues(duplicate: socket.socket, tcp: bool) -> tuple[int, int]:
    if tcp:
        return _pending(duplicate, SIOCINQ), _pending(duplicate, SIOCOUTQ)
    try:
        # SIOCINQ of a datagram socket is only the size of the next datagram
        received, _, sent = struct.unpack("=3I", duplicate.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 12))
    except (OSError, struct.error):
        return 0, 0
    return received, sent


def _pending(duplicate: socket.socket, request: int) -> int:
    try:
        answer = fcntl.ioctl(duplicate.fileno(), request, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack("=i", answer)[0])


def _name(ask: Callable[[], object]) -> Endpoint | None:
    try:
        name = ask()
    except OSError:
        return None
    if not isinstance(name, tuple) or len(name) < 2:
        return None
    return Endpoint(
        address=str(name[0]).partition("%")[0], port=int(name[1]), scope=int(name[3]) if len(name) > 3 else 0
    )


def _number(duplicate: socket.socket, level: int, option: int) -> int | None:
    try:
        return duplicate.getsockopt(level, option)
    except OSError:
        return None


def _flag(duplicate: socket.socket, level: int, option: int) -> bool | None:
    value = _number(duplicate, level, option)
    return None if value is None else value != 0


def _string(duplicate: socket.socket, level: int, option: int) -> str | None:
    try:
        value = duplicate.getsockopt(level, option, 16)
    except OSError:
        return None
    return value.split(b"\0", 1)[0].decode("ascii", "backslashreplace") or None
