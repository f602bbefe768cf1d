"""Namespaces that do not want to be read: names that no tool expects, large sets, things that change meanwhile.

What changes really does: a tool in the namespace is fed all the time that it is read. A reading is what was there at
one moment, or is refused; it is never put together from two. The changes are made in an order in which something is
always true, so that a mixture would show.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import pytest

from ckpt.errors import NetworkError
from ckpt.kernel import netns, rtnl
from ckpt.kernel.netlink import Netlink, attribute
from ckpt.model.network import LOOPBACK, Address, Counterpart, Link, Neighbour, Network, Place, Route, Rule
from ckpt.model.travel import cannot_travel
from tests.conftest import require
from tests.net import spaces
from tests.net.oracle import assert_copy_equal, works
from tests.net.spaces import comparable, fresh, restored, settle, shell

# ---- names ---------------------------------------------------------------------------------------------------------

NAMES = (
    "-rf",
    "--help",
    "$(reboot)",
    "`id`;{}[]|&",
    "'\"\\'\"",
    "*?~!#",
    "字字字字字",
    "\x01\x1b[31m\x7f",
    "all.default",
    "x" * 15,
    b"\xff\xfe\x80raw".decode("utf-8", "surrogateescape"),
    "é" * 7 + "y",
)
"""The kernel takes all but spaces, slashes, colons and ``%``, at most 15 bytes, and neither ``.`` nor ``..``."""

ALTNAME = "a name of %d: no \"device'; $(has) it" * 3


def hostile_names() -> Network:
    """Pairs of veths with these names, and everything that names a link for each."""
    links = [LOOPBACK]
    for number, name in enumerate(NAMES):
        other = Counterpart(place=Place.INSIDE, ifname=NAMES[number ^ 1])
        alias = f"{name}\n\x1b[0m\t\" ' 字"
        altname = f"{ALTNAME.replace(' ', '_').replace(':', '.')}{number}"
        links.append(Link(ifname=name, kind="veth", counterpart=other, alias=alias, altnames=(altname,)))
    keys = ("net/ipv4/conf/{}/rp_filter", "net/ipv6/conf/{}/accept_dad", "net/ipv4/neigh/{}/gc_stale_time")
    macs = [f"02:00:00:00:00:{number:02x}" for number in range(len(NAMES))]
    return Network(
        links=tuple(links),
        addresses=tuple(Address(ifname=name, address=f"10.{place}.0.1/24") for place, name in enumerate(NAMES)),
        routes=tuple(
            Route(destination=f"172.16.{place}.0/24", ifname=name, gateway=f"10.{place}.0.9")
            for place, name in enumerate(NAMES)
        ),
        neighbours=tuple(
            Neighbour(ifname=name, address=f"10.{place}.0.9", mac=macs[place]) for place, name in enumerate(NAMES)
        ),
        rules=tuple(Rule(family=4, priority=9, table=9, values={"iifname": name}) for name in NAMES),
        sysctls={key.format(name): "0" for key in keys for name in NAMES},
    )


def test_copy_of_links_with_hostile_names_is_equal() -> None:
    wanted = hostile_names()
    with restored(wanted) as original:
        settle(original)
        network = rtnl.read_network(original)
        assert cannot_travel(network) == ()
        with restored(network) as copy, netns.entered(copy):
            settle(copy)
            spaces.assert_equal(comparable(rtnl.read_network(copy)), comparable(network))
            assert {name for _, name in socket.if_nameindex()} == {"lo", *NAMES}
        kept = {link.ifname: (link.alias, link.altnames) for link in network.links}
        assert kept == {link.ifname: (link.alias, link.altnames) for link in wanted.links}
        assert {rule.values["iifname"] for rule in network.rules if "iifname" in rule.values} == set(NAMES)


# ---- large and dead ------------------------------------------------------------------------------------------------


def test_requests_of_more_than_can_be_sent_at_once_are_each_answered() -> None:
    delete_link, unknown = 17, 0x3000
    with fresh() as space, Netlink(netns=space) as connection:
        bodies = [struct.pack("=BxHiII", 0, 0, 10_000 + n, 0, 0) + attribute(unknown, b"x" * 2000) for n in range(250)]
        said = connection.requests([(delete_link, body, 0) for body in bodies])
    assert [refusal.errno if refusal else 0 for refusal in said] == [errno.ENODEV] * len(bodies)


def test_copy_of_a_set_of_4096_members_is_equal(group: int) -> None:
    require(works("ipset create one hash:ip"), "needs ipset")
    members = "\n".join(f"add many 10.{number >> 8}.{number & 255}.1" for number in range(4096))
    shell(f"ipset restore <<'END'\ncreate many hash:ip counters\n{members}\nEND", group)
    network = assert_copy_equal(group, ("ipset save | sort",))
    assert [len(one.members) for one in network.filtering.ip_sets] == [4096]


DEAD = {
    # What a route says stays when its wire goes; only the whole link's going down takes IPv4's away.
    "no-carrier": "ip link set v1 down",
    "no-carrier-ignored": """sysctl -qw net.ipv4.conf.v0.ignore_routes_with_linkdown=1
        sysctl -qw net.ipv6.conf.v0.ignore_routes_with_linkdown=1; ip link set v1 down""",
    "down": "sysctl -qw net.ipv6.conf.v0.keep_addr_on_down=1; ip link set v0 down",
    "down-and-up": "ip link set v0 down; ip link set v0 up; ip link set v1 down",
    "gateway-gone": "ip addr del 10.1.0.1/24 dev v0; ip route add 10.8.0.0/16 via 10.1.0.9 dev v0 onlink",
}


@pytest.mark.parametrize("what", DEAD)
def test_copy_of_routes_to_dead_links_is_equal(what: str) -> None:
    script = """sysctl -qw net.ipv6.conf.default.accept_dad=0; ip link set lo up
        ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up
        ip addr add 10.1.0.1/24 dev v0; ip addr add fd01::1/64 dev v0
        ip route add 10.2.0.0/16 via 10.1.0.9; ip route add 10.3.0.0/16 dev v0 table 7
        ip route add 10.4.0.0/16 nexthop via 10.1.0.8 nexthop via 10.1.0.9
        ip -6 route add fd02::/64 via fd01::9; ip -6 route add fd03::/64 dev v0 metric 7"""
    with fresh() as space:
        shell(script, space)
        settle(space)
        shell(DEAD[what], space)
        network = assert_copy_equal(space, ("ip -br addr",))
        assert any(route.ifname == "v0" for route in network.routes) or what == "down"


# ---- changing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Flapping:
    """What a tool is told in a namespace, without end, and whether a reading of that can have been there.

    ``lines`` are one generation; ``now`` and ``before`` are its number and that of the last, ``one`` and ``other``
    are 1 and 0 in odd ones, and 0 and 1 in even ones.
    """

    scene: str = ""
    tool: tuple[str, ...] = ("ip", "-batch", "-")
    lines: tuple[str, ...]
    was_there: Callable[[Network], bool]

    def feed(self, pipe: IO[bytes], stopping: threading.Event) -> None:
        """Write the lines until ``stopping``."""
        generation = 0
        while not stopping.is_set():
            generation += 1
            values = {"now": generation, "before": generation - 1, "one": generation % 2, "other": 1 - generation % 2}
            for line in self.lines:
                # Sometimes at once, and sometimes after the time that a reading takes on a slow machine.
                time.sleep(random.choice((0, 0.001, 0.02, 0.2, 1)))
                pipe.write(f"{line.format_map(values)}\n".encode())
                pipe.flush()


@contextlib.contextmanager
def flapping(space: int, what: Flapping) -> Iterator[None]:
    with netns.entered(space):
        process = subprocess.Popen(what.tool, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    stopping = threading.Event()
    thread = threading.Thread(target=what.feed, args=(process.stdin, stopping))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        process.stdin.close()
        process.wait()
    assert process.returncode == 0


def _generations(network: Network) -> bool:
    """Links are read first, rules after routes: what is newer than what was made before it comes of two moments."""
    link = network.link("v0")
    assert link is not None
    (route,) = [route for route in network.routes if route.destination == "10.2.0.0/16"]
    alias, advmss = int(link.alias), route.metrics.get("advmss", 0)
    rules = {rule.priority - 1000 for rule in network.rules if 1000 <= rule.priority < 32766}
    return (advmss, rules) in (
        (alias - 1, {alias - 1}),
        (alias, {alias - 1}),
        (alias, {alias - 1, alias}),
        (alias, {alias}),
    )


def _one_name(network: Network) -> bool:
    """One link, of which addresses, sysctls and the discipline speak by the same name."""
    (link,) = [link for link in network.links if link.ifname in ("n0", "n1")]
    filters = [key for key in network.sysctls if key.startswith("net/ipv4/conf/n") and key.endswith("/rp_filter")]
    named = {address.ifname for address in network.addresses} | {one.ifname for one in network.traffic.qdiscs}
    return filters == [f"net/ipv4/conf/{link.ifname}/rp_filter"] and named - {"lo", "v0", "v1"} == {link.ifname}


def _both_ends(network: Network) -> bool:
    """Both ends of the pair with all that they have, or nothing of it."""
    there = {link.ifname for link in network.links} & {"flap", "flop"}
    of_them = {key.split("/")[3] for key in network.sysctls if "/flap/" in key or "/flop/" in key}
    return there in (set(), {"flap", "flop"}) and of_them <= there


def _one_table(network: Network) -> bool:
    """One table, and what belongs to it."""
    (table,) = network.nftables
    return table.name in table.text and [one.kind for one in table.objects] == ["table", "chain", "object"]


def _classes_of_disciplines(network: Network) -> bool:
    handles = {qdisc.handle for qdisc in network.traffic.qdiscs}
    return all(f"{one.handle.partition(':')[0]}:" in handles for one in network.traffic.classes)


FLAPPING = {
    "generations": Flapping(
        scene="ip link set v0 alias 0; ip route add 10.2.0.0/16 dev v0; ip rule add priority 1000 lookup 9",
        lines=(
            "link set dev v0 alias {now}",
            "route replace 10.2.0.0/16 dev v0 advmss {now}",
            "rule add priority 1{now:03} lookup 9",
            "rule del priority 1{before:03}",
        ),
        was_there=_generations,
    ),
    "renamed": Flapping(
        scene="""ip link add n0 type veth peer name v9; sysctl -qw net.ipv4.conf.n0.rp_filter=2
            ip addr add 10.9.0.1/24 dev n0; tc qdisc add dev n0 root pfifo limit 7""",
        lines=("link set dev n{other} name n{one}",),
        was_there=_one_name,
    ),
    "made-and-removed": Flapping(
        lines=("link add flap type veth peer name flop", "address add 10.9.0.1/24 dev flap", "link del flap"),
        was_there=_both_ends,
    ),
    "ruleset": Flapping(
        scene="nft 'add table ip t0; add counter ip t0 c; add chain ip t0 y'",
        tool=("sh",),
        lines=("nft 'flush ruleset; add table ip t{now}; add counter ip t{now} c; add chain ip t{now} y'",),
        was_there=_one_table,
    ),
    "traffic": Flapping(
        tool=("tc", "-batch", "-"),
        lines=(
            "qdisc add dev v0 root handle 1: htb",
            "class add dev v0 classid 1:1 htb rate 1mbit",
            "qdisc add dev v0 parent 1:1 handle 2: pfifo limit 7",
            "qdisc del dev v0 root",
        ),
        was_there=_classes_of_disciplines,
    ),
}


def _read_if_it_can_be(space: int) -> list[Network]:
    try:
        return [rtnl.read_network(space)]
    except NetworkError as error:
        if error.code != "network-changing":
            raise
        return []


_ENOUGH = 3
_MOST = 300


@pytest.mark.parametrize("what", FLAPPING)
def test_reading_of_what_changes_is_of_one_moment(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads until it was disturbed a few times and not disturbed a few times."""
    scene = """sysctl -qw net.ipv6.conf.default.accept_dad=0; ip link set lo up
        ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up; ip addr add 10.1.0.1/24 dev v0"""
    readings: list[Network] = []
    tries: list[int] = []
    once = rtnl._read

    def counted(space: int, untouched: bool) -> Network:
        tries.append(1)
        return once(space, untouched)

    monkeypatch.setattr(rtnl, "_read", counted)
    with fresh() as space:
        shell(f"{scene}; {FLAPPING[what].scene or 'true'}", space)
        settle(space)
        with flapping(space, FLAPPING[what]):
            while len(readings) < _ENOUGH or len(tries) < len(readings) + _ENOUGH:
                assert len(tries) < _MOST
                readings += _read_if_it_can_be(space)
                time.sleep(random.choice((0, 0.02, 0.1)))
    assert [FLAPPING[what].was_there(reading) for reading in readings] == [True] * len(readings)
