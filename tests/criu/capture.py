"""Every packet that passes the host's end of a link, and which of them would betray to a peer that a group is away.

A packet socket sees all links of the lab, those too that a restore makes later. What matters is decoded: the
addresses, TCP's ports and flags, ICMP's type. A betrayal is a RST or a FIN, or an ICMP error, to or from a group's
address: there is no reason for one as long as nobody closes a connection. Loopback is left out, where a peer's own
kernel may talk to itself. What announces an address is kept apart: a gratuitous ARP, an unsolicited advertisement,
each with the link that it came in by.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_STATISTICS = 6
FIN, SYN, RST = 0x01, 0x02, 0x04

# Destination unreachable, source quench, redirect, time exceeded, parameter problem.
_ICMP_ERRORS = {3, 4, 5, 11, 12}
# Below 128 all types of ICMPv6 are errors; 137 is a redirect.
_ICMPV6_REDIRECT = 137


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. ``flags`` are TCP's. ``error`` is the type of an ICMP error; the addresses are then those within.

    ``leaves`` says that it was seen on its way out of the link, as what a bridge floods is.
    """

    ifname: str
    source: str
    destination: str
    ports: tuple[int, int] = (0, 0)
    flags: int = 0
    error: int | None = None
    leaves: bool = False

    @property
    def betrays(self) -> bool:
        """Whether a peer would take the connection, or the group, for gone."""
        return self.error is not None or bool(self.flags & (FIN | RST))


@dataclass(slots=True)
class Capture:
    """The packets of a block."""

    packets: list[Packet] = field(default_factory=list)
    announced: list[tuple[str, str]] = field(default_factory=list)

    def betrayals(self, *addresses: str) -> list[Packet]:
        """Those that betray a group with these addresses."""
        return [one for one in self.packets if one.betrays and {one.source, one.destination} & set(addresses)]

    def seen_from(self, address: str) -> int:
        """How many came from ``address``."""
        return sum(one.source == address for one in self.packets)

    def seen_to(self, address: str) -> int:
        """How many went to ``address``."""
        return sum(one.destination == address for one in self.packets)


@contextlib.contextmanager
def capturing() -> Iterator[Capture]:
    """Capture while the block runs; complete after it."""
    capture = Capture()
    done = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as tap:
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)

        def read() -> None:
            while select.select([tap], [], [], 0 if done.is_set() else 0.1)[0] or not done.is_set():
                with contextlib.suppress(BlockingIOError):
                    frame, link = tap.recvfrom(1 << 16, socket.MSG_DONTWAIT)
                    packet = decode(frame, link[0])
                    if link[2] != socket.PACKET_OUTGOING:
                        capture.announced += [(link[0], address) for address in announced(frame)]
                    if packet is not None and packet.ifname != "lo":
                        capture.packets.append(replace(packet, leaves=link[2] == socket.PACKET_OUTGOING))

        reader = threading.Thread(target=read, name="capture")
        reader.start()
        try:
            yield capture
        finally:
            done.set()
            reader.join()
            lost = struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        assert lost == 0, f"the capture lost {lost} packets"


def decode(frame: bytes, ifname: str) -> Packet | None:
    """A frame as far as it matters; None when it is not IP."""
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x00":
        return _decode_v4(packet, ifname)
    if kind == b"\x86\xdd":
        return _decode_v6(packet, ifname)
    return None


def announced(frame: bytes) -> list[str]:
    """The address that a frame announces to all, if it does."""
    # Sender and target are one: nobody is asked, everybody is told (RFC 5227, section 3).
    if frame[12:14] == b"\x08\x06" and frame[28:32] == frame[38:42]:
        return [str(ipaddress.IPv4Address(frame[28:32]))]
    # An advertisement that answers nobody: the flag S is not set (RFC 4861, section 4.4).
    if frame[12:14] == b"\x86\xdd" and frame[20] == socket.IPPROTO_ICMPV6 and frame[54] == 136 and not frame[58] & 0x40:
        return [str(ipaddress.IPv6Address(frame[62:78]))]
    return []


def _decode_v4(packet: bytes, ifname: str) -> Packet:
    source, destination = (str(ipaddress.IPv4Address(packet[start : start + 4])) for start in (12, 16))
    payload = packet[(packet[0] & 15) * 4 :]
    if packet[9] == socket.IPPROTO_TCP:
        return _tcp(ifname, source, destination, payload)
    if packet[9] == socket.IPPROTO_ICMP and payload[0] in _ICMP_ERRORS:
        source, destination = (str(ipaddress.IPv4Address(payload[start : start + 4])) for start in (20, 24))
        return Packet(ifname, source, destination, error=payload[0])
    return Packet(ifname, source, destination)


def _decode_v6(packet: bytes, ifname: str) -> Packet:
    source, destination = (str(ipaddress.IPv6Address(packet[start : start + 16])) for start in (8, 24))
    payload = packet[40:]
    if packet[6] == socket.IPPROTO_TCP:
        return _tcp(ifname, source, destination, payload)
    if packet[6] == socket.IPPROTO_ICMPV6 and (payload[0] < 128 or payload[0] == _ICMPV6_REDIRECT):
        source, destination = (str(ipaddress.IPv6Address(payload[start : start + 16])) for start in (16, 32))
        return Packet(ifname, source, destination, error=payload[0])
    return Packet(ifname, source, destination)


def _tcp(ifname: str, source: str, destination: str, payload: bytes) -> Packet:
    source_port, destination_port = struct.unpack_from(">HH", payload)
    return Packet(ifname, source, destination, (source_port, destination_port), payload[13])
