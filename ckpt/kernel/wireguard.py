"""WireGuard: the keys and peers of interfaces, read and set by generic netlink.

An interface may have more peers than a message holds, and a peer more allowed IPs: the kernel then lists a peer again
in the next message, with its key and the rest of them, and takes it so as well. Public keys and allowed IPs are kept
in their order. An interface sends in the namespace in which it was made; which one that is shows only in the UDP socket
that it has there while it is up. It is known by its port and by a send buffer that nobody else can ask for.

An interface is set up before it comes up, so that it never listens on a port that is not its own.
"""

from __future__ import annotations

import base64
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt.errors import NetworkError
from ckpt.kernel import netlink
from ckpt.kernel.genetlink import GenericNetlink
from ckpt.kernel.netlink import Attributes, KernelRefusal, Netlink, attribute, nested, number, pairs, parse, u16, u32
from ckpt.model.network import Link, Unread
from ckpt.model.secret import Secret
from ckpt.model.socket import Endpoint
from ckpt.model.wireguard import Carrier, WireguardDevice, WireguardPeer

KIND = "wireguard"

_GET_DEVICE, _SET_DEVICE = 0, 1
_IFINDEX, _PRIVATE_KEY, _FLAGS, _LISTEN_PORT, _FWMARK, _PEERS = 1, 3, 5, 6, 7, 8
_DEVICE_KNOWN = frozenset(range(1, 9))
_REPLACE_PEERS = 1
_PUBLIC_KEY, _PRESHARED_KEY, _PEER_FLAGS, _ENDPOINT, _KEEPALIVE, _ALLOWED_IPS = 1, 2, 3, 4, 5, 9
_PEER_KNOWN = frozenset(range(11))  # 0 is padding
_REPLACE_ALLOWED_IPS = 2
_ALLOWED_FAMILY, _ALLOWED_ADDRESS, _ALLOWED_LENGTH = 1, 2, 3

_IPV4 = struct.Struct("=H2s4s8x")
_IPV6 = struct.Struct("=H2s4s16sI")
_NO_KEY = bytes(32)

# All peers of a message are one attribute, which holds 64 KiB at most. An allowed IP takes up to 44 bytes of it, and a
# peer beside these no more than four of them do.
_ALLOWED_AT_ONCE = 1000
_ROOM_OF_PEER = 4

_SOCK_DIAG, _BY_FAMILY = 4, 20
_DIAG_REQUEST = struct.Struct("=BBBxI48x")
_DIAG_PORT = struct.Struct("!4xH")
_DIAG_SIZE = 72
_MEMORY, _MEMORY_SEND_BUFFER = 7, 3
# set_sock_opts (drivers/net/wireguard/socket.c); SO_SNDBUFFORCE gives INT_MAX - 1 at most.
_SEND_BUFFER = 2**31 - 1


def read(netns: int, links: Iterable[Link]) -> tuple[tuple[WireguardDevice, ...], tuple[Unread, ...]]:
    """Of the ``links`` of ``netns`` those that are WireGuard's, and what their records cannot hold."""
    found = [link for link in links if link.kind == KIND]
    if not found:
        return (), ()
    unread: list[Unread] = []
    with GenericNetlink(KIND, netns) as connection:
        devices = []
        for link in found:
            messages = connection.dump(_GET_DEVICE, attribute(_IFINDEX, u32(link.ifindex)))
            devices.append(decode(link.ifname, messages, unread))
    up = {link.ifname for link in found if link.up}
    return tuple(with_carriers(devices, up, ports(netns), ports(None))), tuple(unread)


def apply(netns: int, devices: Iterable[WireguardDevice], indices: Mapping[str, int]) -> None:
    """Set the interfaces up, which are there and down. Raises NetworkError that names the one that was refused."""
    with GenericNetlink(KIND, netns) as connection:
        for device in devices:
            try:
                for message in encode(device, indices[device.ifname]):
                    connection.request(_SET_DEVICE, message)
            except KernelRefusal as error:
                raise NetworkError(
                    f"cannot set up the WireGuard interface {device.ifname}",
                    code="wireguard-refused",
                    details=error.strerror,
                ) from error


def with_carriers(
    devices: Iterable[WireguardDevice], up: set[str], own: frozenset[int] | None, callers: frozenset[int] | None
) -> Iterator[WireguardDevice]:
    """``devices``, with the namespace that each sends in; of two with one port it cannot be told whose socket it is."""
    devices = tuple(devices)
    ports = Counter(device.listen_port for device in devices if device.ifname in up)
    for device in devices:
        if device.ifname not in up or own is None or callers is None:
            carrier = Carrier.UNKNOWN
        elif ports[device.listen_port] > 1:
            carrier = Carrier.ELSEWHERE
        elif device.listen_port in own:
            carrier = Carrier.OWN
        else:
            carrier = Carrier.CALLER if device.listen_port in callers else Carrier.ELSEWHERE
        yield replace(device, carrier=carrier)


def ports(netns: int | None) -> frozenset[int] | None:
    """The ports of WireGuard's sockets in ``netns`` or the caller's namespace; None when the kernel does not tell."""
    request = _DIAG_REQUEST.pack(socket.AF_INET, socket.IPPROTO_UDP, 1 << (_MEMORY - 1), 0xFFFFFFFF)
    try:
        with Netlink(_SOCK_DIAG, netns=netns) as connection:
            found = [body for kind, body in connection.dump(_BY_FAMILY, request) if kind == _BY_FAMILY]
    except KernelRefusal:
        return None
    return frozenset(_DIAG_PORT.unpack_from(body)[0] for body in found if _is_wireguard(body))


def _is_wireguard(body: bytes) -> bool:
    memory = parse(body, _DIAG_SIZE).get(_MEMORY, b"")
    return number(memory[4 * _MEMORY_SEND_BUFFER :][:4]) == _SEND_BUFFER


# ---- between the kernel's attributes and records -------------------------------------------------------------------


def decode(ifname: str, messages: Sequence[Attributes], unread: list[Unread]) -> WireguardDevice:
    """The interface of which the kernel sent ``messages``."""
    first = messages[0]
    peers: list[WireguardPeer] = []
    strange: set[str] = set()
    for message in messages:
        strange |= {str(kind) for kind in message.keys() - _DEVICE_KNOWN}
        for _, data in pairs(message.get(_PEERS, b"")):
            attributes = parse(data)
            strange |= {f"{kind} of a peer" for kind in attributes.keys() - _PEER_KNOWN}
            peer = _decode_peer(attributes)
            if peers and peers[-1].public_key == peer.public_key:
                begun = peers.pop()
                peer = replace(begun, allowed_ips=begun.allowed_ips + peer.allowed_ips)
            peers.append(peer)
    if strange:
        what = f"has the unknown WireGuard attributes {', '.join(sorted(strange))}"
        unread.append(Unread(code="link-attribute", subject=f"link {ifname}", what=what))
    return WireguardDevice(
        ifname=ifname,
        private_key=_secret(first.get(_PRIVATE_KEY, _NO_KEY)),
        listen_port=number(first[_LISTEN_PORT]),
        fwmark=number(first[_FWMARK]),
        peers=tuple(peers),
    )


def _decode_peer(attributes: Attributes) -> WireguardPeer:
    allowed = (parse(data) for _, data in pairs(attributes.get(_ALLOWED_IPS, b"")))
    return WireguardPeer(
        public_key=base64.b64encode(attributes[_PUBLIC_KEY]).decode(),
        preshared_key=_secret(attributes.get(_PRESHARED_KEY, _NO_KEY)),
        endpoint=_decode_endpoint(attributes.get(_ENDPOINT, b"")),
        keepalive=number(attributes.get(_KEEPALIVE, b"")),
        allowed_ips=tuple(
            f"{netlink.ip_text(one[_ALLOWED_ADDRESS])}/{number(one[_ALLOWED_LENGTH])}" for one in allowed
        ),
    )


def _secret(key: bytes) -> Secret | None:
    return Secret(value=key) if any(key) else None


def _decode_endpoint(address: bytes) -> Endpoint | None:
    if len(address) == _IPV4.size:
        _, port, host = _IPV4.unpack(address)
        return Endpoint(address=netlink.ip_text(host), port=number(port, "be"))
    if len(address) == _IPV6.size:
        # Between them is the flow label, which the kernel does not send with.
        _, port, _, host, scope = _IPV6.unpack(address)
        return Endpoint(address=netlink.ip_text(host), port=number(port, "be"), scope=scope)
    return None


def _encode_endpoint(endpoint: Endpoint) -> bytes:
    host, port = netlink.ip_bytes(endpoint.address), endpoint.port.to_bytes(2, "big")
    if len(host) == 4:
        return _IPV4.pack(socket.AF_INET, port, host)
    return _IPV6.pack(socket.AF_INET6, port, bytes(4), host, endpoint.scope)


def encode(device: WireguardDevice, ifindex: int) -> Iterator[bytes]:
    """The messages that make the interface so; the mirror of ``decode``. The first takes away what peers there are."""
    about = attribute(_IFINDEX, u32(ifindex))
    own = [attribute(_FLAGS, u32(_REPLACE_PEERS)), attribute(_FWMARK, u32(device.fwmark))]
    own.append(attribute(_LISTEN_PORT, u16(device.listen_port)))
    own.append(attribute(_PRIVATE_KEY, device.private_key.value if device.private_key else _NO_KEY))
    yield about + b"".join(own)
    for part in _parts(device.peers):
        yield about + nested(_PEERS, *(nested(0, body) for body in part))


def _parts(peers: Iterable[WireguardPeer]) -> Iterator[list[bytes]]:
    """``peers`` as attributes, in parts that a message can hold each."""
    part: list[bytes] = []
    room = _ALLOWED_AT_ONCE
    for peer in peers:
        for body, count in _encode_peer(peer):
            if part and count > room:
                yield part
                part, room = [], _ALLOWED_AT_ONCE
            part.append(body)
            room -= count
    if part:
        yield part


def _encode_peer(peer: WireguardPeer) -> Iterator[tuple[bytes, int]]:
    """One peer, as often as its allowed IPs need it; with each, what it takes of the room in a message."""
    key = attribute(_PUBLIC_KEY, base64.b64decode(peer.public_key))
    own = attribute(_PEER_FLAGS, u32(_REPLACE_ALLOWED_IPS))
    own += attribute(_PRESHARED_KEY, peer.preshared_key.value if peer.preshared_key else _NO_KEY)
    if peer.endpoint is not None:
        own += attribute(_ENDPOINT, _encode_endpoint(peer.endpoint))
    own += attribute(_KEEPALIVE, u16(peer.keepalive))
    for start in range(0, max(1, len(peer.allowed_ips)), _ALLOWED_AT_ONCE):
        allowed = peer.allowed_ips[start : start + _ALLOWED_AT_ONCE]
        listed = nested(_ALLOWED_IPS, *(nested(0, _encode_allowed(prefix)) for prefix in allowed))
        yield key + (own if start == 0 else b"") + listed, len(allowed) + _ROOM_OF_PEER


def _encode_allowed(prefix: str) -> bytes:
    address, _, length = prefix.partition("/")
    host = netlink.ip_bytes(address)
    family = socket.AF_INET if len(host) == 4 else socket.AF_INET6
    return b"".join(
        (
            attribute(_ALLOWED_FAMILY, u16(family)),
            attribute(_ALLOWED_ADDRESS, host),
            attribute(_ALLOWED_LENGTH, netlink.u8(int(length))),
        )
    )
