"""What filters and balances beside nftables, read and loaded as one: ipset's sets, iptables-legacy, IPVS."""

from __future__ import annotations

from ckpt.kernel import ipset, ipvs, xtables
from ckpt.model.filtering import Filtering
from ckpt.model.network import Unread


def read_filtering(netns: int) -> tuple[Filtering, tuple[Unread, ...]]:
    """All of it in ``netns``, and what of it cannot travel."""
    tables, unread_tables = xtables.read_tables(netns)
    sets, unread_sets = ipset.read_sets(netns)
    services, unread_services = ipvs.read_services(netns)
    found = Filtering(legacy_tables=tables, ip_sets=sets, virtual_services=services)
    return found, (*unread_tables, *unread_sets, *unread_services)


def load_filtering(netns: int, wanted: Filtering) -> None:
    """Put all of it in place, what rules name before the rules. Raises NetworkError."""
    ipset.load_sets(netns, wanted.ip_sets)
    xtables.load_tables(netns, wanted.legacy_tables)
    ipvs.load_services(netns, wanted.virtual_services)
