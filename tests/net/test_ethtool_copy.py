"""The oracle for what ethtool changes of links, and the finding for a program at a link's door."""

from __future__ import annotations

import pytest

from ckpt.kernel import ethtool, rtnl
from ckpt.model.travel import cannot_travel
from tests.net.oracle import assert_copy_equal, need
from tests.net.spaces import shell

SETTINGS = {
    "veth": "ethtool -K eth0 tso off gro on tx off rx-gro-list on",
    "lo": "ethtool -K lo gso off",
    "bridge": "ip link add br1 type bridge; ip link set eth0 master br1; ethtool -K br1 gso off tx-nocache-copy on",
    "macvlan": "ip link add mv0 link eth0 type macvlan mode bridge; ethtool -K mv0 gro off gso off",
    "tap": "ip tuntap add tp0 mode tap; ethtool -K tp0 tso off; ethtool -C tp0 rx-frames 9",
    "channels": """ip link add va numtxqueues 3 numrxqueues 3 type veth peer name vb numtxqueues 2 numrxqueues 2
        ethtool -L va rx 2 tx 1""",
}


@pytest.mark.parametrize("what", SETTINGS)
def test_copy_of_settings_is_equal(group: int, what: str) -> None:
    need(SETTINGS[what].replace("eth0", "v0"), f"ethtool settings of {what}")
    shell(SETTINGS[what], group)
    links = [line.split("@")[0].split()[0] for line in shell("ip -br link", group).splitlines()]
    network = assert_copy_equal(group, [f"ethtool -{option} {link}" for option in "kl" for link in links])
    assert cannot_travel(network) == ()
    assert any(link.features or link.coalescing or link.channels for link in network.links)


def test_untouched_links_have_no_features_of_their_own(group: int) -> None:
    shell("ip link add br1 type bridge; ip tuntap add tp0 mode tap; ip tuntap add tn0 mode tun", group)
    network = rtnl.read_network(group)
    assert {link.ifname: dict(link.features) for link in network.links if link.features} == {}


@pytest.mark.parametrize("usual", [(2, 2), (9, 9), (0, 0)])
def test_queues_are_as_they_were_whatever_a_veth_gets_by_itself(
    group: int, usual: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that a veth has anyway are not asked for; what it really gets here is one of these, or none."""
    made = shell("ip link add va numtxqueues 2 numrxqueues 2 type veth peer name vb; ethtool -L va rx 1 tx 1", group)
    assert made == ""
    real = ethtool._usual_queues()
    monkeypatch.setattr(ethtool, "_usual_queues", lambda: real if usual == (2, 2) else usual)
    network = assert_copy_equal(group)
    link = network.link("va")
    assert link is not None and (link.tx_queues, dict(link.channels)) == (2, {"rx": 1, "tx": 1})
