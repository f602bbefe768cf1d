"""WireGuard of a namespace as records: what ``wg showconf`` says of each interface, and where its packets travel.

A private or preshared key is a secret, so an image that holds one is as secret as the tunnel. Public keys are text in
base 64, as ``wg`` writes them. Sessions, counters and the times of handshakes do not travel: after a restore the two
ends agree on new session keys by themselves.
"""

from __future__ import annotations

import enum

from ckpt.model.secret import Secret
from ckpt.model.socket import Endpoint
from ckpt.records import dataclass


class Carrier(enum.StrEnum):
    """The namespace that an interface sends its encrypted packets in: that in which it was made, wherever it is now.

    The kernel names it nowhere, but there the interface has a UDP socket while it is up. The namespace is its own or
    the caller's, or neither has the socket (``elsewhere``), or it does not show, as while it is down (``unknown``).
    One of the group's other namespaces is named by the link's counterpart.
    """

    OWN = "own"
    CALLER = "caller"
    ELSEWHERE = "elsewhere"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class WireguardPeer:
    """One peer; ``keepalive`` is in seconds, 0 for none. The allowed IPs are prefixes in the order of their coming."""

    public_key: str
    preshared_key: Secret | None = None
    endpoint: Endpoint | None = None
    keepalive: int = 0
    allowed_ips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WireguardDevice:
    """One interface; ``fwmark`` 0 is none, and ``listen_port`` 0 lets the kernel choose when it comes up."""

    ifname: str
    private_key: Secret | None = None
    listen_port: int = 0
    fwmark: int = 0
    peers: tuple[WireguardPeer, ...] = ()
    carrier: Carrier = Carrier.OWN
