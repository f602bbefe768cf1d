"""IPsec of a namespace as records: the kernel's xfrm states and policies.

Keys are among them, so an image that holds states is as secret as the traffic they protect. Addresses are text,
selectors' with their prefix length. What a state or policy has beside its fixed part is kept as the kernel's bytes, by
the attribute's name (``encap``, ``mark``, ``replay_esn_val`` …), algorithms with their keys apart from the rest.
Limits are those of the kernel, in bytes, packets and seconds; 2^64-1 is no limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from ckpt.model.secret import Secret
from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class XfrmKey(Secret):
    """An algorithm and its key as the kernel's bytes. As text it shows the name and a digest, never the key."""

    def __str__(self) -> str:
        algorithm = self.value[:64].partition(b"\0")[0].decode("ascii", "replace")
        # Without arguments it would look for the class that slots have replaced.
        return f"{algorithm} ({Secret.__str__(self)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class XfrmSelector:
    """Which packets are meant; ``family`` is 4, 6 or 0 for any, and then there are no addresses."""

    family: int = 0
    source: str = ""
    destination: str = ""
    source_port: int = 0
    source_port_mask: int = 0
    destination_port: int = 0
    destination_port_mask: int = 0
    protocol: int = 0
    ifname: str = ""
    user: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class XfrmState:
    """One security association. ``used`` are the bytes, packets and times (of the wall clock) that count to limits."""

    family: int
    source: str
    destination: str
    spi: int
    protocol: int
    mode: int
    reqid: int = 0
    sequence: int = 0
    replay_window: int = 0
    flags: int = 0
    selector: XfrmSelector = XfrmSelector()
    limits: Mapping[str, int] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, XfrmKey] = field(default_factory=dict)
    attributes: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class XfrmPolicy:
    """One policy; ``direction`` is 0 in, 1 out, 2 forward."""

    direction: int
    selector: XfrmSelector = XfrmSelector()
    action: int = 0
    priority: int = 0
    index: int = 0
    flags: int = 0
    share: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipsec:
    """All of it, each in the order in which it was made.

    ``blocked`` are the directions (``in``, ``fwd``, ``out``) in which what no policy names is dropped; ``thresholds``
    are the prefix lengths from which policies are hashed, by family (``4`` and ``6``, as ``local/remote``).
    """

    states: tuple[XfrmState, ...] = ()
    policies: tuple[XfrmPolicy, ...] = ()
    blocked: tuple[str, ...] = ()
    thresholds: Mapping[str, str] = field(default_factory=dict)


NO_IPSEC = Ipsec()
