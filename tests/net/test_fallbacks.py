"""Namespaces in which tunnel drivers have made links of their own: what is restored into them all the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.errors import NetworkError
from ckpt.kernel import apply, fallbacks, netns, rtnl
from ckpt.model.network import Network
from ckpt.model.travel import cannot_travel
from ckpt.plan import plan_network
from tests.lab import HOST_PROC
from tests.net.spaces import assert_equal, comparable, fresh, settle, shell

SETTING = Path("/proc/sys/net/core/fb_tunnels_only_for_init_net")


@pytest.fixture
def initial() -> Iterator[None]:
    """The test is in the namespace that the machine began with, in which the setting is, and drivers make links."""
    try:
        machine = os.open(HOST_PROC / "1/ns/net", os.O_RDONLY)
    except OSError:
        pytest.skip("the namespace that the machine began with cannot be entered")
    try:
        with netns.entered(machine):
            if not SETTING.exists() or SETTING.read_text() != "0\n" or not _made_by_drivers():
                pytest.skip("no tunnel driver makes links here: tested on the machines where one does")
            yield
            assert SETTING.read_text() == "0\n"
    finally:
        os.close(machine)


def _made_by_drivers() -> list[str]:
    with fresh() as space:
        return [link.ifname for link in rtnl.read_network(space).links if link.fallback]


def _copied(network: Network) -> Network:
    space = fallbacks.create_for(network)
    try:
        with ExitStack() as undo:
            apply.apply(space, plan_network(network, rtnl.read_network(space)), undo)
            settle(space)
            return rtnl.read_network(space)
    finally:
        os.close(space)


def test_index_that_a_driver_takes_is_had(initial: None) -> None:
    with fresh() as space:
        taken = max(link.ifindex for link in rtnl.read_network(space).links)
        shell("ip link set lo up", space)
        shell("ip link add v0 index 90 type veth peer name v1 index 91; ip link set v0 up; ip link set v1 up", space)
        settle(space)
        network = rtnl.read_network(space)
    numbers = {"v0": 2, "v1": taken if taken > 2 else 3}
    wanted = _renumbered(network, numbers)
    copy = _copied(wanted)
    assert {link.ifname: link.ifindex for link in copy.links} == {"lo": 1, **numbers}
    assert_equal(comparable(copy).addresses, comparable(wanted).addresses)


def _renumbered(network: Network, numbers: dict[str, int]) -> Network:
    """The network as of a host whose drivers make no links, where its pair of veths has these numbers."""
    links = tuple(
        replace(
            link,
            ifindex=numbers.get(link.ifname, link.ifindex),
            counterpart=link.counterpart and replace(link.counterpart, ifindex=numbers[link.counterpart.ifname]),
        )
        for link in network.links
        if not link.fallback
    )
    return replace(network, links=links)


def test_used_link_of_a_driver_is_the_same_in_the_copy(initial: None) -> None:
    with fresh() as space:
        name = _made_by_drivers()[0]
        shell(f"ip link set lo up; ip link set {name} up; ip addr add 10.9.0.1/24 dev {name} || true", space)
        settle(space)
        network = rtnl.read_network(space)
    copy = _copied(network)
    assert_equal(comparable(copy), comparable(network))
    assert {found.code for found in cannot_travel(network)} <= {"address-flag"}


def test_link_that_stays_in_the_way_is_named(initial: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallbacks, "_SETTING", Path("/proc/sys/net/core/not-there"))
    name = _made_by_drivers()[0]
    with fresh() as space:
        index = next(link.ifindex for link in rtnl.read_network(space).links if link.ifname == name)
    with fresh() as space:
        shell("ip link add v0 index 90 type veth peer name v1 index 91", space)
        network = rtnl.read_network(space)
    wanted = _renumbered(network, {"v0": index, "v1": 91})
    assert not fallbacks.avoidable()
    assert (name, index) in {(link.ifname, link.ifindex) for link in fallbacks.read()}
    with pytest.raises(NetworkError) as caught:
        fallbacks.create_for(wanted)
    assert (caught.value.code, caught.value.details) == (
        "fallback-device",
        f"the index {index} of v0 is taken by {name}",
    )
