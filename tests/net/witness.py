"""The second oracle: all that the system's own tools show of a namespace, which shares no code with ckpt.

``seen`` asks every tool in few processes, by batches, and takes away what cannot be equal in a copy: each such thing
is in a table here, with its reason. What is not named there must be equal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.net.oracle import is_learnt
from tests.net.spaces import shell

_BOTH = ("route show table all", "rule show", "token list")
_QUESTIONS = {
    "ip -j -d": (
        "link show",
        "address show",
        "neighbour show nud permanent",
        "neighbour show nud noarp",
        "neighbour show proxy",
        "nexthop show",
        "maddress show",
        *_BOTH,
    ),
    "ip -6 -j -d": _BOTH,
    "ip": ("xfrm policy list", "xfrm state list", "xfrm policy getdefault"),
    "bridge -j -d": ("link show", "fdb show", "mdb show", "vlan show"),
    "bridge -j": ("vlan tunnelshow", "vlan global show"),
    "tc -j": ("qdisc show", "actions list action mirred"),
}
"""By tool: what it is asked, all in one process."""

_OF_LINKS = (
    "class show dev {}",
    "filter show dev {}",
    "filter show dev {} ingress",
    "filter show dev {} egress",
    "chain show dev {} ingress",
    "chain show dev {} egress",
)
_ALONE = ("nft -j list ruleset", "ipset save", "sysctl -a --pattern ^net")

UNEQUAL_FIELDS = {
    "operstate": "UNKNOWN or UP for one and the same link, as the kernel's worker has or has not yet looked at it",
    "link_index": "the host numbers its own end of a pair anew",
    "link_netnsid": "namespaces are numbered as they are asked for",
    "handle": "nftables numbers what it keeps anew",
    "metainfo": "says which nft it was",
    "expires": "time runs on",
    "valid_life_time": "time runs on",
    "preferred_life_time": "time runs on",
    "hello_timer": "a bridge's timer, which runs",
    "tcn_timer": "a bridge's timer, which runs",
    "topology_change_timer": "a bridge's timer, which runs",
    "gc_timer": "a bridge's timer, which runs",
    "hold_timer": "a port's timer, which runs",
    "message_age_timer": "a port's timer, which runs",
    "forward_delay_timer": "a port's timer, which runs",
    "router": "the ports with multicast routers: learnt, or set and with a carrier; what was set is the port's option",
    "flush": "an action of tunnels and bridges, shown as if it were kept",
    "used_hw_stats": "where there is no hardware, shown only of what was asked about",
    "not_in_hw": "where there is no hardware, shown only of what was asked about",
    "ref": "how many hold it, also while they look",
    "bind": "how many hold it, also while they look",
    "direct_packets_stat": "a counter",
    "fdb_n_learned": "what a bridge has learnt from the wire; only newer ips show it",
    "mcast_n_groups": "the groups that a port has heard of; only newer ips show it",
    "seq_nr": "what a ring has sent",
    "bridge_id": "made of priority and address, which are compared; of a bridge that was given no address, only once it"
    " has a port",
    "root_id": "the same, of the bridge itself or of one that was heard",
    "permaddr": "random, of a tunnel that has no address; of a bond's port it is in the records",
    "mcast_querier_state_ipv4": "who asks for groups at the moment, and who was heard",
    "mcast_querier_state_ipv6": "who asks for groups at the moment, and who was heard",
    "rule_hit": "a counter",
    "success": "a counter",
    "packets_seen": "a counter",
}

UNEQUAL_WORDS = {
    "linkdown": "a route's, as the kernel has or has not heard of a carrier since it was made; it means nothing to it",
}
"""Flags."""

IDLE_BRIDGES = {"NO-CARRIER", "LOWER_UP"}
"""Flags of bridges without ports and of what stands on them. One that never had a port nor was given an address has a
carrier; giving one takes it away (br_dev_newlink, br_port_state_selection), and nothing but a port brings it back."""

UNEQUAL_LINES = {
    r"net\.netfilter\.nf_conntrack_count = .*": "how many flows there are at the moment",
    r"net\.ipv6\.conf\.(gretap0|erspan0)\.mtu = .*": "a driver's own: IPv6 saw it before it had the MTU that it has",
    r"net\.\S+\.mc_forwarding = .*": "what a multicast router has, which is a running program",
}
"""Lines of tools that speak no JSON; the reason why they cannot be equal."""

_UNEQUAL_LINE = re.compile("|".join(UNEQUAL_LINES))


def seen(space: int, links: Sequence[str]) -> dict[str, Any]:
    """What the tools show, by tool; ``links`` are those that `tc` is asked about one by one."""
    found: dict[str, Any] = {}
    for tool, lines in _QUESTIONS.items():
        if tool.startswith("tc"):
            lines = (*lines, *(question.format(link) for link in links for question in _OF_LINKS))
        # What a kernel lacks is refused, and the next question asked.
        script = f"{tool} -force -batch - 2>/dev/null <<'END' || true\n" + "\n".join(lines) + "\nEND"
        found[tool] = _answer(tool, shell(script, space))
    for command in _ALONE:
        found[command] = _answer(command, shell(f"{command} 2>/dev/null || true", space))
    return found


def _answer(tool: str, printed: str) -> Any:
    if " -j" in tool:
        documents = [_without_idle_carriers(document) for document in _documents(printed)]
        return [_levelled(document) for document in _without_silent_ones(documents)]
    return [line for line in printed.splitlines() if not _UNEQUAL_LINE.fullmatch(line)]


def _documents(printed: str) -> Iterator[Any]:
    """The documents that stand one after the other; of one that an error broke off there is only a bracket."""
    decoder = json.JSONDecoder()
    place = 0
    while place < len(printed):
        try:
            document, place = decoder.raw_decode(printed, place)
        except json.JSONDecodeError:
            place += 1
        else:
            yield document


def _without_idle_carriers(document: Any) -> Any:
    links = [one for one in document if isinstance(one, dict) and "flags" in one] if isinstance(document, list) else []
    masters = {link.get("master") for link in links}
    bridges = {one["ifname"] for one in links if one.get("linkinfo", {}).get("info_kind") == "bridge"}
    idle = bridges - masters
    while above := {one["ifname"] for one in links if one.get("link") in idle} - idle:
        idle |= above
    for link in links:
        if link.get("ifname") in idle:
            link["flags"] = [flag for flag in link["flags"] if flag not in IDLE_BRIDGES]
    return document


def _without_silent_ones(documents: list[Any]) -> list[Any]:
    """Without the neighbours of links that ask nobody, once something was sent there: they have the link's own MAC."""
    lists = [document for document in documents if isinstance(document, list)]
    own = {(item.get("ifname"), item.get("address")) for items in lists for item in items if isinstance(item, dict)}

    def is_silent(item: Any) -> bool:
        return isinstance(item, dict) and "lladdr" in item and (item.get("dev"), item["lladdr"]) in own

    return [
        [item for item in document if not is_silent(item)] if isinstance(document, list) else document
        for document in documents
    ]


def _levelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _levelled(item) for key, item in value.items() if key not in UNEQUAL_FIELDS and item != {}}
    if isinstance(value, list):
        kept = [_levelled(item) for item in value if not _is_unequal(item)]
        # The kernel lists much in the order of a hash with a random seed.
        return sorted(kept, key=repr) if all(isinstance(item, dict) for item in kept) else kept
    return value


def _is_unequal(item: Any) -> bool:
    return item in UNEQUAL_WORDS if isinstance(item, str) else is_learnt(item) or _is_protocols(item)


def _is_protocols(value: Any) -> bool:
    """Whether a neighbour is a group of the network layer, which is there once something was sent to it."""
    return isinstance(value, dict) and "lladdr" in value and str(value.get("dst", "")).startswith(("ff", "22", "23"))
