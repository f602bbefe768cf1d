"""An IP-set context: an ordered set of addresses that a group is confined to, with their ports, and what limits it.

An address is written ``10.0.0.5``, ``10.0.0.5/24`` (the prefix says which peers it is the source for), or with ports,
``10.0.0.5:80-89/tcp``; one of IPv6 that has ports stands in brackets, ``[fd00::5]/64:53/udp``. Given again with other
ports it is the same member of the set, with both. Nothing here looks at the host.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import replace

from ckpt.errors import UsageError
from ckpt.records import dataclass

MOST_ADDRESSES = 16
MOST_RANGES = 4
"""What the programs in the kernel have room for."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MEMBER = re.compile(
    r"(?P<six>[0-9a-fA-F]*:[0-9a-fA-F:.]*)(?:/(?P<bits>\d{1,3}))?"
    r"|(?:\[(?P<bracketed>[0-9a-fA-F:.]+)\]|(?P<four>[0-9.]+))(?:/(?P<prefix>\d{1,3}))?"
    r"(?::(?P<low>\d{1,5})(?:-(?P<high>\d{1,5}))?(?:/(?P<protocol>[a-z]+))?)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRange:
    """Ports ``low`` to ``high``; ``protocol`` is ``tcp``, ``udp``, or empty for both."""

    low: int
    high: int
    protocol: str = ""

    def __str__(self) -> str:
        ports = str(self.low) if self.low == self.high else f"{self.low}-{self.high}"
        return f"{ports}/{self.protocol}" if self.protocol else ports


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An address of a set. ``prefix`` is None where the host's own is to be taken; no ``ports`` are all ports."""

    address: str
    prefix: int | None = None
    ports: tuple[PortRange, ...] = ()

    @property
    def ip(self) -> Address:
        return ipaddress.ip_address(self.address)

    def __str__(self) -> str:
        shown = self.address if self.prefix is None else f"{self.address}/{self.prefix}"
        if not self.ports:
            return shown
        if self.ip.version == 6:
            shown = shown.replace(self.address, f"[{self.address}]")
        return " ".join(f"{shown}:{ports}" for ports in self.ports)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """bsdjail's limits: tasks at once, the best nice value, bytes of data, bytes of locked memory; None is none."""

    tasks: int | None = None
    nice: int | None = None
    data: int | None = None
    memlock: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A context as it is. ``number`` tells it from others of its namespace, ``cgroup`` is its directory.

    ``loopback4`` and ``loopback6`` are what 127.0.0.1 and ::1 are inside; ``netns`` is the cookie of the namespace.
    """

    name: str
    cgroup: str
    number: int
    netns: int
    members: tuple[Member, ...]
    loopback4: str
    loopback6: str


def parse_member(text: str) -> Member:
    """The member that ``text`` is; UsageError (``address-invalid``) when it is none."""
    found = _MEMBER.fullmatch(text)
    if found is None:
        raise _invalid(text, "it is not an address, with ports or without")
    try:
        address = ipaddress.ip_address(found["six"] or found["bracketed"] or found["four"])
    except ValueError as error:
        raise _invalid(text, str(error)) from error
    if found["bracketed"] and address.version == 4:
        raise _invalid(text, "only IPv6 addresses stand in brackets")
    if address.is_multicast or address.is_unspecified or address.is_loopback or address.is_link_local:
        raise _invalid(text, "a set holds unicast addresses; 127.0.0.1 and ::1 belong to every context")
    if address.version == 6 and address.ipv4_mapped is not None:
        raise _invalid(text, f"write it as {address.ipv4_mapped}")
    bits = found["prefix"] or found["bits"]
    prefix = None if bits is None else int(bits)
    if prefix is not None and prefix > address.max_prefixlen:
        raise _invalid(text, f"no prefix has {prefix} bits")
    return Member(address=str(address), prefix=prefix, ports=_ports(text, found))


def _ports(text: str, found: re.Match[str]) -> tuple[PortRange, ...]:
    if found["low"] is None:
        return ()
    low = int(found["low"])
    high = low if found["high"] is None else int(found["high"])
    if not 1 <= low <= high <= 65535:
        raise _invalid(text, "ports are 1 to 65535, the lower one first")
    protocol = found["protocol"] or ""
    if protocol not in ("", "tcp", "udp"):
        raise _invalid(text, f"ports are of tcp or udp, not of {protocol}")
    return (PortRange(low=low, high=high, protocol=protocol),)


def parse_set(texts: Iterable[str]) -> tuple[Member, ...]:
    """The set of ``texts``, in their order; UsageError when they do not fit together."""
    members: dict[str, Member] = {}
    for text in texts:
        member = parse_member(text)
        before = members.get(member.address)
        members[member.address] = member if before is None else merged(before, member)
    if len(members) > MOST_ADDRESSES:
        raise UsageError(
            f"a set has {MOST_ADDRESSES} addresses at most", code="set-too-large", details=f"{len(members)} were given"
        )
    return tuple(members.values())


def merged(one: Member, other: Member) -> Member:
    """The ports of both; UsageError when one of them has all ports, or their prefixes differ."""
    if not one.ports or not other.ports or set(one.ports) & set(other.ports):
        raise UsageError(f"the address {one.address} is given twice", code="address-doubled")
    if None not in (one.prefix, other.prefix) and one.prefix != other.prefix:
        raise UsageError(f"the address {one.address} is given with two prefixes", code="address-doubled")
    ports = (*one.ports, *other.ports)
    if len(ports) > MOST_RANGES:
        raise UsageError(f"the address {one.address} has more than {MOST_RANGES} ranges of ports", code="set-too-large")
    return replace(one, prefix=one.prefix if other.prefix is None else other.prefix, ports=ports)


def _invalid(text: str, why: str) -> UsageError:
    return UsageError(
        f"{text!r} is not an address of a set",
        code="address-invalid",
        details=why,
        hint="like 10.0.0.5/24, fd00::5/64, 10.0.0.5:80-89/tcp or [fd00::5]:53/udp",
    )
