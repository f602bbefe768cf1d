"""The plan of a network: what is done, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.errors import UnsupportedError
from ckpt.model.finding import Severity
from ckpt.model.network import LOOPBACK, Address, Counterpart, Link, Network, Place, Route, Rule, Unread
from ckpt.model.travel import cannot_travel
from ckpt.plan import order_links, plan_network
from ckpt.plan.differences import difference, order_addresses, order_routes
from ckpt.plan.steps import (
    AdjustLinks,
    BringUp,
    Enslave,
    MakeLink,
    PlaceCounterpart,
    Rename,
    SetAddresses,
    SetRoutes,
    SettleSysctls,
    Step,
    WriteSysctls,
)

EMPTY = Network(links=(replace(LOOPBACK, flags=()),), complete=True)


def inside(ifname: str) -> Counterpart:
    return Counterpart(place=Place.INSIDE, ifname=ifname)


def on(ifname: str, below: str, kind: str = "vlan") -> Link:
    return Link(ifname=ifname, kind=kind, counterpart=inside(below))


OUTSIDE = Link(ifname="eth0", kind="veth", counterpart=Counterpart(ifname="veth7", master="br0"))
PAIR = (
    Link(ifname="va", kind="veth", counterpart=inside("vb")),
    Link(ifname="vb", kind="veth", counterpart=inside("va")),
)


def kinds(steps: tuple[Step, ...]) -> list[str]:
    return [type(step).__name__ for step in steps]


def names(links: tuple[Link, ...]) -> list[str]:
    return [link.ifname for link in links]


def test_plan_makes_links_before_what_they_carry() -> None:
    wanted = Network(links=(LOOPBACK, OUTSIDE), addresses=(Address(ifname="eth0", address="10.0.0.2/24"),))
    assert kinds(plan_network(wanted, EMPTY)) == [
        "WriteSysctls",
        "MakeLink",
        "PlaceCounterpart",
        "AdjustLinks",
        "WriteSysctls",
        "BringUp",
        "BringUp",
        "SetAddresses",
        "SetRoutes",
        "SetRules",
        "LoadNftables",
        "CreateConntrack",
        "SettleSysctls",
        "SetNeighbours",
    ]


def test_plan_places_only_the_outside_end_of_a_veth() -> None:
    wanted = Network(
        links=(LOOPBACK, OUTSIDE, *PAIR, replace(on("mv0", "eth0", "macvlan"), counterpart=inside("eth0")))
    )
    assert [step.link.ifname for step in plan_network(wanted, EMPTY) if isinstance(step, PlaceCounterpart)] == ["eth0"]


def test_plan_makes_a_pair_inside_once() -> None:
    steps = plan_network(Network(links=PAIR), EMPTY)
    assert [step for step in steps if isinstance(step, MakeLink)] == [MakeLink(link=PAIR[0], peer=PAIR[1])]


def test_plan_does_not_make_what_is_there() -> None:
    fallback = Link(ifname="tunl0", kind="ipip", flags=())
    there = replace(EMPTY, links=(*EMPTY.links, fallback))
    assert "MakeLink" not in kinds(plan_network(Network(links=(LOOPBACK, fallback)), there))


def test_plan_passes_over_a_fallback_device_that_this_kernel_lacks() -> None:
    steps = plan_network(Network(links=(LOOPBACK, Link(ifname="sit0", kind="sit", flags=()))), EMPTY)
    adjusted = [step.links for step in steps if isinstance(step, AdjustLinks)]
    assert adjusted == [(LOOPBACK,)]


def test_plan_joins_ports_in_the_order_of_their_numbers() -> None:
    ports = tuple(Link(ifname=f"p{number}", kind="dummy", master="br1", port_number=number) for number in (3, 1, 2))
    steps = plan_network(Network(links=(*ports, Link(ifname="br1", kind="bridge"))), EMPTY)
    assert [step.ifname for step in steps if isinstance(step, Enslave)] == ["p1", "p2", "p3"]
    # The bridge is adjusted before its ports join it, and everything after.
    assert [names(step.links) for step in steps if isinstance(step, AdjustLinks)] == [
        ["br1"],
        ["p3", "p1", "p2", "br1"],
    ]


def test_plan_leaves_down_what_is_down() -> None:
    steps = plan_network(Network(links=(LOOPBACK, replace(OUTSIDE, flags=("multicast",)))), EMPTY)
    assert [step.link.ifname for step in steps if isinstance(step, BringUp)] == ["lo"]


@pytest.mark.parametrize(
    "link",
    [
        Link(ifname="x0", kind="gtp"),
        Link(ifname="x0", kind=""),
        Link(ifname="x0", kind="veth"),
        Link(ifname="x0", kind="veth", counterpart=Counterpart(place=Place.ELSEWHERE, ifindex=7)),
        Link(ifname="x0", kind="tun", options={"type": "1", "persist": "0"}),
    ],
)
def test_plan_refuses_what_it_cannot_make(link: Link) -> None:
    network = Network(links=(LOOPBACK, link))
    with pytest.raises(UnsupportedError) as caught:
        plan_network(network, EMPTY)
    assert caught.value.code == "link-kind"
    assert "x0" in caught.value.brief
    # And the check says so beforehand.
    assert [(one.severity, one.code, one.subject) for one in cannot_travel(network)] == [
        (Severity.BLOCK, "link-kind", "link x0")
    ]


def test_plan_silences_address_configuration_until_the_end() -> None:
    sysctls = {"net/ipv6/conf/all/accept_dad": "0", "net/ipv6/conf/default/accept_dad": "1"}
    sysctls["net/ipv6/conf/default/addr_gen_mode"] = "0"
    wanted = Network(links=(LOOPBACK,), sysctls=sysctls, complete=True)
    steps = plan_network(wanted, replace(EMPTY, sysctls=sysctls))
    first, last = steps[0], steps[-2]
    assert isinstance(first, WriteSysctls)
    assert isinstance(last, SettleSysctls)
    assert first.values["net/ipv6/conf/default/accept_dad"] == "0"
    assert first.values["net/ipv6/conf/default/addr_gen_mode"] == "1"
    assert last.sysctls == sysctls


def test_plan_sets_neighbours_last() -> None:
    """A change of a link without a carrier makes the kernel forget them."""
    wanted = Network(links=(replace(LOOPBACK, token="::77"),))
    assert kinds(plan_network(wanted, EMPTY))[-3:] == ["SettleSysctls", "SetTokens", "SetNeighbours"]


def test_plan_of_a_record_by_hand_keeps_what_the_kernel_makes() -> None:
    sysctls = {"net/ipv6/conf/default/accept_dad": "1", "net/ipv6/conf/default/addr_gen_mode": "0"}
    steps = plan_network(Network(links=(LOOPBACK, OUTSIDE)), replace(EMPTY, sysctls=sysctls))
    first, last = steps[0], steps[-2]
    assert isinstance(first, WriteSysctls)
    assert isinstance(last, SettleSysctls)
    assert "net/ipv6/conf/default/addr_gen_mode" not in first.values
    assert last.sysctls == sysctls
    assert not any(step.only for step in steps if isinstance(step, SetAddresses | SetRoutes))


def test_plan_writes_a_links_sysctls_before_it_is_up() -> None:
    wanted = Network(links=(LOOPBACK,), sysctls={"net/ipv6/conf/lo/disable_ipv6": "1", "net/ipv4/ip_forward": "1"})
    steps = plan_network(wanted, EMPTY)
    place = steps.index(WriteSysctls(values={"net/ipv6/conf/lo/disable_ipv6": "1"}))
    assert place < kinds(steps).index("BringUp")
    assert steps[0] == WriteSysctls(values={"net/ipv4/ip_forward": "1"})


def test_order_links_puts_each_after_what_it_stands_on() -> None:
    links = (on("c", "b"), on("b", "a"), Link(ifname="a", kind="dummy"), on("d", "a"))
    assert names(order_links(links)) == ["a", "b", "c", "d"]


def test_order_links_ends_where_links_stand_on_each_other() -> None:
    links = (on("a", "b"), on("b", "a"))
    assert sorted(names(order_links(links))) == ["a", "b"]


def test_order_routes_puts_the_link_before_its_gateway() -> None:
    default = Route(destination="0.0.0.0/0", gateway="10.0.0.1")
    through = Route(destination="10.9.0.0/16", gateway="10.0.0.9", ifname="eth0")
    near = Route(destination="10.0.0.0/24", ifname="eth0", scope="link")
    own = Route(destination="10.0.0.2/32", type="local", scope="host", table=255)
    assert order_routes((default, through, near, own)) == (own, near, default, through)


def test_order_addresses_puts_ipv6_first_and_reverses_it() -> None:
    addresses = [Address(ifname="e", address=text) for text in ("10.0.0.1/8", "fd00::1/64", "10.0.0.2/8", "fd00::2/64")]
    ordered = [address.address for address in order_addresses(addresses)]
    assert ordered == ["fd00::2/64", "fd00::1/64", "10.0.0.1/8", "10.0.0.2/8"]


def test_difference_ignores_time_that_runs_and_flags_that_nobody_can_set() -> None:
    was = Address(ifname="e", address="fd00::1/64", valid_lifetime=100, preferred_lifetime=50, flags=("temporary",))
    now = Address(ifname="e", address="fd00::1/64", valid_lifetime=90, preferred_lifetime=40)
    assert difference((was,), (now,), only=True) == ((), ())


def test_difference_tells_for_ever_from_a_while() -> None:
    was, now = Address(ifname="e", address="fd00::1/64"), Address(ifname="e", address="fd00::1/64", valid_lifetime=9)
    assert difference((was,), (now,), only=True) == ((now,), (was,))


def test_difference_keeps_what_is_there_unless_only() -> None:
    rule, own = Rule(family=4, priority=5, table=7), Rule(family=4, priority=0, table=255)
    assert difference((rule,), (own,), only=False) == ((), (rule,))
    assert difference((rule,), (own,), only=True) == ((own,), (rule,))


def test_cannot_travel_names_all_that_is_unread() -> None:
    unread = (
        Unread(code="iptables-legacy", subject="iptables table nat", what="is in use"),
        Unread(code="link-attribute", subject="link eth0", what="has the unknown link attribute 99"),
    )
    findings = cannot_travel(Network(links=(LOOPBACK,), unread=unread))
    assert [(one.severity, one.code, one.subject, bool(one.remedy)) for one in findings] == [
        (Severity.BLOCK, "iptables-legacy", "iptables table nat", True),
        (Severity.WARN, "link-attribute", "link eth0", True),
    ]


def test_cannot_travel_is_silent_about_fallback_devices() -> None:
    assert cannot_travel(Network(links=(LOOPBACK, Link(ifname="tunl0", kind="ipip")))) == ()


def test_loopback_that_was_renamed_is_called_so_before_links_are_made() -> None:
    wanted = Network(links=(replace(LOOPBACK, ifname="back"), Link(ifname="lo", kind="dummy")))
    planned = [step for step in plan_network(wanted, EMPTY) if isinstance(step, Rename | MakeLink)]
    assert planned == [Rename(was="lo", ifname="back"), MakeLink(link=wanted.links[1])]
    assert not any(isinstance(step, Rename) for step in plan_network(Network(links=(LOOPBACK,)), EMPTY))
