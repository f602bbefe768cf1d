"""The sockets of a context, as the kernel lists them: by the cgroup that each was made in.

That is also where a socket is found whose owner has left, or that was passed to somebody else. A socket may be
destroyed (SOCK_DESTROY, CONFIG_INET_DIAG_DESTROY): its owner gets ECONNABORTED, its peer an RST.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from ckpt.errors import UnsupportedError
from ckpt.kernel.diag import SOCK_DIAG_BY_FAMILY, TCP_STATES
from ckpt.kernel.netlink import KernelRefusal, Netlink, number, parse
from ckpt.model.context import Context
from ckpt.model.socket import IPPROTO_TCP, IPPROTO_UDP, Endpoint
from ckpt.records import dataclass

_SOCK_DIAG = 4
_SOCK_DESTROY = 21
_INET_DIAG_CGROUP_ID = 21
_ALL_STATES = (1 << 13) - 1
_REQUEST = struct.Struct("=BBBxI")
_MESSAGE = struct.Struct("=BBBB")
_ID = struct.Struct("!HH16s16s")
_ID_SIZE = 48
_HEADER_SIZE = 72
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_NAMES = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSocket:
    """A TCP or UDP socket. ``identity`` is the kernel's own word for it, with which it can be destroyed."""

    protocol: str
    state: str
    local: Endpoint
    remote: Endpoint
    inode: int
    family: int
    identity: bytes

    def __str__(self) -> str:
        ends = [str(self.local)] if self.state in ("listen", "close") else [str(self.local), str(self.remote)]
        return f"{self.protocol} {self.state} {' – '.join(ends)}"


def of(context: Context) -> tuple[ContextSocket, ...]:
    """The sockets that were made in the context, in the caller's network namespace."""
    numbers = _cgroups(context)
    return tuple(one for number, one in everywhere() if number in numbers)


def free(context: Context, pids: Iterable[int]) -> tuple[ContextSocket, ...]:
    """The TCP and UDP sockets that processes hold and that were not made in the context: it does not confine them."""
    numbers = _cgroups(context)
    held = {inode for pid in pids for inode in _sockets_of(pid)}
    return tuple(one for number, one in everywhere() if one.inode in held and number not in numbers)


def _cgroups(context: Context) -> set[int]:
    return {os.stat(directory).st_ino for directory, _, _ in os.walk(context.cgroup)}


def _sockets_of(pid: int) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found = _SOCKET.fullmatch(str(entry.readlink()))
                if found is not None:
                    yield int(found[1])


def everywhere() -> Iterator[tuple[int, ContextSocket]]:
    """Every socket of the caller's network namespace, with the number of the cgroup that it was made in."""
    with Netlink(_SOCK_DIAG) as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            for protocol in (IPPROTO_TCP, IPPROTO_UDP):
                asked = _REQUEST.pack(family, protocol, 0, _ALL_STATES) + bytes(_ID_SIZE)
                for _, body in kernel.dump(SOCK_DIAG_BY_FAMILY, asked):
                    attributes = parse(body, _HEADER_SIZE)
                    yield number(attributes.get(_INET_DIAG_CGROUP_ID, bytes(8))), _decode(body, protocol)


def _decode(body: bytes, protocol: int) -> ContextSocket:
    family, state, _, _ = _MESSAGE.unpack_from(body)
    source_port, port, source, destination = _ID.unpack_from(body, 4)
    (inode,) = struct.unpack_from("=I", body, _HEADER_SIZE - 4)
    name = TCP_STATES.get(state, str(state))
    if protocol == IPPROTO_UDP and name == "established":
        name = "connected"
    return ContextSocket(
        protocol=_NAMES[protocol],
        state=name,
        local=Endpoint(address=_text(family, source), port=source_port),
        remote=Endpoint(address=_text(family, destination), port=port),
        inode=inode,
        family=family,
        identity=body[4 : 4 + _ID_SIZE],
    )


def _text(family: int, raw: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    text = socket.inet_ntop(socket.AF_INET6, raw)
    return text.removeprefix("::ffff:") if "." in text else text


def destroy(one: ContextSocket) -> None:
    """Abort a socket: its owner and its peer are told. UnsupportedError where the kernel cannot."""
    protocol = next(value for value, name in _NAMES.items() if name == one.protocol)
    asked = _REQUEST.pack(one.family, protocol, 0, _ALL_STATES) + one.identity
    try:
        with Netlink(_SOCK_DIAG) as kernel:
            kernel.request(_SOCK_DESTROY, asked)
    except KernelRefusal as error:
        if isinstance(error, FileNotFoundError) or error.errno == 2:
            return  # it has gone by itself
        raise UnsupportedError(
            f"{one} cannot be aborted",
            code="socket-destroy",
            details=error.strerror,
            hint="the kernel needs CONFIG_INET_DIAG_DESTROY; end its program instead",
        ) from error
