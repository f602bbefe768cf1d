"""What filters and balances beside nftables, read and loaded as one.

ipset's sets, netfilter's named objects, the tables of iptables-legacy, and IPVS.
"""

from __future__ import annotations

from ckpt.kernel import ipset, ipvs, nfnl_objects, xtables
from ckpt.model.filtering import Filtering
from ckpt.model.network import Unread


def read_filtering(netns: int) -> tuple[Filtering, tuple[Unread, ...]]:
    """All of it in ``netns``, and what of it cannot travel."""
    tables, unread_tables = xtables.read_tables(netns)
    sets, unread_sets = ipset.read_sets(netns)
    services, unread_services = ipvs.read_services(netns)
    objects, unread_objects = nfnl_objects.read_objects(netns)
    policies = [one.name for one in objects if one.kind == "timeout"]
    whole, unclear = xtables.with_whole_names(tables, policies)
    found = Filtering(legacy_tables=tuple(whole), ip_sets=sets, virtual_services=services, named_objects=objects)
    return found, (*unread_tables, *unclear, *unread_sets, *unread_services, *unread_objects)


def load_filtering(netns: int, wanted: Filtering) -> None:
    """Put all of it in place, what rules name before the rules. Raises NetworkError."""
    ipset.load_sets(netns, wanted.ip_sets)
    nfnl_objects.make_objects(netns, wanted.named_objects)
    xtables.load_tables(netns, wanted.legacy_tables)
    ipvs.load_services(netns, wanted.virtual_services)
