"""What the programs of a context keep in their maps, between bytes and records; the twin of ``bpf/context.bpf.c``.

Addresses are sixteen bytes as they are on the wire, IPv4 as ::ffff:a.b.c.d. Everything else is in the order of the
machine. Nothing here makes a system call.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Iterator

from ckpt.model.context import MOST_RANGES, Context, Member, PortRange
from ckpt.model.socket import IPPROTO_TCP, Endpoint
from ckpt.records import dataclass

MOST = 18
WILD4, WILD6 = 1, 2
V6ONLY_DEFAULT, RESTORING = 1, 2
KEY = struct.Struct("=16sHBB")
CLAIM = struct.Struct("=QII16s")
CONFIG_KEY = struct.pack("=I", 0)

_HEAD = struct.Struct("=Q8I16s16s")
_ENTRY = struct.Struct("=16s16sH")
_RANGE = struct.Struct("=HHH")
_MEMBER_SIZE = 2 + MOST_RANGES * _RANGE.size
_ENTRY_SIZE = _ENTRY.size + _MEMBER_SIZE
CONFIG_SIZE = _HEAD.size + MOST * _ENTRY_SIZE
MEMBER_SIZE = _MEMBER_SIZE
_PROTOCOLS = {"tcp": 1, "udp": 2, "": 3}
_NAMES = {number: name for name, number in _PROTOCOLS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a context's configuration takes from its namespace: the ephemeral ports, and whether ``::`` is V6ONLY."""

    low: int
    high: int
    v6only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An entry of the books: ``sockets`` of the context ``number`` have the port of that address."""

    address: str
    port: int
    protocol: int
    number: int
    sockets: int
    wild: int
    primary: str

    @property
    def protocol_name(self) -> str:
        return "tcp" if self.protocol == IPPROTO_TCP else "udp"

    def __str__(self) -> str:
        return f"{self.protocol_name} {Endpoint(address=self.address, port=self.port)}"


def address_bytes(address: str) -> bytes:
    """As the programs have it."""
    ip = ipaddress.ip_address(address)
    return ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed


def address_text(raw: bytes) -> str:
    """The mirror of ``address_bytes``."""
    ip = ipaddress.IPv6Address(raw)
    return str(ip.ipv4_mapped or ip)


def encode_member(ports: Iterable[PortRange], *, loopback: bool) -> bytes:
    """``struct member``: what may be done with an address."""
    ranges = [_RANGE.pack(one.low, one.high - one.low, _PROTOCOLS[one.protocol]) for one in ports]
    ranges = ranges or [_RANGE.pack(0, 65535, 3)]
    return struct.pack("=H", loopback) + b"".join(ranges).ljust(_MEMBER_SIZE - 2, b"\0")


def encode_members(context: Context) -> dict[bytes, bytes]:
    """The map ``members``: by address."""
    found = {address_bytes(one.address): encode_member(one.ports, loopback=False) for one in context.members}
    own = encode_member((), loopback=True)
    return found | {address_bytes(context.loopback4): own, address_bytes(context.loopback6): own}


def encode_config(context: Context, surroundings: Surroundings, *, restoring: bool = False) -> bytes:
    """``struct config``: the set in its order, each family's loopback address after its last."""
    four = [one for one in context.members if one.ip.version == 4]
    six = [one for one in context.members if one.ip.version == 6]
    entries = [
        *(_entry(one, WILD4) for one in four),
        _entry(Member(address=context.loopback4, prefix=32), WILD4, loopback=True),
        *(_entry(one, WILD6) for one in six),
        _entry(Member(address=context.loopback6, prefix=128), WILD6, loopback=True),
    ]
    flags = (V6ONLY_DEFAULT if surroundings.v6only else 0) | (RESTORING if restoring else 0)
    return _HEAD.pack(
        context.netns,
        context.number,
        flags,
        surroundings.low,
        surroundings.high - surroundings.low,
        len(entries),
        bool(six),
        _word(four[0].address) if four else 0,
        _word(context.loopback4),
        address_bytes(six[0].address) if six else bytes(16),
        address_bytes(context.loopback6),
    ) + b"".join(entries).ljust(MOST * _ENTRY_SIZE, b"\0")


def decode_config(raw: bytes, name: str, cgroup: str) -> Context:
    """The mirror of ``encode_config``."""
    netns, number, _, _, _, count, _, _, loopback4, _, loopback6 = _HEAD.unpack_from(raw)
    members = []
    for index in range(min(count, MOST)):
        place = _HEAD.size + index * _ENTRY_SIZE
        address, mask, kind = _ENTRY.unpack_from(raw, place)
        member = raw[place + _ENTRY.size : place + _ENTRY_SIZE]
        if not struct.unpack_from("=H", member)[0]:
            prefix = int.from_bytes(mask, "big").bit_count() - (96 if kind == WILD4 else 0)
            members.append(Member(address=address_text(address), prefix=prefix, ports=tuple(_ranges(member))))
    return Context(
        name=name,
        cgroup=cgroup,
        number=number,
        netns=netns,
        members=tuple(members),
        loopback4=str(ipaddress.IPv4Address(struct.pack("=I", loopback4))),
        loopback6=address_text(loopback6),
    )


def decode_claim(key: bytes, value: bytes) -> Claim:
    """One entry of the books."""
    address, port, protocol, _ = KEY.unpack(key)
    count, number, flags, primary = CLAIM.unpack(value)
    return Claim(
        address=address_text(address),
        port=port,
        protocol=protocol,
        number=number,
        sockets=count & 0xFFFF,
        wild=flags & (WILD4 | WILD6),
        primary=address_text(primary),
    )


def _ranges(member: bytes) -> Iterator[PortRange]:
    for low, span, protocols in _RANGE.iter_unpack(member[2:]):
        if protocols and (low, span, protocols) != (0, 65535, 3):
            yield PortRange(low=low, high=low + span, protocol=_NAMES[protocols])


def _entry(member: Member, kind: int, *, loopback: bool = False) -> bytes:
    ip = member.ip
    prefix = ip.max_prefixlen if member.prefix is None else member.prefix
    bits = prefix + (96 if ip.version == 4 else 0)
    mask = ((1 << 128) - (1 << (128 - bits))).to_bytes(16, "big")
    return _ENTRY.pack(address_bytes(member.address), mask, kind) + encode_member(member.ports, loopback=loopback)


def _word(address: str) -> int:
    (word,) = struct.unpack("=I", ipaddress.IPv4Address(address).packed)
    return int(word)
