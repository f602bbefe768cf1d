"""Links that tunnel drivers make by themselves: which travel, and which are in the way of what does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.model.fallback import in_the_way, travels
from ckpt.model.network import LOOPBACK, Address, Counterpart, Link, Network, Place
from ckpt.plan import plan_network
from ckpt.plan.steps import AdjustLinks, MakeLink

TUNL0 = Link(ifname="tunl0", kind="ipip", ifindex=2, flags=(), options={"local": "0.0.0.0", "remote": "0.0.0.0"})
ETH0 = Link(ifname="eth0", kind="dummy", ifindex=2)
FRESH = Network(links=(LOOPBACK, TUNL0), complete=True)


def network(*links: Link) -> Network:
    return Network(links=(LOOPBACK, *links))


@pytest.mark.parametrize(
    ("link", "fallback"),
    [
        (TUNL0, True),
        (replace(TUNL0, kind="gre"), False),
        (replace(TUNL0, ifname="tunl1"), False),
        (replace(TUNL0, options={"local": "10.0.0.1"}), False),
        (Link(ifname="ip6tnl0", kind="ip6tnl", options={"remote": "::"}), True),
    ],
)
def test_fallback_device_is_one_of_its_name_and_kind_without_ends(link: Link, fallback: bool) -> None:
    assert link.fallback is fallback


@pytest.mark.parametrize(
    ("link", "others", "address"),
    [
        (replace(TUNL0, flags=("up",)), (), ""),
        (replace(TUNL0, alias="mine"), (), ""),
        (replace(TUNL0, altnames=("other",)), (), ""),
        (replace(TUNL0, master="br1"), (), ""),
        (TUNL0, (), "10.0.0.1/24"),
        (TUNL0, (Link(ifname="g0", kind="gre", counterpart=Counterpart(place=Place.INSIDE, ifname="tunl0")),), ""),
    ],
)
def test_fallback_device_travels_when_it_is_used(link: Link, others: tuple[Link, ...], address: str) -> None:
    addresses = (Address(ifname="tunl0", address=address),) if address else ()
    assert travels(link, replace(network(link, *others), addresses=addresses))
    assert not travels(TUNL0, network(TUNL0))


def test_plan_makes_a_used_fallback_device_that_this_kernel_lacks() -> None:
    used = replace(TUNL0, flags=("up",))
    steps = plan_network(network(used), Network(links=(LOOPBACK,), complete=True))
    assert [step.link for step in steps if isinstance(step, MakeLink)] == [used]
    steps = plan_network(network(used), FRESH)
    assert not [step for step in steps if isinstance(step, MakeLink)]
    assert [step.links for step in steps if isinstance(step, AdjustLinks)] == [(LOOPBACK, used)]


@pytest.mark.parametrize(
    ("wanted", "reasons"),
    [
        ((ETH0,), ["the index 2 of eth0 is taken by tunl0"]),
        ((replace(ETH0, ifindex=3),), []),
        ((replace(TUNL0, ifindex=7), replace(ETH0, ifindex=3)), []),  # nobody uses it
        ((replace(TUNL0, ifindex=7, flags=("up",)),), ["tunl0 has the index 2 and not 7"]),
        ((replace(TUNL0, flags=("up",)),), []),
        (
            (replace(TUNL0, flags=("up",), options={**TUNL0.options, "ttl": "7"}),),
            ["the options of tunl0 were changed"],
        ),
        (
            (replace(TUNL0, options={"remote": "10.0.0.1"}),),
            ["the name tunl0 is taken by the driver's own link"],
        ),
    ],
)
def test_what_is_in_the_way_is_told(wanted: tuple[Link, ...], reasons: list[str]) -> None:
    assert list(in_the_way(network(*wanted), FRESH)) == reasons
