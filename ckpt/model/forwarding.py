"""Next hops that stand for themselves, and label switching: what routes may name, and what routes frames below IP.

Encapsulations are the kernel's own bytes (RTA_ENCAP), which it takes back as it gave them; ``encapsulation`` names
their type (``mpls``, ``ip``, ``ip6``, ``seg6`` …).
"""

from __future__ import annotations

from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMember:
    """One next hop of a group, by its number."""

    id: int
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NexthopObject:
    """A next hop, or a group of them, that routes and forwarding entries name by its number.

    A ``resilient`` group has ``buckets`` and two timers, in hundredths of a second.
    """

    id: int
    family: int = 0
    protocol: int = 0
    ifname: str = ""
    gateway: str = ""
    flags: tuple[str, ...] = ()
    blackhole: bool = False
    fdb: bool = False
    encapsulation: str = ""
    encapsulation_data: bytes = b""
    group: tuple[GroupMember, ...] = ()
    group_type: str = "multipath"
    buckets: int = 0
    idle_timer: int = 0
    unbalanced_timer: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelHop:
    """Where an MPLS packet goes: out of ``ifname`` with ``labels`` on it, to ``via``, an address or a MAC."""

    ifname: str = ""
    via: str = ""
    labels: tuple[int, ...] = ()
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRoute:
    """One route of MPLS: what becomes of a packet with ``label`` on top. ``ttl_propagate`` -1 is the namespace's."""

    label: int
    hops: tuple[LabelHop, ...] = ()
    protocol: int = 4
    type: str = "unicast"
    ttl_propagate: int = -1
