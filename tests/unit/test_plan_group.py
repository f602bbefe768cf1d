"""The plan of several namespaces: which step comes when, and where."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.errors import UnsupportedError
from ckpt.model.network import LOOPBACK, Address, Counterpart, Link, Network, Place
from ckpt.plan import plan_network
from ckpt.plan.steps import BringUp, MakeLink, SetAddresses
from ckpt.plan_group import GroupStep, plan_networks

EMPTY = Network(links=(replace(LOOPBACK, flags=()),), complete=True)


def across(ifname: str, netns: str, other: str, kind: str = "veth") -> Link:
    return Link(ifname=ifname, kind=kind, counterpart=Counterpart(place=Place.ELSEWHERE, netns=netns, ifname=other))


def planned(**links: tuple[Link, ...]) -> tuple[GroupStep, ...]:
    wanted = {
        key: Network(links=(LOOPBACK, *of_one), addresses=(Address(ifname="lo", address="127.0.0.1/8"),))
        for key, of_one in links.items()
    }
    return plan_networks(wanted, dict.fromkeys(wanted, EMPTY))


def made(steps: tuple[GroupStep, ...]) -> list[tuple[str, str, str | None]]:
    found = ((key, step) for key, step in steps if isinstance(step, MakeLink))
    return [(key, step.link.ifname, step.peer.ifname if step.peer else None) for key, step in found]


def test_plan_of_one_namespace_is_that_of_the_namespace() -> None:
    network = Network(links=(LOOPBACK, Link(ifname="br0", kind="bridge")))
    steps = plan_networks({"a": network}, {"a": EMPTY})
    assert steps == tuple(("a", step) for step in plan_network(network, EMPTY))


def test_plan_makes_a_veth_pair_across_once() -> None:
    steps = planned(a=(across("eth0", "b", "up0"),), b=(across("up0", "a", "eth0"),))
    assert made(steps) == [("a", "eth0", "up0")]


def test_plan_makes_a_link_after_the_one_below_it_elsewhere() -> None:
    steps = planned(
        a=(across("mv0", "b", "mv1", "macvlan"),),
        b=(across("mv1", "c", "br0", "macvlan"),),
        c=(Link(ifname="br0", kind="bridge"),),
    )
    assert [key for key, *_ in made(steps)] == ["c", "b", "a"]
    raised = [(key, step.link.ifname) for key, step in steps if isinstance(step, BringUp) and step.link != LOOPBACK]
    assert raised == [("c", "br0"), ("b", "mv1"), ("a", "mv0")]


def test_plan_makes_a_pair_before_what_stands_on_its_second_end() -> None:
    pair = [
        Link(ifname=one, kind="veth", counterpart=Counterpart(place=Place.INSIDE, ifname=other))
        for one, other in (("va", "vb"), ("vb", "va"))
    ]
    steps = planned(a=(across("mv0", "b", "vb", "macvlan"),), b=tuple(pair))
    assert made(steps) == [("b", "va", "vb"), ("a", "mv0", None)]


def test_plan_raises_every_link_before_the_first_address() -> None:
    steps = planned(a=(across("eth0", "b", "up0"),), b=(across("up0", "a", "eth0"),))
    kinds = [type(step) for _, step in steps]
    assert max(number for number, kind in enumerate(kinds) if kind is BringUp) < kinds.index(SetAddresses)


@pytest.mark.parametrize(
    "link", [across("eth0", "gone", "up0"), across("eth0", "b", "gone"), across("eth0", "b", "gone", "macvlan")]
)
def test_plan_refuses_a_link_that_leads_nowhere(link: Link) -> None:
    with pytest.raises(UnsupportedError) as caught:
        planned(a=(link,), b=())
    assert (caught.value.code, caught.value.brief) == ("link-kind", "the link eth0 cannot be made")
