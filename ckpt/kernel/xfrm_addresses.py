"""Addresses in the templates of IPsec policies (struct xfrm_user_tmpl): bytes in, bytes out."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from ckpt.kernel.netlink import ip_bytes, ip_text

# daddr, spi and protocol; family; saddr; what says how the packet is transformed.
_TEMPLATE = struct.Struct("=16s8sH2s16s20s")
_LENGTHS = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}


def move_templates(data: bytes, move: Callable[[str], str]) -> bytes:
    """The templates with both ends of each where ``move`` says; one without ends (in transport mode) has zeros."""
    if len(data) % _TEMPLATE.size:
        return data
    parts = []
    for destination, identity, family, padding, source, rest in _TEMPLATE.iter_unpack(data):
        length = _LENGTHS.get(family, 0)
        moved = [_moved(one, length, move) for one in (destination, source)]
        parts.append(_TEMPLATE.pack(moved[0], identity, family, padding, moved[1], rest))
    return b"".join(parts)


def _moved(field: bytes, length: int, move: Callable[[str], str]) -> bytes:
    if not length or not any(field):
        return field
    return ip_bytes(move(ip_text(field[:length]))).ljust(16, b"\0")
