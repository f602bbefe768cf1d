"""What receives packets for the tunnels of a namespace: ports of UDP behind which there are others (FOU and GUE)."""

from __future__ import annotations

from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FouPort:
    """Packets to a UDP ``port`` go on without that header: as of ``protocol``, or (0) as their GUE header says.

    ``local`` and ``peer`` are addresses, and ``ifname`` a link, of which alone they are taken; empty for all.
    """

    port: int
    family: int = 4
    protocol: int = 0
    local: str = ""
    peer: str = ""
    peer_port: int = 0
    ifname: str = ""
    remcsum_nopartial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IsatapRouter:
    """A router that the ISATAP link ``ifname`` knows; ``default`` is one that may announce a way to everywhere."""

    ifname: str
    address: str
    default: bool = False
