"""Bonds, teams, pairs and events of links, as far as no kernel is needed for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.kernel import rtnl_bond, rtnl_codecs, rtnl_virtual, team
from ckpt.model.network import Counterpart, Link, Network, Place, Unread
from ckpt.model.teaming import Team, TeamPort
from ckpt.plan import order_ports, plan_network, steps


def on(ifname: str) -> Counterpart:
    return Counterpart(place=Place.INSIDE, ifname=ifname)


PORTS = (
    Link(ifname="br0", kind="bridge", master="red"),
    Link(ifname="red", kind="vrf"),
    Link(ifname="bo0", kind="bond", master="br0", options={"mode": "1", "active_slave": "5"}),
    Link(ifname="pb", kind="dummy", master="bo0", port_number=2),
    Link(ifname="va.5", kind="vlan", master="bo0", port_number=1, counterpart=on("va")),
    Link(ifname="va", kind="dummy"),
)


def test_ports_join_before_their_master_becomes_a_port() -> None:
    assert [link.ifname for link in order_ports(PORTS)] == ["va.5", "pb", "bo0", "br0"]


def test_masters_in_a_circle_end() -> None:
    assert len(order_ports([Link(ifname="a", kind="bond", master="b"), Link(ifname="b", kind="bond", master="a")])) == 2


def test_what_a_bonds_port_stands_on_is_up_first_and_the_active_port_is_chosen_last() -> None:
    planned = plan_network(Network(links=PORTS), Network())
    joined = {step.ifname: step.below for step in planned if isinstance(step, steps.Enslave)}
    assert joined == {"va.5": ("va",), "pb": (), "bo0": (), "br0": ()}
    kinds = [type(step) for step in planned]
    assert kinds.index(steps.ChooseActive) > max(at for at, kind in enumerate(kinds) if kind is steps.BringUp)


def test_teams_have_their_mode_before_they_have_ports() -> None:
    links = (Link(ifname="te0", kind="team"), Link(ifname="pa", kind="dummy", master="te0"))
    wanted = Network(links=links, teams=(Team(ifname="te0", options={"mode": "broadcast"}),))
    kinds = [type(step) for step in plan_network(wanted, Network())]
    assert kinds.index(steps.SetTeamModes) < kinds.index(steps.Enslave) < kinds.index(steps.SetTeams)


def test_bond_is_not_given_what_says_nothing_or_comes_last() -> None:
    options = {"miimon": "50", "active_slave": "5", "ad_actor_system": "00:00:00:00:00:00", "primary": "7"}
    assert rtnl_bond.settable(options) == {"miimon": "50", "primary": "7"}


@given(st.lists(st.ip_addresses(v=4).map(str), max_size=16), st.lists(st.ip_addresses(v=6).map(str), max_size=16))
def test_targets_of_a_bond_keep_their_order(four: list[str], six: list[str]) -> None:
    options = {"arp_ip_target": " ".join(four), "ns_ip6_target": " ".join(six)}
    data = rtnl_codecs.encode(rtnl_bond.BOND, options)
    found, unknown = rtnl_codecs.decode(rtnl_bond.BOND, data)
    again = rtnl_codecs.encode(rtnl_bond.BOND, found)
    assert (again, unknown) == (data, [])


def test_the_other_end_of_a_pair_sees_the_options_exchanged() -> None:
    own = {"primary": "0", "policy": "2", "peer_policy": "0", "mode": "1", "scrub": "0", "peer_scrub": "1"}
    assert rtnl_virtual.seen_from_peer(own) == {
        "primary": "1",
        "policy": "0",
        "peer_policy": "2",
        "mode": "1",
        "scrub": "1",
        "peer_scrub": "0",
    }


OPTIONS = {
    "mode": "loadbalance",
    "notify_peers_count": "3",
    "bpf_hash_func": "0600000000000001",
    "lb_tx_hash_to_port_mapping[255]": "7",
    "enabled": "1",
    "user_linkup": "0",
    "priority": "-5",
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("port", [0, 9])
def test_option_of_a_team_comes_back_as_it_went(name: str, port: int) -> None:
    class Kernel:
        def request(self, command: int, attributes: bytes) -> list[dict[int, bytes]]:
            return [{2: team._encode(name, OPTIONS[name], port)}]

    assert team._options(Kernel(), 7, "te0", []) == {port: {name: OPTIONS[name]}}  # type: ignore[arg-type]


def test_ports_of_a_team_are_numbered_in_its_order() -> None:
    links = [Link(ifname=name, kind="dummy", master="te0") for name in ("a", "b")]
    teams = [Team(ifname="te0", ports=(TeamPort(ifname="b"), TeamPort(ifname="a")))]
    assert [link.port_number for link in team.numbered(links, teams)] == [2, 1]


def test_unknown_option_of_a_team_is_named() -> None:
    class Kernel:
        def request(self, command: int, attributes: bytes) -> list[dict[int, bytes]]:
            return [{2: team._encode("mode", "random", 0).replace(b"mode", b"made")}]

    unread: list[Unread] = []
    assert team._options(Kernel(), 7, "te0", unread) == {}  # type: ignore[arg-type]
    assert [one.what for one in unread] == ["has the unknown option made"]
