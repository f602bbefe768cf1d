"""The ports that receive for tunnels (FOU and GUE), by generic netlink: listed, and opened again.

A kernel that has not loaded the module has none open, and is not asked.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence

from ckpt.errors import NetworkError
from ckpt.kernel import modules, netlink
from ckpt.kernel.genetlink import GenericNetlink
from ckpt.kernel.netlink import Attributes, KernelRefusal, attribute, number, u8, u32
from ckpt.model.encapsulation import FouPort
from ckpt.model.network import Unread

_NAME = "fou"
_ADD, _GET = 1, 3
_PORT, _FAMILY, _PROTOCOL, _TYPE, _NOPARTIAL = 1, 2, 3, 4, 5
_LOCAL, _PEER = {4: 6, 6: 7}, {4: 8, 6: 9}
_PEER_PORT, _IFINDEX = 10, 11
_KNOWN = {_PORT, _FAMILY, _PROTOCOL, _TYPE, _NOPARTIAL, *_LOCAL.values(), *_PEER.values(), _PEER_PORT, _IFINDEX}
_DIRECT, _GUE = 1, 2


def read_ports(netns: int, names: Mapping[int, str], unread: list[Unread]) -> tuple[FouPort, ...]:
    """All of ``netns``; what the records cannot hold goes to ``unread``."""
    if modules.unloaded(_NAME):
        return ()
    with GenericNetlink(_NAME, netns) as connection:
        found = connection.dump(_GET, b"") if connection else []
    return tuple(sorted((_decode(one, names, unread) for one in found), key=repr))


def _decode(found: Attributes, names: Mapping[int, str], unread: list[Unread]) -> FouPort:
    port, family = number(found[_PORT], "be"), 6 if number(found[_FAMILY]) == socket.AF_INET6 else 4
    for strange in sorted(found.keys() - _KNOWN):
        what = f"has the unknown attribute {strange}"
        unread.append(Unread(code="fou-port", subject=f"tunnels' UDP port {port}", what=what))
    return FouPort(
        port=port,
        family=family,
        protocol=0 if number(found[_TYPE]) == _GUE else number(found.get(_PROTOCOL, b"")),
        local=_address(found.get(_LOCAL[family], b"")),
        peer=_address(found.get(_PEER[family], b"")),
        peer_port=number(found.get(_PEER_PORT, b""), "be"),
        ifname=names.get(number(found.get(_IFINDEX, b"")), ""),
        remcsum_nopartial=_NOPARTIAL in found,
    )


def _address(value: bytes) -> str:
    return netlink.ip_text(value) if any(value) else ""


def open_ports(netns: int, ports: Sequence[FouPort], indices: Mapping[str, int]) -> None:
    """Open ``ports`` in ``netns``, which has their addresses. Raises NetworkError that names the port."""
    with GenericNetlink(_NAME, netns) as connection:
        if not connection:
            raise NetworkError(
                "this kernel opens no UDP ports for tunnels", code="fou-refused", hint="modprobe fou, or fou6"
            )
        for port in ports:
            try:
                connection.request(_ADD, _encode(port, indices))
            except KernelRefusal as error:
                raise NetworkError(
                    f"cannot open the tunnels' UDP port {port.port}", code="fou-refused", details=error.strerror
                ) from error


def _encode(port: FouPort, indices: Mapping[str, int]) -> bytes:
    parts = [
        attribute(_PORT, struct.pack(">H", port.port)),
        attribute(_FAMILY, u8(socket.AF_INET6 if port.family == 6 else socket.AF_INET)),
        attribute(_TYPE, u8(_DIRECT if port.protocol else _GUE)),
    ]
    if port.protocol:
        parts.append(attribute(_PROTOCOL, u8(port.protocol)))
    if port.remcsum_nopartial:
        parts.append(attribute(_NOPARTIAL, b""))
    for kind, address in ((_LOCAL[port.family], port.local), (_PEER[port.family], port.peer)):
        if address:
            parts.append(attribute(kind, netlink.ip_bytes(address)))
    if port.peer_port:
        parts.append(attribute(_PEER_PORT, struct.pack(">H", port.peer_port)))
    if port.ifname:
        parts.append(attribute(_IFINDEX, u32(indices[port.ifname])))
    return b"".join(parts)
