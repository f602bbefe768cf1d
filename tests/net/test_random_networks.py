"""The oracle again, over namespaces that nobody has thought of.

A random record is applied, which makes a namespace; that is read, and from then on treated as any group's: applied
to a fresh one and read again, it must be equal, and equal in the eyes of ``ip`` and ``nft``.
"""

from __future__ import annotations

import string
from dataclasses import replace

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ckpt.kernel import netns, rtnl
from ckpt.model.network import (
    LOOPBACK,
    Address,
    Counterpart,
    Link,
    Neighbour,
    Network,
    NftTable,
    Place,
    Route,
    Rule,
)
from ckpt.model.travel import cannot_travel
from tests.net import spaces

NAMES = st.text(string.ascii_letters + string.digits + "_-.$;'éß", min_size=1, max_size=9).map(lambda text: f"n{text}")
MACS = st.integers(0, 0xFFFFFF).map(lambda value: bytes([2, 0, 0, *value.to_bytes(3, "big")]).hex(":"))
MTUS = st.integers(1280, 9000)
FLAGS = st.sets(st.sampled_from(["promisc", "allmulti", "multicast"])).map(lambda flags: ("up", *sorted(flags)))


@st.composite
def links(draw: st.DrawFn) -> tuple[Link, ...]:
    """lo, one to three pairs of veths with both ends inside, perhaps a bridge with ports, perhaps macvlans."""
    found = [LOOPBACK]
    names = iter(draw(st.lists(NAMES, min_size=12, max_size=12, unique=True)))
    indices = iter(draw(st.permutations(range(2, 40))))
    for _ in range(draw(st.integers(1, 3))):
        pair = [Link(ifname=next(names), kind="veth", ifindex=next(indices), mac=draw(MACS)) for _ in range(2)]
        for link, other in (pair, pair[::-1]):
            counterpart = Counterpart(place=Place.INSIDE, ifname=other.ifname)
            alias = draw(st.text(string.printable.strip(), max_size=20))
            link = replace(link, counterpart=counterpart, mtu=draw(MTUS), flags=draw(FLAGS), alias=alias)
            found.append(replace(link, txqlen=draw(st.integers(0, 5000)), group=draw(st.integers(0, 9))))
    veths = found[1:]
    if draw(st.booleans()):
        options = {"ageing_time": str(draw(st.integers(0, 60000))), "priority": str(draw(st.integers(0, 65535)))}
        bridge = Link(ifname=next(names), kind="bridge", ifindex=next(indices), options=options)
        found[1] = replace(found[1], master=bridge.ifname, port_options={"isolated": draw(st.sampled_from("01"))})
        found.append(bridge)
    if draw(st.booleans()):
        mode = {"mode": draw(st.sampled_from(["private", "vepa", "bridge"]))}
        below = Counterpart(place=Place.INSIDE, ifname=veths[-1].ifname)
        found.append(Link(ifname=next(names), kind="macvlan", ifindex=next(indices), counterpart=below, options=mode))
    return tuple(found)


def prefixes(first: int) -> st.SearchStrategy[str]:
    """IPv4 and IPv6 prefixes of networks that no address of these tests is in."""
    four = st.tuples(st.integers(0, 255), st.integers(16, 24)).map(lambda pair: f"{first}.{pair[0]}.0.0/{pair[1]}")
    six = st.tuples(st.integers(0, 0xFFFF), st.sampled_from([48, 64])).map(
        lambda pair: f"fd{first:02x}:{pair[0]:x}::/{pair[1]}"
    )
    return four | six


@st.composite
def networks(draw: st.DrawFn) -> Network:
    made = draw(links())
    addresses, routes, neighbours = [], [], []
    for number, link in enumerate(made[1:]):
        if link.master or not draw(st.booleans()):
            continue
        name = link.ifname
        for host in draw(st.lists(st.integers(1, 200), max_size=3, unique=True)):
            addresses.append(Address(ifname=name, address=f"10.{number}.0.{host}/24"))
            addresses.append(Address(ifname=name, address=f"fd00:{number}::{host:x}/64", flags=draw(address_flags())))
            gateway = f"10.{number}.0.{draw(st.integers(201, 250))}"
            metric = draw(st.integers(0, 3))
            destination = draw(prefixes(11).filter(lambda text: ":" not in text))
            routes.append(Route(destination=canonical(destination), gateway=gateway, ifname=name, priority=metric))
            neighbours.append(Neighbour(ifname=name, address=gateway, mac=draw(MACS)))
    for destination in draw(st.lists(prefixes(12), max_size=3)):
        kind = draw(st.sampled_from(["blackhole", "unreachable", "prohibit", "throw"]))
        ifname = "lo" if ":" in destination else ""
        table = draw(st.sampled_from([254, 100, 70000]))
        routes.append(Route(destination=canonical(destination), type=kind, table=table, ifname=ifname, priority=9))
    rules = [
        Rule(
            family=draw(st.sampled_from([4, 6])),
            priority=priority,
            table=100,
            selectors={"fwmark": mark, "fwmask": mark},
        )
        for priority, mark in draw(st.dictionaries(st.integers(1, 30000), st.integers(1, 255), max_size=3)).items()
    ]
    members = draw(st.sets(st.integers(1, 250), max_size=20))
    sysctls = {"net/ipv4/ip_forward": draw(st.sampled_from("01"))}
    sysctls["net/ipv6/conf/default/accept_dad"] = "0"  # detection would take seconds in each example
    return Network(
        links=made,
        addresses=tuple(addresses),
        routes=distinct(routes),
        rules=tuple(rules),
        neighbours=tuple({one.address: one for one in neighbours}.values()),
        sysctls=sysctls,
        nftables=(_table(members),) if members else (),
    )


def address_flags() -> st.SearchStrategy[tuple[str, ...]]:
    return st.sets(st.sampled_from(["nodad", "noprefixroute", "homeaddress"])).map(lambda flags: tuple(sorted(flags)))


def canonical(prefix: str) -> str:
    """The prefix with no bit set behind its length."""
    address, _, length = prefix.partition("/")
    if ":" in address:
        return prefix
    octets = address.split(".")
    second = int(octets[1]) if int(length) >= 16 else 0
    return f"{octets[0]}.{second}.0.0/{length}"


def distinct(routes: list[Route]) -> tuple[Route, ...]:
    """One route for each destination, table and metric: more would be next hops of one, or refused."""
    return tuple({(route.destination, route.table, route.priority): route for route in routes}.values())


def _table(members: set[int]) -> NftTable:
    elements = ", ".join(f"192.0.2.{member}" for member in sorted(members))
    text = (
        f"table inet sample {{\n\tset members {{\n\t\ttype ipv4_addr\n\t\telements = {{ {elements} }}\n\t}}\n"
        "\tchain input {\n\t\ttype filter hook input priority 0; policy accept;\n"
        "\t\tip saddr @members counter packets 7 bytes 99 drop\n\t}\n}\n"
    )
    return NftTable(family="inet", name="sample", text=text)


# No shrinking: each step of it makes two namespaces, and what differs is named by the failure.
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(networks())
def test_copy_of_a_random_network_is_equal(network: Network) -> None:
    with spaces.fresh() as host, netns.entered(host), spaces.restored(network) as original:
        spaces.settle(original)
        read = rtnl.read_network(original)
        assert cannot_travel(read) == ()
        assert {link.ifname for link in read.links if not link.fallback} == {link.ifname for link in network.links}
        before = spaces.shown(original)
        with spaces.restored(read) as copy:
            spaces.settle(copy)
            spaces.assert_equal(spaces.comparable(rtnl.read_network(copy)), spaces.comparable(read))
            spaces.assert_equal(spaces.shown(copy), before)
