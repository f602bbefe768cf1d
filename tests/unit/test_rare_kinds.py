"""HSR, MACsec and AMT as kernels show them (Linux 6.1 and 6.12), what they are given, and in which order they come."""

from __future__ import annotations

import pytest

from ckpt.kernel import macsec, netlink, rtnl_codecs, rtnl_kinds
from ckpt.kernel.netlink import attribute, nested
from ckpt.model.finding import Severity
from ckpt.model.network import Counterpart, Link, Network, Place
from ckpt.model.travel import cannot_travel, why_not
from ckpt.plan import plan_network, steps
from ckpt.plan_group import plan_networks
from tests.unit.test_tunnel_kinds import data_of

SHOWN = {
    "hsr": (
        "1:04000000 2:06000000 4:01154e00012d 5:fffb 7:00",
        {"slave1": "4", "slave2": "6", "supervision_addr": "01:15:4e:00:01:2d", "protocol": "0"},
        {"1": "04000000", "2": "06000000", "3": "2d", "7": "00"},
    ),
    "macsec": (
        "1:324b5f3a9ac00007 3:10 4:0100000100028000 6:00 7:01 8:01 9:01 10:00 11:00 12:01 13:01 5:20000000 15:00",
        {"sci": "324b5f3a9ac00007", "window": "32", "validation": "1", "inc_sci": "1", "offload": "0"},
        {
            "1": "324b5f3a9ac00007",
            "3": "10",
            "4": "0100000100028000",
            "6": "00",
            "7": "01",
            "8": "01",
            "9": "01",
            "10": "00",
            "11": "00",
            "12": "01",
            "13": "01",
            "5": "20000000",
            "15": "00",
        },
    ),
    "amt": (
        "1:01000000 2:08dc 3:08dc 4:04000000 5:0a000001 7:00000000 8:0a000000",
        {"mode": "1", "relay_port": "2268", "local": "10.0.0.1", "discovery": "0.0.0.0", "max_tunnels": "10"},
        {"1": "01000000", "2": "08dc", "3": "08dc", "5": "0a000001", "7": "00000000", "8": "0a000000"},
    ),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_options_are_read_and_given_as_the_kernel_takes_them(kind: str) -> None:
    shown, some, given = SHOWN[kind]
    options, unknown = rtnl_codecs.decode(rtnl_kinds.OPTIONS[kind], data_of(shown))
    assert unknown == []
    assert {name: options[name] for name in some} == some
    made = rtnl_kinds.MADE.get(kind, dict)(options)
    sent = netlink.parse(rtnl_codecs.encode(rtnl_kinds.OPTIONS[kind], made))
    assert {str(number): value.hex() for number, value in sent.items()} == given


def test_macsec_that_does_not_send_its_sci_is_given_the_port_of_it() -> None:
    """macsec_newlink refuses an SCI that is not sent."""
    made = rtnl_kinds.MADE["macsec"]({"sci": "324b5f3a9ac0000b", "inc_sci": "0"})
    assert made == {"inc_sci": "0", "port": "000b"}
    assert netlink.parse(rtnl_codecs.encode(rtnl_kinds.OPTIONS["macsec"], made))[2] == b"\0\x0b"


def test_keys_and_peers_of_a_macsec_are_counted() -> None:
    key, lists = nested(1, attribute(1, b"\0")), {"own": nested(5), "peers": nested(6)}

    def what(own: bytes, peers: bytes) -> str:
        return macsec._what(netlink.parse(own + peers))

    assert what(lists["own"], lists["peers"]) == ""
    peer = nested(1, attribute(1, bytes(8)), nested(3, key, key))
    assert what(nested(5, key), nested(6, peer)).startswith("has 3 keys, which the kernel tells nobody, and 1 peers")


RING = Link(ifname="ring", kind="hsr", ifindex=3, options={"slave1": "9", "slave2": "8", "protocol": "1"})
PORTS = (
    Link(ifname="pb", kind="macvlan", ifindex=8, counterpart=Counterpart(place=Place.INSIDE, ifname="low")),
    Link(ifname="pa", kind="dummy", ifindex=9),
    Link(ifname="low", kind="dummy", ifindex=10),
)


def test_ring_is_made_after_its_ports_and_what_these_stand_on() -> None:
    network = Network(links=(RING, *PORTS))
    planned = plan_network(network, Network())
    made = [step.link.ifname for step in planned if isinstance(step, steps.MakeLink)]
    assert made == ["pa", "low", "pb", "ring"]
    grouped = plan_networks({"": network}, {"": Network()})
    assert [step.link.ifname for _, step in grouped if isinstance(step, steps.MakeLink)] == made


def test_links_that_stand_on_each_other_in_a_circle_end() -> None:
    ring = Link(ifname="ring", kind="hsr", ifindex=3, options={"slave1": "3", "slave2": "4", "protocol": "1"})
    above = Link(ifname="mv", kind="macvlan", ifindex=4, counterpart=Counterpart(place=Place.INSIDE, ifname="ring"))
    planned = plan_network(Network(links=(ring, above)), Network())
    assert sum(isinstance(step, steps.MakeLink) for step in planned) == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"slave1": "4", "slave2": "5", "protocol": "1"}, ""),
        ({"slave1": "4", "slave2": "5", "protocol": "0", "version": "1"}, ""),
        ({"slave1": "4", "slave2": "5", "protocol": "0"}, "which version of HSR"),
        ({"slave1": "4", "protocol": "1"}, "it has lost one of its two ports"),
    ],
)
def test_ring_travels_when_all_is_known_of_it(options: dict[str, str], reason: str) -> None:
    found = why_not(Link(ifname="ring", kind="hsr", options=options))
    assert found.startswith(reason) if reason else found == ""


@pytest.mark.parametrize(
    "kind", ["", "netdevsim", "can", "wwan", "ipoib", "lowpan", "ppp", "slcan", "virt_wifi", "new"]
)
def test_kind_that_no_machine_here_makes_is_refused_with_a_reason(kind: str) -> None:
    [found] = cannot_travel(Network(links=(Link(ifname="x0", kind=kind),)))
    assert (found.severity, found.code, found.subject) == (Severity.BLOCK, "link-kind", "link x0")
    assert found.reason == "links of kind new are not supported" if kind == "new" else len(found.reason) > 20
