"""Traffic control of a namespace as records: what ``tc`` sets on its links.

Handles are text as ``tc`` writes them (``1:10``, ``root``, ``ingress``). What a kind keeps (TCA_OPTIONS) stays the
kernel's own bytes: there are dozens of kinds, each with its own nested attributes, and nearly all take back what they
gave. ``kernel/tc_kinds`` knows those that do not. The bytes hold no counter, no time and no reference count; a number
of a link inside them holds, because links keep their numbers.

The disciplines that the kernel attaches by itself have no handle and are no records: they come with their links.
"""

from __future__ import annotations

from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Qdisc:
    """A queueing discipline that somebody attached. Blocks are those of filters that several links share, 0 none.

    ``size_table`` is the tc_sizespec of one that counts other lengths than the packets' own (TCA_STAB_BASE).
    """

    ifname: str
    kind: str
    handle: str
    parent: str
    options: bytes = b""
    ingress_block: int = 0
    egress_block: int = 0
    size_table: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficClass:
    """A class that somebody made inside a discipline; ``leaf`` disciplines name it as their parent."""

    ifname: str
    kind: str
    handle: str
    parent: str
    options: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain of filters that is there without any, or that has a template (``kind`` and ``options``)."""

    parent: str
    number: int
    ifname: str = ""
    block: int = 0
    kind: str = ""
    options: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """One filter of a link's discipline or class ``parent``, or of a shared ``block``, with its actions.

    ``handle`` is the kind's own number, ``protocol`` an Ethernet type.
    """

    kind: str
    priority: int
    protocol: int
    handle: int
    parent: str = ""
    ifname: str = ""
    block: int = 0
    chain: int = 0
    options: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An action that was made for itself, and that filters may use; ``attributes`` are TCA_ACT_*."""

    kind: str
    index: int
    attributes: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """All of it, each in the order in which it can be made again."""

    actions: tuple[Action, ...] = ()
    qdiscs: tuple[Qdisc, ...] = ()
    classes: tuple[TrafficClass, ...] = ()
    chains: tuple[Chain, ...] = ()
    filters: tuple[Filter, ...] = ()


NO_TRAFFIC = Traffic()
