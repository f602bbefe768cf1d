"""What the network tests share: namespaces filled by the system's own tools, restored copies, and fair comparisons."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass, replace
from typing import Any

from ckpt.kernel import apply, netns, rtnl, rtnl_links
from ckpt.kernel.netlink import Netlink
from ckpt.model.network import ConntrackEntry, Counterpart, Network, Route
from ckpt.plan import plan_network
from tests.net import tally

SETTLING_SECONDS = 20.0


def shell(script: str, space: int | None = None) -> str:
    """Run ``script`` with ``sh -e``, inside ``space`` when given, and return what it prints."""
    with contextlib.nullcontext() if space is None else netns.entered(space):
        done = subprocess.run(
            ["sh", "-exc", script], capture_output=True, encoding="utf-8", errors="surrogateescape", check=False
        )
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"
    return done.stdout


def kernel_has(kind: str) -> bool:
    """Whether this kernel makes links of that kind."""
    space = netns.create()
    try:
        with netns.entered(space):
            script = (
                f"ip link add v0 type veth peer v1 && ip link add link v0 name x0 type {kind} {_LEAST.get(kind, '')}"
            )
            return subprocess.run(["sh", "-c", script], capture_output=True, check=False).returncode == 0
    finally:
        os.close(space)


_LEAST = {"vlan": "id 5", "macvlan": "mode bridge"}


def path(space: int) -> str:
    """A path to the namespace that other processes can open."""
    return f"/proc/{os.getpid()}/fd/{space}"


@contextlib.contextmanager
def fresh() -> Iterator[int]:
    """A fresh namespace for the time of the block."""
    space = netns.create()
    try:
        yield space
    finally:
        os.close(space)


def settle(space: int) -> None:
    """Wait until the kernel has finished with IPv6 addresses and carriers."""
    deadline = time.monotonic() + SETTLING_SECONDS
    with Netlink(netns=space) as connection:
        # A newer kernel looks at a link that is asked for, and may have that still to do though nothing has changed.
        for index in rtnl_links.without_carrier(connection):
            rtnl_links.read_one(connection, ifindex=index)
        while (links := _unpropagated(space)) or (rtnl.has_tentative(connection) and _detecting(space)):
            for ifname in links:
                rtnl_links.read_one(connection, ifname=ifname)
            assert time.monotonic() < deadline, "addresses stay tentative, or carriers unnoticed"
            time.sleep(0.02)


def _detecting(space: int) -> bool:
    """Whether an address of a link that is up is tentative; on one that is down it remains so."""
    return "inet6" in shell("ip -6 -o addr show up tentative", space)


def _unpropagated(space: int) -> list[str]:
    """The links whose change of carrier the kernel's worker has not told everybody yet; it takes up to a second."""
    links = json.loads(shell("ip -j link", space), strict=False)  # a name may hold control characters
    return [
        link["ifname"]
        for link in links
        if "UP" in link["flags"] and ("LOWER_UP" in link["flags"]) == ("NO-CARRIER" in link["flags"])
    ]


@contextlib.contextmanager
def restored(network: Network) -> Iterator[int]:
    """A fresh namespace to which ``network`` was applied; what that made outside is undone at the end."""
    with fresh() as space, ExitStack() as undo:
        apply.apply(space, plan_network(network, rtnl.read_network(space)), undo)
        yield space


_EXPIRES = re.compile(r"expires [0-9a-z]+")


def comparable(network: Network) -> Network:
    """``network`` without what cannot be equal in a copy, each with its reason."""
    tally.count(network)
    return replace(
        network,
        links=tuple(
            replace(link, counterpart=comparable_counterpart(link.counterpart) if link.counterpart else None)
            for link in network.links
        ),
        # Time runs on.
        addresses=tuple(
            replace(
                address,
                valid_lifetime=None if address.valid_lifetime is None else 0,
                preferred_lifetime=address.preferred_lifetime and 1,
                # The one that the kernel makes of lo's for a tunnel; nobody else can give that scope to its like.
                scope="link" if address.address.startswith("fe80:") else address.scope,
            )
            for address in network.addresses
        ),
        routes=_comparable_routes(network.routes),
        nftables=tuple(
            # The objects hold the time that elements have left; tests/net/test_nftables.py looks at them.
            replace(table, text=_EXPIRES.sub("expires", table.text), objects=())
            for table in network.nftables
        ),
        # The kernel lists these in the order of a hash with a random seed; its own multicast reports come and go.
        neighbours=tuple(sorted(network.neighbours, key=repr)),
        conntrack=_comparable_entries(network.conntrack),
    )


def comparable_counterpart(counterpart: Counterpart) -> Counterpart:
    """The host numbers its own end of a veth anew, and chooses that end's link-local addresses itself."""
    addresses = tuple(address for address in counterpart.addresses if address.scope != "link")
    return replace(counterpart, ifindex=0, addresses=addresses)


def _comparable_routes(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    plain = [replace(route, expires=None if route.expires is None else 0) for route in routes]
    # Routes of one prefix and metric that the kernel made for several links stand in the order of their coming up.
    own = [route for route in plain if route.protocol == 2 and route.family == 6]
    return (*(route for route in plain if route not in own), *sorted(own, key=repr))


def _comparable_entries(entries: tuple[ConntrackEntry, ...]) -> tuple[ConntrackEntry, ...]:
    mine = [replace(entry, timeout=0) for entry in entries if entry.protocol != 2]
    return tuple(sorted(mine, key=repr))


_COMMANDS = (
    "ip -j -d link show",
    "ip -j -d addr show",
    "ip -j -d -4 route show table all",
    "ip -j -d -6 route show table all",
    "ip -j -d -4 rule show",
    "ip -j -d -6 rule show",
    "ip -j neigh show nud permanent",
    "ip -j neigh show proxy",
    "nft -j list ruleset",
)

# Numbers that the host or the kernel chooses anew, time that runs, timers of a bridge; what a bridge has learnt from
# the wire and heard of groups and queriers (newer ips tell that), what a ring has sent, how often a bond's port has
# lost its carrier and what it has come to with the other side's, and what hardware could do at most, which comes of
# what was made first; and operstate, which is UNKNOWN or UP for one and the same link, as the kernel's worker has or
# has not had to look at it since it was made.
_INCOMPARABLE = {
    "operstate",
    "link_index",
    "link_netnsid",
    "permaddr",
    "handle",
    "expires",
    "valid_life_time",
    "preferred_life_time",
    "metainfo",
    "hello_timer",
    "forward_delay_timer",
    "hold_timer",
    "message_age_timer",
    "tcn_timer",
    "topology_change_timer",
    "gc_timer",
    "flush",
    "mcast_querier_state_ipv4",
    "mcast_querier_state_ipv6",
    "fdb_n_learned",
    "mcast_n_groups",
    "seq_nr",
    "link_failure_count",
    "ad_actor_oper_port_state",
    "ad_actor_oper_port_state_str",
    "tso_max_size",
}


def shown(space: int) -> dict[str, Any]:
    """What the system's own tools show of ``space``, by command: the independent oracle."""
    return {command: _clean(json.loads(shell(command, space) or "[]")) for command in _COMMANDS}


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items() if key not in _INCOMPARABLE and item != {}}
    if isinstance(value, list):
        cleaned = [_clean(item) for item in value]
        return sorted(cleaned, key=repr) if all(isinstance(item, dict) for item in cleaned) else cleaned
    return value


def assert_equal(one: Any, other: Any) -> None:
    """Both are equal; a failure names every difference."""
    different = differences(one, other)
    assert not different, "\n".join(different)


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two structures differ, each difference as one line: a failed test then says what."""
    if is_dataclass(one) and not isinstance(one, type) and is_dataclass(other) and not isinstance(other, type):
        one, other = asdict(one), asdict(other)
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        return [line for key in keys for line in differences(one.get(key), other.get(key), f"{place}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for number, (a, b) in pairs for line in differences(a, b, f"{place}/{number}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        only = [f"only in the one: {item}" for item in one if item not in other]
        return [f"{place} {line}" for line in (*only, *(f"only in the other: {i}" for i in other if i not in one))]
    return [] if one == other else [f"{place}: {one!r} != {other!r}"]
