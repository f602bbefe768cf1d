"""Which kinds of things were copied on this machine: the end of a session tells, and what was not for want of it.

What a kernel lacks is skipped, machine by machine; only these lists, side by side, show that every kind was tested on
one of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ckpt.kernel import probe
from ckpt.model.network import Network
from ckpt.model.travel import KINDS

_tests: dict[tuple[str, str], set[str]] = {}


def count(network: Network) -> None:
    """The running test compares a copy of ``network``."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" (")[0]
    for what in _things(network):
        _tests.setdefault(what, set()).add(test)


def _things(network: Network) -> Iterator[tuple[str, str]]:
    yield from (("links", link.kind) for link in network.links)
    yield from (
        ("ports of", link.kind) for link in network.links if any(one.master == link.ifname for one in network.links)
    )
    yield from (("disciplines", qdisc.kind) for qdisc in network.traffic.qdiscs)
    yield from (("filters", one.kind) for one in network.traffic.filters)
    yield from (("actions", one.kind) for one in network.traffic.actions)
    yield from (("routes", route.type) for route in network.routes)
    yield from (("encapsulations", route.encapsulation) for route in network.routes if route.encapsulation)
    yield from (("next hops", "group" if one.group else "single") for one in network.nexthops)
    yield from (("rules", rule.action) for rule in network.rules)
    yield from (("neighbours", "proxy" if one.proxy else one.state or "managed") for one in network.neighbours)
    yield from (("nftables", table.family) for table in network.nftables)
    yield from (("sets of ipset", one.definition.partition(" ")[0]) for one in network.filtering.ip_sets)
    yield from (("iptables-legacy", table.name) for table in network.filtering.legacy_tables)
    for what, found in (
        ("VLANs", network.bridging.vlans),
        ("forwarding entries", network.bridging.forwarding),
        ("groups", network.bridging.multicast),
    ):
        yield from (("bridges'", what) for _ in found[:1])
    yield from (("IPVS", "services") for _ in network.filtering.virtual_services[:1])
    yield from (("tracked flows", "expected") for _ in network.expectations[:1])
    yield from (("IPsec", "policies") for _ in network.ipsec.policies[:1])
    yield from (("IPsec", "states") for _ in network.ipsec.states[:1])
    yield from (("tracked flows", f"protocol {entry.protocol}") for entry in network.conntrack)
    yield from (("label routes", one.type) for one in network.label_routes)


def lines() -> list[str]:
    """The table: what was compared, in how many tests each; empty when nothing was."""
    by_what: dict[str, list[str]] = {}
    for (what, kind), tests in sorted(_tests.items()):
        by_what.setdefault(what, []).append(f"{kind or 'physical'} {len(tests)}")
    if by_what:
        untested = KINDS - {kind for what, kind in _tests if what == "links"}
        lacked = untested.intersection(probe.missing_link_kinds(sorted(untested)))
        by_what["links in no test"] = sorted(untested - lacked)
        by_what[f"lacked, of {len(KINDS)} kinds of links"] = sorted(lacked)
    width = max(map(len, by_what), default=0)
    return [f"{what.ljust(width)}  {', '.join(kinds)}" for what, kinds in by_what.items() if kinds]
