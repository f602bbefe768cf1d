"""The routers that ISATAP links know (their potential router lists), by ioctl: nothing else tells them.

The kernel keeps them for links of kind sit that were made as ISATAP ones.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator, Sequence

from ckpt.errors import NetworkError
from ckpt.kernel import netlink
from ckpt.kernel.netns import entered
from ckpt.model.encapsulation import IsatapRouter
from ckpt.model.network import Link

_SIOCGETPRL, _SIOCADDPRL = 0x89F4, 0x89F5
_ENTRY = struct.Struct("=4sHxxIxxxx")
_REQUEST = struct.Struct("16sP16x")
_DEFAULT = 1
_MOST = 1024
_ISATAP = 1


def read_routers(netns: int, links: Sequence[Link]) -> tuple[IsatapRouter, ...]:
    """All of those that ``links`` of ``netns`` know, in order."""
    asked = [link.ifname for link in links if link.kind == "sit" and int(link.options.get("flags", "0")) & _ISATAP]
    if not asked:
        return ()
    with entered(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        return tuple(router for ifname in asked for router in sorted(_listed(connection, ifname), key=repr))


def _listed(connection: socket.socket, ifname: str) -> Iterator[IsatapRouter]:
    # The answer follows the question, whose length becomes that of the answer.
    data = ctypes.create_string_buffer(_ENTRY.pack(bytes(4), 0, _MOST * _ENTRY.size), (_MOST + 1) * _ENTRY.size)
    try:
        _ioctl(connection, _SIOCGETPRL, ifname, data)
    except OSError:
        return  # a link of the driver's own, or it has gone: then what is read is read again
    length = _ENTRY.unpack_from(data)[2]
    for start in range(_ENTRY.size, _ENTRY.size + length, _ENTRY.size):
        address, flags, _ = _ENTRY.unpack_from(data, start)
        yield IsatapRouter(ifname=ifname, address=netlink.ip_text(address), default=bool(flags & _DEFAULT))


def add_routers(netns: int, routers: Sequence[IsatapRouter]) -> None:
    """Let the links of ``netns`` know these. Raises NetworkError that names the router."""
    with entered(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        for one in routers:
            entry = _ENTRY.pack(netlink.ip_bytes(one.address), _DEFAULT if one.default else 0, 0)
            try:
                _ioctl(connection, _SIOCADDPRL, one.ifname, ctypes.create_string_buffer(entry, len(entry)))
            except OSError as error:
                raise NetworkError(
                    f"cannot add the router {one.address} to {one.ifname}",
                    code="isatap-refused",
                    details=error.strerror or "",
                ) from error


def _ioctl(connection: socket.socket, command: int, ifname: str, data: ctypes.Array[ctypes.c_char]) -> None:
    fcntl.ioctl(connection, command, _REQUEST.pack(ifname.encode("utf-8", "surrogateescape"), ctypes.addressof(data)))
