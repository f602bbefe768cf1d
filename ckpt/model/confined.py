"""The sockets of a context as its programs see them, and as they are on the host. Pure.

Inside, a socket is bound to `*` or to 127.0.0.1; on the host it answers on each address of the set that has its port,
and 127.0.0.1 is an address of the context's own. Images have the first; locks, and whoever looks for what is in the
way, need the second.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ckpt.model.checkpoint import ContextRecord
from ckpt.model.context import Member
from ckpt.model.socket import IPPROTO_TCP, IPPROTO_UDP, Endpoint, Socket

_MAPPED_ANY = ipaddress.IPv6Address("::ffff:0.0.0.0")
_WILD4 = 1
"""Of a booking: on every IPv4 address, and no other."""


def as_on_host(record: ContextRecord, sockets: Iterable[Socket]) -> tuple[Socket, ...]:
    """``sockets`` with one for each address that one on `*` answers on; those that are not of IP come as they are."""
    return tuple(found for one in sockets for found in _on_host(record, one))


def as_bound(record: ContextRecord, one: Socket) -> Socket:
    """A socket as it was bound: connected, one of UDP is called by an address where the books may have `*`."""
    if one.protocol != IPPROTO_UDP or one.remote is None or one.local is None:
        return one
    address = str(_plain(one.local.address))
    wild = {
        booking.wild
        for booking in record.bookings
        if (booking.protocol, booking.port, booking.address) == (IPPROTO_UDP, one.local.port, address)
        and booking.primary == address
    }
    if not wild or wild == {0}:
        return one
    names = {"inet": "0.0.0.0", "inet6": "::ffff:0.0.0.0" if wild == {_WILD4} else "::"}
    return replace(one, local=replace(one.local, address=names[one.family]))


def claiming(record: ContextRecord, sockets: Iterable[Socket]) -> tuple[Socket, ...]:
    """``sockets`` that have ports in the books, as they are on the host; connections of TCP are told apart without."""
    waiting = (one for one in sockets if one.is_inet and (one.remote is None or one.protocol == IPPROTO_UDP))
    return tuple(
        one
        for one in as_on_host(record, (as_bound(record, one) for one in waiting))
        if one.local is not None and one.local.port
    )


def outwards(record: ContextRecord, address: str) -> str:
    """An address of the host as the group knows it."""
    ip = _plain(address)
    if str(ip) == record.loopback6:
        return "::1"
    if ip.version == 4 and ip in _loopback4(record):
        return _like(address, ipaddress.IPv4Address(int(ipaddress.IPv4Address("127.0.0.0")) + int(ip) % 256))
    return address


def inwards(record: ContextRecord, address: str) -> str:
    """The mirror of ``outwards``."""
    ip = _plain(address)
    if str(ip) == "::1":
        return record.loopback6
    if ip.version == 4 and ip in ipaddress.ip_network("127.0.0.0/24"):
        return _like(address, _loopback4(record)[int(ip) % 256])
    return address


def members_with(record: ContextRecord, port: int, protocol: int) -> Iterator[Member]:
    """The addresses of the set on which a socket on `*` has ``port``."""
    name = "tcp" if protocol == IPPROTO_TCP else "udp"
    for one in record.members:
        if not one.ports or any(item.low <= port <= item.high and item.protocol in ("", name) for item in one.ports):
            yield one


def _on_host(record: ContextRecord, one: Socket) -> Iterator[Socket]:
    if not one.is_inet or one.local is None:
        yield one
        return
    remote = one.remote and replace(one.remote, address=inwards(record, one.remote.address))
    families = _families(one)
    if not families:
        yield replace(one, local=replace(one.local, address=inwards(record, one.local.address)), remote=remote)
        return
    for member in members_with(record, one.local.port, one.protocol):
        if member.ip.version in families:
            address = f"::ffff:{member.address}" if one.family == "inet6" and member.ip.version == 4 else member.address
            yield replace(one, local=Endpoint(address=address, port=one.local.port), remote=remote)


def _families(one: Socket) -> frozenset[int]:
    """The versions of IP that a socket on `*` answers on; none for one that is bound to an address."""
    ip = ipaddress.ip_address(one.local.address if one.local else "::")
    if ip == _MAPPED_ANY or (ip.version == 4 and ip.is_unspecified):
        return frozenset({4})
    if ip.is_unspecified:
        return frozenset({6}) if one.options.v6only else frozenset({4, 6})
    return frozenset()


def _loopback4(record: ContextRecord) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(f"{record.loopback4}/24", strict=False)


def _plain(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(text.partition("%")[0])
    inner = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return inner or ip


def _like(text: str, ip: ipaddress.IPv4Address) -> str:
    return f"::ffff:{ip}" if ":" in text else str(ip)
