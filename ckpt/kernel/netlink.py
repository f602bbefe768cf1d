"""Netlink sockets and messages: bytes to the kernel and back, and nothing of what they mean.

A request goes out, its replies are yielded as (type, payload), attributes are pairs of (type, value). A dump that the
kernel flags as interrupted (NLM_F_DUMP_INTR: something changed while it was walked) is repeated, never accepted. A
refusal carries the kernel's own explanation (NETLINK_EXT_ACK). The codec is our own and not pyroute2's because a
group may have thousands of routes, because its import alone costs more than ``ckpt ps`` does, and because what it
does not know it leaves out, whereas here every attribute that the kernel sends arrives.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence

from ckpt.errors import NetworkError
from ckpt.kernel.netns import entered

ROUTE = 0
NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BUFFER = 4 << 20
# So many answers fit into a receive buffer that could not be enlarged, also when all are refusals.
_AT_ONCE = 200
# With their headers these fit into a send buffer that has the size that sockets have (net.core.wmem_default).
_SENT_AT_ONCE = 128 << 10
_SO_SNDBUFFORCE = 32

_NFNL_MSG_BATCH_BEGIN = 0x10
_NFNL_MSG_BATCH_END = 0x11
_DUMP_ATTEMPTS = 8

Attributes = dict[int, bytes]
Message = tuple[int, bytes, int]
"""The type, the payload and the flags of a message to be sent."""


class KernelRefusal(OSError):
    """The kernel said no; ``strerror`` holds its extended ACK text, when there is one, beside that of the errno."""

    def __init__(self, number: int, message: str) -> None:
        text = os.strerror(number)
        super().__init__(number, f"{message} ({text})" if message else text)
        self.number = number
        self.message = message


class BatchRefusal(KernelRefusal):
    """A transaction was refused whole, because of its message number ``position``; -1 when of none in particular."""

    def __init__(self, number: int, message: str, position: int) -> None:
        super().__init__(number, message)
        self.position = position


class Netlink:
    """One netlink socket, inside ``netns`` when given; ``groups`` are the multicast groups it listens to."""

    def __init__(self, protocol: int = ROUTE, *, netns: int | None = None, groups: Iterable[int] = ()) -> None:
        if netns is None:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        else:
            with entered(netns):
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, *((_NETLINK_GET_STRICT_CHK,) if protocol == ROUTE else ())):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._socket.bind((0, 0))
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, for select."""
        return self._socket.fileno()

    @property
    def sent(self) -> int:
        """How many messages have gone out."""
        return self._sequence

    def request(self, kind: int, payload: bytes, flags: int = 0) -> list[tuple[int, bytes]]:
        """Send one message and wait for its acknowledgement; replies before it are returned. Raises KernelRefusal."""
        self._send(kind, payload, NLM_F_REQUEST | NLM_F_ACK | flags)
        return self._replies()

    def requests(self, messages: Iterable[Message]) -> list[KernelRefusal | None]:
        """Send (type, payload, flags) messages, each whatever became of those before it; what is said to each.

        Many go out at once, and the kernel answers those that it refuses and the last. For messages without replies.
        """
        return [said for chunk in _chunks(messages) for said in self._send_many(chunk)]

    def _send_many(self, messages: Sequence[Message]) -> list[KernelRefusal | None]:
        first = self._sequence + 1
        self._sequence += len(messages)
        parts: list[bytes] = []
        pack = _HEADER.pack
        for sequence, (kind, payload, flags) in enumerate(messages, first):
            asked = NLM_F_REQUEST | flags if sequence != self._sequence else NLM_F_REQUEST | NLM_F_ACK | flags
            size = len(payload)
            parts += (pack(16 + size, kind, asked, sequence, 0), payload)
            if size & 3:
                parts.append(b"\0" * (-size & 3))
        self._socket.send(b"".join(parts))
        said: list[KernelRefusal | None] = [None] * len(messages)
        while True:
            for kind, flags, sequence, body in _messages(self._socket.recv(1 << 18)):
                if kind != _NLMSG_ERROR or sequence < first:
                    continue
                try:
                    _raise_refusal(kind, flags, body)
                except KernelRefusal as error:
                    said[sequence - first] = error
                if sequence == self._sequence:
                    return said

    def dump(self, kind: int, payload: bytes) -> list[tuple[int, bytes]]:
        """Everything the kernel lists for ``kind``, as of one moment. Raises KernelRefusal or NetworkError."""
        for _ in range(_DUMP_ATTEMPTS):
            self._send(kind, payload, NLM_F_REQUEST | NLM_F_DUMP)
            try:
                return self._replies()
            except InterruptedError:
                continue
        raise NetworkError(
            "the network changes faster than it can be read",
            code="network-changing",
            details=f"netlink dump {kind} was interrupted {_DUMP_ATTEMPTS} times",
            hint="stop what keeps changing links, addresses or routes and try again",
        )

    def transaction(self, subsystem: int, messages: Sequence[Message]) -> None:
        """Send (type, payload, flags) messages to a netfilter subsystem: all take effect, or none. Raises BatchRefusal.

        The kernel works a batch off before ``send`` returns, and answers only what it refuses.
        """
        bracket = struct.pack(">BBH", 0, 0, subsystem)
        first = self._sequence + 2
        parts: list[bytes] = []
        whole = [(_NFNL_MSG_BATCH_BEGIN, bracket, 0), *messages, (_NFNL_MSG_BATCH_END, bracket, 0)]
        for kind, payload, flags in whole:
            self._sequence += 1
            size = _HEADER.size + len(payload)
            parts += [_HEADER.pack(size, kind, NLM_F_REQUEST | flags, self._sequence, 0), payload, b"\0" * (-size % 4)]
        data = b"".join(parts)
        # One message must hold all of it; the kernel doubles the number, which leaves room for its bookkeeping.
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, min(len(data) + (1 << 16), 0x3FFFFFFF))
        self._socket.send(data)
        while True:
            try:
                answers = self._socket.recv(1 << 18, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            for kind, flags, sequence, body in _messages(answers):
                try:
                    _raise_refusal(kind, flags, body)
                except KernelRefusal as error:
                    position = sequence - first if first <= sequence < first + len(messages) else -1
                    raise BatchRefusal(error.number, error.message, position) from error

    def events(self) -> list[tuple[int, bytes]] | None:
        """The notifications that have arrived, without waiting; None when some were lost."""
        found: list[tuple[int, bytes]] = []
        try:
            while True:
                data = self._socket.recv(1 << 18, socket.MSG_DONTWAIT)
                found += [(kind, body) for kind, _, _, body in _messages(data)]
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return None
            raise

    def _send(self, kind: int, payload: bytes, flags: int) -> None:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(payload), kind, flags, self._sequence, 0) + payload)

    def _replies(self) -> list[tuple[int, bytes]]:
        """The replies to the last message up to its end; InterruptedError after the end of an inconsistent dump."""
        # As _messages(), written out: a large namespace has tens of thousands of them.
        found: list[tuple[int, bytes]] = []
        interrupted, mine, unpack = 0, self._sequence, _HEADER.unpack_from
        while True:
            data = self._socket.recv(1 << 18)
            offset, end = 0, len(data)
            while offset + 16 <= end:
                length, kind, flags, sequence, _ = unpack(data, offset)
                # Another sequence is of the rest of a dump that was given up.
                if sequence == mine:
                    interrupted |= flags & NLM_F_DUMP_INTR
                    if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                        _raise_refusal(kind, flags, data[offset + 16 : offset + length])
                        if interrupted:
                            raise InterruptedError
                        return found
                    found.append((kind, data[offset + 16 : offset + length]))
                offset += (length + 3) & ~3


def _chunks(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """``messages`` in lists that can be sent at once."""
    chunk: list[Message] = []
    size = 0
    for message in messages:
        size += len(message[1])
        if chunk and (len(chunk) == _AT_ONCE or size > _SENT_AT_ONCE):
            yield chunk
            chunk, size = [], len(message[1])
        chunk.append(message)
    if chunk:
        yield chunk


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _raise_refusal(kind: int, flags: int, body: bytes) -> None:
    number = -int.from_bytes(body[:4], "little" if _LITTLE else "big", signed=True) if len(body) >= 4 else 0
    if number <= 0:
        return
    message = ""
    if flags & _NLM_F_ACK_TLVS:
        offset = 4
        if kind == _NLMSG_ERROR:
            length = _HEADER.unpack_from(body, 4)[0] if not flags & _NLM_F_CAPPED else _HEADER.size
            offset += (length + 3) & ~3
        message = text(parse(body, offset).get(_NLMSGERR_ATTR_MSG, b""))
    raise KernelRefusal(number, message)


_LITTLE = struct.pack("=H", 1) == b"\x01\x00"


def pairs(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message in their order; ``offset`` is the size of the fixed header before them."""
    end = len(data)
    unpack = _ATTRIBUTE.unpack_from
    while offset + 4 <= end:
        length, kind = unpack(data, offset)
        if length < 4:
            return
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def parse(data: bytes, offset: int = 0) -> Attributes:
    """The attributes of a message by type; of one that is repeated, the last."""
    # As pairs(), written out: this is most of what reading a large namespace does.
    found: Attributes = {}
    end = len(data)
    unpack = _ATTRIBUTE.unpack_from
    while offset + 4 <= end:
        length, kind = unpack(data, offset)
        if length < 4:
            break
        found[kind & _NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = len(value) + 4
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def nested(kind: int, *values: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | NLA_F_NESTED, b"".join(values))


def u8(value: int) -> bytes:
    """One byte."""
    return struct.pack("=B", value)


def u16(value: int) -> bytes:
    """Two bytes in the host's order."""
    return struct.pack("=H", value)


def u32(value: int) -> bytes:
    """Four bytes in the host's order."""
    return struct.pack("=I", value)


def number(value: bytes, order: str = "host") -> int:
    """An unsigned integer of any length, in the host's order or the network's (``be``)."""
    return int.from_bytes(value, sys.byteorder if order == "host" else "big")


def text(value: bytes) -> str:
    """A string that ends at its NUL; bytes that are not UTF-8 survive the way back."""
    return value.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def string(value: str) -> bytes:
    """The mirror of ``text``."""
    return value.encode("utf-8", "surrogateescape") + b"\0"


def mac_text(value: bytes) -> str:
    """A link-layer address as the kernel's tools write it."""
    return value.hex(":")


def mac_bytes(value: str) -> bytes:
    """The mirror of ``mac_text``."""
    return bytes.fromhex(value.replace(":", ""))


def ip_text(value: bytes) -> str:
    """An IPv4 or IPv6 address by its length, in canonical form."""
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)


def ip_bytes(value: str) -> bytes:
    """The mirror of ``ip_text``."""
    return socket.inet_pton(socket.AF_INET6 if ":" in value else socket.AF_INET, value)
