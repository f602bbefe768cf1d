"""The kernel's socket monitor (``sock_diag(7)``): the little of it that no ``getsockopt`` can tell.

Two questions are asked: which TCP sockets a namespace has (also those that no process holds: half-open connections,
connections in accept queues, connections that were closed but not yet acknowledged), and which unix sockets face each
other. pyroute2's DiagSocket is not used: it hides the kernel's error replies, because their type number collides with
AF_INET in its dispatch, and an error that reads as "no sockets" would let a check pass. The encoding here is the two
fixed structures of ``linux/inet_diag.h`` and ``linux/unix_diag.h``. Nothing is ever changed (SOCK_DESTROY is not here).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from ckpt.kernel import netns as namespaces
from ckpt.model.socket import IPPROTO_TCP, Endpoint
from ckpt.records import dataclass

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 0x1
NLM_F_DUMP = 0x300
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR = 2
NLMSG_DONE = 3
RECEIVE_SIZE = 1 << 17
"""Above the 32 KiB that the kernel puts in one datagram of a dump, so that none is cut."""
ATTEMPTS = 4
"""A dump during which sockets came and went may have missed some (NLM_F_DUMP_INTR) and is asked for again."""

TCP_STATES = {
    1: "established",
    2: "syn_sent",
    3: "syn_recv",
    4: "fin_wait1",
    5: "fin_wait2",
    6: "time_wait",
    7: "close",
    8: "close_wait",
    9: "last_ack",
    10: "listen",
    11: "closing",
    12: "syn_recv",
    13: "close",
}
"""``include/net/tcp_states.h``; 12 is NEW_SYN_RECV (a request that is no socket yet), 13 is BOUND_INACTIVE."""
STATE_NUMBERS = {name: number for number, name in reversed(TCP_STATES.items())}
ALL_STATES = (1 << 12) - 1

UNIX_NAME, UNIX_VFS, UNIX_PEER, UNIX_ICONS, UNIX_RQLEN = range(5)
UDIAG_SHOW_ALL = 0x1 | 0x4 | 0x8 | 0x10
"""Name, peer, pending connections, queue lengths."""

_HEADER = struct.Struct("=IHHII")
_INET_REQUEST = struct.Struct("=BBBxI48s")
_INET_MESSAGE = struct.Struct("=BBBB48sIIIII")
_INET_ID = struct.Struct("!HH16s16s")
_UNIX_REQUEST = struct.Struct("=BBxxIIIII")
_UNIX_MESSAGE = struct.Struct("=BBBxIII")


@dataclass(frozen=True, slots=True, kw_only=True)
class InetEntry:
    """A TCP socket of a namespace. ``inode`` 0: no process holds it. Queues of a listener count connections."""

    state: str
    local: Endpoint
    remote: Endpoint
    inode: int
    receive_queue: int
    send_queue: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixEntry:
    """A unix socket of a namespace. ``pending`` are the inodes of clients that wait to be accepted."""

    inode: int
    state: str
    name: str | None
    peer: int
    pending: tuple[int, ...]
    receive_queue: int
    send_queue: int


def tcp_sockets(netns: int, states: int = ALL_STATES) -> tuple[InetEntry, ...]:
    """The TCP sockets of ``netns`` in any of ``states`` (a bit for each number of a state)."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        request = _INET_REQUEST.pack(family, IPPROTO_TCP, 0, states, bytes(40) + b"\xff" * 8)
        found += [_inet(message) for message in _dump(netns, request)]
    return tuple(found)


def unix_sockets(netns: int) -> tuple[UnixEntry, ...]:
    """The unix sockets that were made in ``netns``."""
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0xFFFF_FFFF, 0, UDIAG_SHOW_ALL, 0xFFFF_FFFF, 0xFFFF_FFFF)
    return tuple(_unix(message) for message in _dump(netns, request))


def _dump(netns: int, request: bytes) -> list[bytes]:
    with namespaces.entered(netns):
        channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
    with channel:
        for attempt in range(1, ATTEMPTS + 1):
            header = _HEADER.pack(
                _HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, attempt, 0
            )
            channel.sendto(header + request, (0, 0))
            messages, interrupted = _receive(channel)
            if not interrupted:
                break
    return messages


def _receive(channel: socket.socket) -> tuple[list[bytes], bool]:
    messages: list[bytes] = []
    interrupted = False
    while True:
        for kind, flags, payload in _split(channel.recv(RECEIVE_SIZE)):
            interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
            if kind == NLMSG_DONE:
                return messages, interrupted
            if kind == NLMSG_ERROR:
                number = -int(struct.unpack_from("=i", payload)[0])
                raise OSError(number, f"sock_diag: {os.strerror(number)}")
            messages.append(payload)


def _split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
        yield kind, flags, data[at + _HEADER.size : at + length]
        at += -(-length // 4) * 4


def _inet(message: bytes) -> InetEntry:
    family, state, _, _, identity, _, rqueue, wqueue, _, inode = _INET_MESSAGE.unpack_from(message)
    sport, dport, source, destination = _INET_ID.unpack_from(identity)
    size = 4 if family == socket.AF_INET else 16
    return InetEntry(
        state=TCP_STATES.get(state, str(state)),
        local=Endpoint(address=socket.inet_ntop(family, source[:size]), port=sport),
        remote=Endpoint(address=socket.inet_ntop(family, destination[:size]), port=dport),
        inode=inode,
        receive_queue=rqueue,
        send_queue=wqueue,
    )


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind] = data[at + 4 : at + length]
        at += -(-length // 4) * 4
    return found


def _unix(message: bytes) -> UnixEntry:
    _, _, state, inode, _, _ = _UNIX_MESSAGE.unpack_from(message)
    attributes = _attributes(message[_UNIX_MESSAGE.size :])
    icons = attributes.get(UNIX_ICONS, b"")
    rqueue, wqueue = struct.unpack("=II", attributes.get(UNIX_RQLEN, bytes(8)))
    name = attributes.get(UNIX_NAME)
    return UnixEntry(
        inode=inode,
        state=TCP_STATES.get(state, str(state)),
        name=None if name is None else unix_name(name),
        peer=struct.unpack("=I", attributes.get(UNIX_PEER, bytes(4)))[0],
        pending=struct.unpack(f"={len(icons) // 4}I", icons),
        receive_queue=rqueue,
        send_queue=wqueue,
    )


def unix_name(name: bytes) -> str:
    """A unix socket's name as text: an abstract one begins with ``@``, as ss(8) and /proc/net/unix show it."""
    shown = b"@" + name[1:] if name.startswith(b"\0") else name.rstrip(b"\0")
    return shown.decode("utf-8", "backslashreplace")
