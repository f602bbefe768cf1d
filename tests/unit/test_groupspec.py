"""What a group may be asked to be, told from the words alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ckpt.errors import UsageError
from ckpt.model.groupspec import GroupSpec, LinkKind, check_spec, wanted_network
from ckpt.model.network import Address, Counterpart, Link, Network, Place, Route
from ckpt.model.process import Isolation
from ckpt.run import default_name

MAC = "02:00:00:12:34:56"

GOOD = GroupSpec(
    name="web",
    command=("nginx",),
    link="br0",
    addresses=("10.0.0.2/24", "fd00::2/64"),
    gateways=("10.0.0.1", "fd00::1"),
)


def test_check_spec_takes_a_good_one() -> None:
    check_spec(GOOD)


def test_check_spec_refuses_to_let_root_leave_what_is_no_context() -> None:
    assert refusal(root_may_leave=True).code == "leave-context"


@pytest.mark.parametrize("name", ["a", "0a", "a.b_c-d", "a" * 63, "7up"])
def test_check_spec_takes_the_name(name: str) -> None:
    check_spec(replace(GOOD, name=name))


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "_a", "a/b", "a b", "a\n", "ä", "a" * 64, "..", "17"])
def test_check_spec_refuses_the_name(name: str) -> None:
    assert refusal(name=name).code == "name-invalid"


@pytest.mark.parametrize(
    "address", ["10.0.0.2/31", "10.0.0.0/31", "10.0.0.2/32", "fd00::/64", "fe80::5/64", "10.255.255.255/7"]
)
def test_check_spec_takes_the_address(address: str) -> None:
    check_spec(replace(GOOD, addresses=(address,), gateways=()))


@pytest.mark.parametrize(
    "address",
    [
        "",
        "10.0.0.2",
        "fd00::2",
        "10.0.0.256/24",
        "10.0.0.2/33",
        "nonsense",
        "10.0.0.0/24",
        "10.0.0.255/24",
        "127.0.0.1/8",
        "::1/128",
        "::/0",
        "0.0.0.0/0",
        "224.0.0.1/4",
        "ff02::1/16",
        "fe80::1%eth0/64",
        " 10.0.0.2/24",
    ],
)
def test_check_spec_refuses_the_address(address: str) -> None:
    assert refusal(addresses=(address,), gateways=()).code == "address-invalid"


@pytest.mark.parametrize("link", ["", ".", "..", "a/b", "a b", "a:1", "sixteen-letters-", "ü" * 8])
def test_check_spec_refuses_the_link(link: str) -> None:
    assert refusal(link=link).code == "link-invalid"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"command": ()}, "command-missing"),
        ({"command": ("",)}, "command-missing"),
        ({"command": ("a", "b\0c")}, "command-invalid"),
        ({"environment": {"A": "\0"}}, "command-invalid"),
        ({"workdir": "tmp"}, "workdir-relative"),
        ({"link": None}, "link-needed"),
        ({"link": None, "addresses": (), "gateways": (), "kind": LinkKind.MACVLAN}, "link-needed"),
        ({"isolation": Isolation.NONE}, "isolation-network"),
        ({"addresses": ("10.0.0.2/24", "10.0.0.2/16")}, "address-doubled"),
        ({"addresses": ("fd00::2/64", "fd00:0::2/64")}, "address-doubled"),
        ({"gateways": ("10.0.0.1", "10.0.0.3")}, "gateway-doubled"),
        ({"gateways": ("10.0.0.2",)}, "gateway-invalid"),
        ({"gateways": ("nonsense",)}, "gateway-invalid"),
        ({"gateways": ("10.0.1.1",)}, "gateway-unreachable"),
        ({"addresses": ("10.0.0.2/24",), "gateways": ("fd00::1",)}, "gateway-unreachable"),
    ],
)
def test_check_spec_names_what_does_not_fit(changes: dict[str, Any], code: str) -> None:
    assert refusal(**changes).code == code


def test_check_spec_takes_a_link_local_gateway() -> None:
    check_spec(replace(GOOD, gateways=("fe80::1",)))


def test_wanted_network_without_link_is_lo() -> None:
    spec = GroupSpec(name="web", command=("x",))
    assert wanted_network(spec, "ckpt0", MAC) == Network(links=(Link(ifname="lo", kind="loopback", flags=("up",)),))


def test_wanted_network_has_the_veth_pair_addresses_and_default_routes() -> None:
    wanted = wanted_network(GOOD, "ckpt0", MAC)
    assert wanted.link("eth0") == Link(
        ifname="eth0",
        kind="veth",
        mac=MAC,
        counterpart=Counterpart(place=Place.CALLER, ifname="ckpt0", kind="veth", master="br0"),
    )
    assert wanted.addresses == (
        Address(ifname="eth0", address="10.0.0.2/24", broadcast="10.0.0.255"),
        Address(ifname="eth0", address="fd00::2/64", flags=("nodad",)),
        Address(ifname="eth0", address="fe80::ff:fe12:3456/64", scope="link", flags=("nodad",)),
    )
    assert wanted.routes == (
        Route(destination="0.0.0.0/0", gateway="10.0.0.1", ifname="eth0"),
        Route(destination="::/0", gateway="fd00::1", ifname="eth0"),
    )


def test_wanted_network_without_ipv6_asks_for_none() -> None:
    wanted = wanted_network(replace(GOOD, addresses=("10.0.0.2/31",), gateways=()), "ckpt0", MAC)
    assert wanted.addresses == (Address(ifname="eth0", address="10.0.0.2/31"),)


def test_wanted_network_of_a_macvlan_lies_on_its_parent() -> None:
    link = wanted_network(replace(GOOD, kind=LinkKind.MACVLAN, link="eno1"), "ckpt0", MAC).link("eth0")
    assert link is not None
    assert (link.kind, link.options) == ("macvlan", {"mode": "bridge"})
    assert link.counterpart == Counterpart(place=Place.CALLER, ifname="eno1")


@pytest.mark.parametrize("command", ["/usr/bin/redis-server", "./Ünï_c0de.sh", "/", "[", "x" * 200, "A B"])
def test_default_name_is_always_valid(command: str) -> None:
    check_spec(replace(GOOD, name=default_name(command)))


def test_default_name_says_what_runs() -> None:
    assert default_name("/usr/bin/redis-server").startswith("redis-server-")


def refusal(**changes: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        check_spec(replace(GOOD, **changes))
    return caught.value
