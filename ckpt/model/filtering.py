"""What filters and balances beside nftables: the tables of iptables-legacy, ipset's sets, IPVS, and named objects.

The first three are kept in the language of their own tools, whose text is stable, and which are also what restores
them: lines as ``iptables-legacy-save -c``, ``ipset save`` and ``ipvsadm -S -n`` print them, with counters, times and
thresholds.
"""

from __future__ import annotations

from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyTable:
    """One table of iptables-legacy: ``family`` is 4 or 6, ``text`` from its ``*name`` to its COMMIT."""

    family: int
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IpSet:
    """One set: what follows ``create NAME`` and, for each member, ``add NAME``.

    ``index`` is the kernel's number of it, by which rules of iptables-nft name it; -1 where the kernel does not tell.
    """

    name: str
    definition: str
    members: tuple[str, ...] = ()
    index: int = -1

    @property
    def of_sets(self) -> bool:
        """Whether its members are sets."""
        return self.definition.startswith("list:set")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedObject:
    """A counter of nfacct (``kind`` ``nfacct``) or a timeout policy of conntrack (``timeout``), as netlink has it."""

    kind: str
    name: str
    attributes: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtering:
    """All of it, in a namespace."""

    legacy_tables: tuple[LegacyTable, ...] = ()
    ip_sets: tuple[IpSet, ...] = ()
    virtual_services: tuple[str, ...] = ()
    named_objects: tuple[NamedObject, ...] = ()


NO_FILTERING = Filtering()
