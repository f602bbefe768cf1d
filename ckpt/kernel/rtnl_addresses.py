"""Addresses of links: from rtnetlink to records, and back to messages.

Links are names in records and numbers on the wire; the caller gives the mapping.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping

from ckpt.kernel.netlink import attribute, ip_bytes, ip_text, number, parse, string, text, u8, u32
from ckpt.kernel.rtnl_family import INET, SCOPES, scope_number
from ckpt.model.network import Address
from ckpt.model.plenty import in_plenty

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
FOREVER = 0xFFFFFFFF

ADDRESS = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST, _IFA_CACHEINFO = 1, 2, 3, 4, 6
_IFA_FLAGS, _IFA_RT_PRIORITY, _IFA_PROTO = 8, 9, 11
_ADDRESS_FLAGS = {
    "temporary": 0x01,  # for IPv4 the same bit is "secondary"
    "nodad": 0x02,
    "optimistic": 0x04,
    "dadfailed": 0x08,
    "homeaddress": 0x10,
    "deprecated": 0x20,
    "managetempaddr": 0x100,
    "noprefixroute": 0x200,
    "mcautojoin": 0x400,
    "stable-privacy": 0x800,
}
# deprecated follows from the lifetime; the others the kernel takes from nobody (inet6_rtm_newaddr's mask).
UNSETTABLE_ADDRESS_FLAGS = frozenset({"temporary", "dadfailed", "deprecated", "optimistic", "stable-privacy"})
_NAMED_FLAGS = sum(_ADDRESS_FLAGS.values())
_IFA_F_TENTATIVE = 0x40


def decode_address(body: bytes, names: Mapping[int, str]) -> Address:
    """One RTM_NEWADDR."""
    family, length, low_flags, scope, index = ADDRESS.unpack_from(body)
    found = parse(body, ADDRESS.size)
    bits = number(found[_IFA_FLAGS]) if _IFA_FLAGS in found else low_flags
    if family == INET[4]:
        bits &= ~_ADDRESS_FLAGS["temporary"]
    local = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    other = found.get(_IFA_ADDRESS, local)
    preferred, valid = FOREVER, FOREVER
    if _IFA_CACHEINFO in found:
        preferred, valid = struct.unpack_from("=II", found[_IFA_CACHEINFO])
    ifname = names[index]
    label = text(found.get(_IFA_LABEL, b""))
    return in_plenty(Address)(
        ifname=ifname,
        address=f"{ip_text(local)}/{length}",
        peer=f"{ip_text(other)}/{length}" if other != local else "",
        broadcast=ip_text(found[_IFA_BROADCAST]) if _IFA_BROADCAST in found else "",
        scope=SCOPES.get(scope, str(scope)),
        label="" if label == ifname else label,
        flags=_flag_names(bits & _NAMED_FLAGS),
        valid_lifetime=None if valid == FOREVER else valid,
        preferred_lifetime=None if preferred == FOREVER else preferred,
        metric=number(found.get(_IFA_RT_PRIORITY, b"")),
        protocol=number(found.get(_IFA_PROTO, b"")),
    )


@functools.cache
def _flag_names(bits: int) -> tuple[str, ...]:
    return tuple(sorted(name for name, bit in _ADDRESS_FLAGS.items() if bits & bit))


def is_tentative(body: bytes) -> bool:
    """Whether the address of one RTM_NEWADDR is tentative."""
    return bool(ADDRESS.unpack_from(body)[2] & _IFA_F_TENTATIVE)


def asking(address: Address, indices: Mapping[str, int]) -> bytes:
    """The body of the RTM_GETADDR for the IPv6 ``address`` alone."""
    header = ADDRESS.pack(INET[6], 0, 0, 0, indices[address.ifname])
    return header + attribute(_IFA_LOCAL, ip_bytes(address.address.partition("/")[0]))


def encode_address(address: Address, indices: Mapping[str, int]) -> bytes:
    """The body of the RTM_NEWADDR or RTM_DELADDR for ``address``."""
    plain, _, length = address.address.partition("/")
    local = ip_bytes(plain)
    other = ip_bytes(address.peer.partition("/")[0]) if address.peer else local
    bits = sum(_ADDRESS_FLAGS[name] for name in address.flags if name not in UNSETTABLE_ADDRESS_FLAGS)
    preferred = FOREVER if address.preferred_lifetime is None else address.preferred_lifetime
    valid = FOREVER if address.valid_lifetime is None else address.valid_lifetime
    header = ADDRESS.pack(
        INET[4 if len(local) == 4 else 6],
        int(length),
        bits & 0xFF,
        scope_number(address.scope),
        indices[address.ifname],
    )
    parts = [attribute(_IFA_LOCAL, local), attribute(_IFA_ADDRESS, other), attribute(_IFA_FLAGS, u32(bits))]
    parts.append(attribute(_IFA_CACHEINFO, struct.pack("=IIII", preferred, valid, 0, 0)))
    if address.broadcast:
        parts.append(attribute(_IFA_BROADCAST, ip_bytes(address.broadcast)))
    if len(local) == 4:
        parts.append(attribute(_IFA_LABEL, string(address.label or address.ifname)))
    if address.metric:
        parts.append(attribute(_IFA_RT_PRIORITY, u32(address.metric)))
    if address.protocol:
        parts.append(attribute(_IFA_PROTO, u8(address.protocol)))
    return header + b"".join(parts)
