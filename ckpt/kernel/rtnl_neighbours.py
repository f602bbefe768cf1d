"""Neighbours and proxies: from rtnetlink to records, and back to messages. What was learnt is no record."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ckpt.kernel import netlink
from ckpt.kernel.netlink import attribute, ip_bytes, ip_text, number, parse, u8, u32
from ckpt.kernel.rtnl_family import INET
from ckpt.model.network import Neighbour

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

NEIGHBOUR = struct.Struct("=BxxxiHBB")
_NDA_DST, _NDA_LLADDR, _NDA_PROTOCOL, _NDA_FLAGS_EXT = 1, 2, 12, 15
NTF_PROXY = 0x08
NUD_PERMANENT, _NUD_NOARP, _NUD_REACHABLE = 0x80, 0x40, 0x02
_NEIGHBOUR_STATES = {NUD_PERMANENT: "permanent", _NUD_NOARP: "noarp", _NUD_REACHABLE: "reachable"}
_NEIGHBOUR_FLAGS = {"use": 0x01, "extern_learn": 0x10, "router": 0x80}
_NEIGHBOUR_FLAGS_EXT = {"managed": 0x1}


def decode_neighbour(body: bytes, names: Mapping[int, str], silent: Mapping[int, str | None]) -> Neighbour | None:
    """One RTM_NEWNEIGH; None for an entry that was learnt, or that the kernel made by itself.

    ``silent`` are the links on which nobody asks for addresses, with their own: there every neighbour is ``noarp``, and
    one that the kernel made has the link's own address or none (arp_constructor, ndisc_constructor).
    """
    if not is_set(body):
        return None
    _, index, state, flags, _ = NEIGHBOUR.unpack_from(body)
    proxy = bool(flags & NTF_PROXY)
    found = parse(body, NEIGHBOUR.size)
    address, mac = found[_NDA_DST], found.get(_NDA_LLADDR, b"")
    set_flags = {name for name, bit in _NEIGHBOUR_FLAGS.items() if flags & bit}
    set_flags |= {name for name, bit in _NEIGHBOUR_FLAGS_EXT.items() if number(found.get(_NDA_FLAGS_EXT, b"")) & bit}
    own = index in silent and (not any(mac) or netlink.mac_text(mac) == silent[index])
    by_nature = own or mac[:1] == b"\xff" or _is_multicast(address) or not names.get(index)
    if state & _NUD_NOARP and by_nature and not set_flags - {"router"}:
        return None
    # Whether one that is kept alive, or that another tells of, is fresh or stale at the moment is not kept.
    kept = next((name for bit, name in _NEIGHBOUR_STATES.items() if state & bit), "reachable")
    managed = "managed" in set_flags
    return Neighbour(
        ifname=names.get(index, ""),
        address=ip_text(address),
        mac="" if proxy or managed else netlink.mac_text(mac),
        proxy=proxy,
        flags=tuple(sorted(set_flags)),
        protocol=number(found.get(_NDA_PROTOCOL, b"")),
        state="permanent" if proxy else "" if managed else kept,
    )


def _is_multicast(address: bytes) -> bool:
    return address[0] == 0xFF if len(address) == 16 else address[0] >> 4 == 0xE


def is_set(body: bytes) -> bool:
    """Whether one RTM_NEWNEIGH or RTM_DELNEIGH may be about an entry that somebody set."""
    _, _, state, flags, _ = NEIGHBOUR.unpack_from(body)
    if state & NUD_PERMANENT or flags & (NTF_PROXY | _NEIGHBOUR_FLAGS["extern_learn"]):
        return True
    found = parse(body, NEIGHBOUR.size)
    noarp = bool(state & _NUD_NOARP) and not _is_multicast(found.get(_NDA_DST, b"\xff"))
    return noarp or bool(number(found.get(_NDA_FLAGS_EXT, b"")) & _NEIGHBOUR_FLAGS_EXT["managed"])


def encode_neighbour(neighbour: Neighbour, indices: Mapping[str, int]) -> bytes:
    """The body of the RTM_NEWNEIGH or RTM_DELNEIGH for ``neighbour``."""
    address = ip_bytes(neighbour.address)
    flags = sum(_NEIGHBOUR_FLAGS.get(name, 0) for name in neighbour.flags) | (NTF_PROXY if neighbour.proxy else 0)
    extended = sum(_NEIGHBOUR_FLAGS_EXT.get(name, 0) for name in neighbour.flags)
    numbers = {name: bit for bit, name in _NEIGHBOUR_STATES.items()}
    state = 0 if neighbour.proxy else numbers.get(neighbour.state, 0)
    family = INET[4 if len(address) == 4 else 6]
    parts = [attribute(_NDA_DST, address)]
    if neighbour.mac:
        parts.append(attribute(_NDA_LLADDR, netlink.mac_bytes(neighbour.mac)))
    if extended:
        parts.append(attribute(_NDA_FLAGS_EXT, u32(extended)))
    if neighbour.protocol:
        parts.append(attribute(_NDA_PROTOCOL, u8(neighbour.protocol)))
    return NEIGHBOUR.pack(family, indices.get(neighbour.ifname, 0), state, flags, 0) + b"".join(parts)
