"""Who has an address on a segment, and telling a segment that an address has moved.

``probe`` asks as RFC 5227 (ARP) and RFC 4862 (neighbour solicitation from ``::``) do, so that nobody learns anything
from the question. ``announce`` says once, for every address of a namespace, where it now is: switches and bridges
learn the port, neighbours the MAC. Both use packet sockets on one link and no address of it, so they work before an
address is there and under the network lock. Nothing waits longer than it is told to.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Iterator

from ckpt.errors import NetworkError, NotFoundError
from ckpt.kernel.netlink import ip_bytes, mac_bytes, mac_text
from ckpt.kernel.netns import entered
from ckpt.model.network import Address, Link, Network

_ETH_P_ARP = 0x0806
_ETH_P_IPV6 = 0x86DD
_ARPHRD_ETHER = 1
_ARP_REQUEST = 1
_BROADCAST = b"\xff" * 6
_NOBODY = bytes(6)
_ALL_NODES = ip_bytes("ff02::1")

_ICMPV6 = 58
_SOLICITATION, _ADVERTISEMENT = 135, 136
_OVERRIDE = 0x20000000
_TARGET_LINK_ADDRESS = 2

_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_MULTICAST = 0

_PROBES = 3
_ARP = struct.Struct(">HHBBH6s4s6s4s")
_ETHERNET = struct.Struct(">6s6sH")


def announce(netns: int, network: Network) -> None:
    """Send one gratuitous ARP or unsolicited advertisement for every address on a link that is up and like Ethernet.

    A link that has gone down or away since is passed over: it has nobody to tell.
    """
    links = {link.ifname: link for link in network.links if _speaks(link)}
    by_link: dict[str, list[Address]] = {}
    for address in network.addresses:
        if address.ifname in links:
            by_link.setdefault(address.ifname, []).append(address)
    with entered(netns):
        for ifname, addresses in by_link.items():
            with contextlib.suppress(OSError), _packet_socket(ifname, 0) as link:
                mac = link.getsockname()[4]
                for address in addresses:
                    link.send(_announcement(mac, ip_bytes(address.address.partition("/")[0])))


def _speaks(link: Link) -> bool:
    ethernet = link.mac is None or (len(link.mac) == 17 and any(mac_bytes(link.mac)))
    return ethernet and link.up and link.kind != "loopback" and "noarp" not in link.flags


def probe_all(netns: int | None, ifname: str, address: str, timeout: float) -> tuple[str, ...]:
    """The MACs of all who answer for ``address`` within ``timeout`` seconds; otherwise as ``probe``."""
    return tuple(_probe(netns, ifname, address, timeout, alone=False))


def probe(netns: int | None, ifname: str, address: str, timeout: float) -> str | None:
    """The MAC of whoever answers for ``address`` on ``ifname`` within ``timeout`` seconds; None when nobody does.

    ``netns`` None is the caller's. Raises NotFoundError (``link-missing``), and NetworkError (``link-down``) when
    nothing can be sent.
    """
    return next(iter(_probe(netns, ifname, address, timeout, alone=True)), None)


def _probe(netns: int | None, ifname: str, address: str, timeout: float, *, alone: bool) -> list[str]:
    wanted = ip_bytes(address)
    protocol = _ETH_P_ARP if len(wanted) == 4 else _ETH_P_IPV6
    try:
        with contextlib.nullcontext() if netns is None else entered(netns), _packet_socket(ifname, protocol) as link:
            mac = link.getsockname()[4]
            if len(mac) != 6:
                return []  # not a link on which anybody could answer
            return _ask(link, _question(mac, wanted), mac, wanted, timeout, alone=alone)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise NotFoundError(f"there is no link {ifname}", code="link-missing", details=error.strerror) from error
        raise NetworkError(
            f"cannot ask on {ifname} for {address}",
            code="link-down" if error.errno == errno.ENETDOWN else "probe-failed",
            details=error.strerror,
            hint=f"is {ifname} up?",
        ) from error


@contextlib.contextmanager
def _packet_socket(ifname: str, protocol: int) -> Iterator[socket.socket]:
    # Bound with the protocol only then, so that no packet of another link is ever queued.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as link:
        link.bind((ifname, protocol))
        if protocol == _ETH_P_IPV6:
            request = struct.pack(
                "=iHH8s",
                socket.if_nametoindex(ifname),
                _PACKET_MR_MULTICAST,
                6,
                _multicast_mac(_ALL_NODES),
            )
            link.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
        yield link


def _ask(link: socket.socket, question: bytes, own: bytes, wanted: bytes, timeout: float, *, alone: bool) -> list[str]:
    """Who answers, in the order of their first answers; ``alone``: the first will do."""
    begin = time.monotonic()
    sent = 0
    found: dict[str, None] = {}
    while (passed := time.monotonic() - begin) < timeout:
        if sent < _PROBES and passed >= sent * timeout / _PROBES:
            link.send(question)
            sent += 1
        due = sent * timeout / _PROBES if sent < _PROBES else timeout
        if select.select([link], [], [], max(due - passed, 0))[0]:
            frame, (_, _, kind, _, _) = link.recvfrom(2048)
            answer = _answer(frame, wanted) if kind != socket.PACKET_OUTGOING else None
            if answer not in (None, own):
                found[mac_text(answer or b"")] = None
                if alone:
                    break
    return list(found)


def _question(mac: bytes, wanted: bytes) -> bytes:
    if len(wanted) == 4:
        return _arp(mac, bytes(4), wanted)
    group = ip_bytes("ff02::1:ff00:0")[:13] + wanted[13:]
    message = struct.pack(">BBHI16s", _SOLICITATION, 0, 0, 0, wanted)
    return _ipv6(mac, bytes(16), group, message)


def _answer(frame: bytes, wanted: bytes) -> bytes | None:
    """The MAC in an answer for ``wanted``, or in another's question for it: both want the address."""
    body = frame[_ETHERNET.size :]
    if len(wanted) == 4:
        if len(body) < _ARP.size:
            return None
        _, _, _, _, _, sender, sender_address, _, target_address = _ARP.unpack_from(body)
        asks_too = sender_address == bytes(4) and target_address == wanted
        return sender if sender_address == wanted or asks_too else None
    if len(body) < 64 or body[6] != _ICMPV6 or body[48:64] != wanted:
        return None
    asks_too = body[40] == _SOLICITATION and body[8:24] == bytes(16)
    return frame[6:12] if body[40] == _ADVERTISEMENT or asks_too else None


def _announcement(mac: bytes, address: bytes) -> bytes:
    if len(address) == 4:
        return _arp(mac, address, address)
    message = struct.pack(">BBHI16sBB6s", _ADVERTISEMENT, 0, 0, _OVERRIDE, address, _TARGET_LINK_ADDRESS, 1, mac)
    return _ipv6(mac, address, _ALL_NODES, message)


def _arp(mac: bytes, sender: bytes, target: bytes) -> bytes:
    body = _ARP.pack(_ARPHRD_ETHER, 0x0800, 6, 4, _ARP_REQUEST, mac, sender, _NOBODY, target)
    return _ETHERNET.pack(_BROADCAST, mac, _ETH_P_ARP) + body


def _ipv6(mac: bytes, source: bytes, destination: bytes, message: bytes) -> bytes:
    pseudo = source + destination + struct.pack(">IHBB", len(message), 0, 0, _ICMPV6)
    message = message[:2] + struct.pack(">H", _checksum(pseudo + message)) + message[4:]
    # The hop limit of 255 proves to the receiver that no router has passed it on.
    header = struct.pack(">IHBB", 0x60000000, len(message), _ICMPV6, 255) + source + destination
    return _ETHERNET.pack(_multicast_mac(destination), mac, _ETH_P_IPV6) + header + message


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _multicast_mac(address: bytes) -> bytes:
    return b"\x33\x33" + address[12:]
