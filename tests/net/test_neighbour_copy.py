"""The oracle for neighbours of every kind that somebody can set, and for addresses that say more than their bits."""

from __future__ import annotations

import pytest

from ckpt.kernel import rtnl
from ckpt.model.travel import cannot_travel
from tests.net.oracle import assert_copy_equal, copied, need
from tests.net.spaces import restored, settle, shell

BASE = "ip addr add 10.0.0.2/24 dev eth0; ip -6 addr add fd00::2/64 dev eth0 nodad\n"
NEIGHBOURS = {
    "without-carrier": """ip link add br5 address 02:00:00:00:00:05 type bridge; ip link set br5 up
        ip addr add 10.5.0.2/24 dev br5; ip neigh add proxy 10.5.0.7 dev br5
        ip neigh add 10.5.0.9 lladdr 02:00:00:00:00:01 dev br5 nud noarp
        ip link add va type veth peer name vb; ip link set va up; ip link add mv0 link va type macvlan mode vepa
        ip link set mv0 up; ip addr add 10.6.0.2/24 dev mv0; sleep 1.2
        ip neigh add 10.6.0.9 lladdr 02:00:00:00:00:01 dev mv0 nud noarp""",
    "states": """ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:01 dev eth0 nud noarp
        ip neigh add 10.0.0.8 lladdr 02:00:00:00:00:02 dev eth0 nud permanent protocol 99
        ip neigh add 10.0.0.7 lladdr 02:00:00:00:00:03 dev eth0 extern_learn nud reachable
        ip -6 neigh add fd00::9 lladdr 02:00:00:00:00:04 dev eth0 router nud permanent
        ip neigh add 10.0.0.6 lladdr 02:00:00:00:00:05 dev eth0 nud reachable""",
    "silent-link": """ip link set eth0 arp off; ip neigh add 10.0.0.4 lladdr 02:00:00:00:00:01 dev eth0 nud noarp
        ping -c1 -W1 10.0.0.3 >/dev/null || true""",
    "managed": "ip neigh add 10.0.0.5 dev eth0 managed",
    "proxies": "ip neigh add proxy 10.0.0.7 dev eth0 protocol 42; ip -6 neigh add proxy fd00::78 dev eth0 router",
}


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_copy_of_neighbours_is_equal(group: int, what: str) -> None:
    need((BASE + NEIGHBOURS[what]).replace("eth0", "v0"), f"neighbours: {what}")
    shell(BASE + NEIGHBOURS[what], group)
    commands = ("ip -j neigh show proxy",) if what == "proxies" else ()
    network = assert_copy_equal(group, (*commands, "ip -j neigh show nud permanent"))
    assert cannot_travel(network) == ()
    assert {one.address for one in network.neighbours if ":" not in one.address} == {
        "without-carrier": {"10.5.0.7", "10.5.0.9", "10.6.0.9"},
        "states": {"10.0.0.9", "10.0.0.8", "10.0.0.7"},
        "silent-link": {"10.0.0.4"},
        "managed": {"10.0.0.5"},
        "proxies": {"10.0.0.7"},
    }[what]


ADDRESSES = {
    "flags": """ip addr add 10.0.0.2/24 dev eth0 noprefixroute metric 9 label eth0:x scope link
        ip -6 addr add fd00::2/64 dev eth0 home nodad mngtmpaddr noprefixroute valid_lft 900 preferred_lft 400
        ip -6 addr add fd00:1::2/64 dev eth0 nodad preferred_lft 0 metric 7
        ip addr add 224.5.6.7/32 dev eth0 autojoin""",
    "token": """sysctl -qw net.ipv6.conf.eth0.accept_ra=2 net.ipv6.conf.eth0.use_tempaddr=2
        ip token set ::77 dev eth0""",
    "timers": "sysctl -qw net.ipv4.neigh.eth0.locktime=55 net.ipv6.neigh.eth0.interval_probe_time_ms=3000 || true",
}


@pytest.mark.parametrize("what", ADDRESSES)
def test_copy_of_addresses_is_equal(group: int, what: str) -> None:
    need(ADDRESSES[what].replace("eth0", "v0"), f"addresses: {what}")
    shell(ADDRESSES[what], group)
    commands = ("ip -j -d addr", "ip -j token", "ip -j maddr show dev eth0")
    assert cannot_travel(assert_copy_equal(group, commands)) == ()


def test_temporary_addresses_come_back_as_ordinary_ones_and_no_others(group: int) -> None:
    shell(
        """sysctl -qw net.ipv6.conf.eth0.use_tempaddr=2
        ip -6 addr add fd00::2/64 dev eth0 nodad mngtmpaddr valid_lft 900 preferred_lft 400""",
        group,
    )
    with copied(group) as (network, copy):
        temporary = [one.address for one in network.addresses if "temporary" in one.flags]
        assert len(temporary) == 1
        assert [finding.code for finding in cannot_travel(network)] == ["address-flag"]
        shown = shell("ip -6 -o addr show dev eth0 scope global", copy)
        assert len(shown.splitlines()) == 2
        assert temporary[0] in shown


def test_address_of_another_comes_back_without_that_failure(group: int) -> None:
    """Detection has failed: the kernel does not use the address, and nobody can say so of one that is set."""
    shell("ip link add va type veth peer name vb; ip link set va up; ip link set vb up", group)
    settle(group)
    shell("ip -6 addr add fd05::1/64 dev vb nodad; sysctl -qw net.ipv6.conf.va.accept_dad=1", group)
    shell("ip -6 addr add fd05::1/64 dev va", group)
    shell("until ip -6 -o addr show dev va dadfailed | grep -q fd05; do sleep 0.05; done", group)
    network = rtnl.read_network(group)
    [found] = cannot_travel(network)
    assert (found.code, found.subject) == ("address-flag", "address fd05::1/64 of va")
    assert "dadfailed" in found.reason
    shell("ip link del veth0")
    with restored(network) as copy:
        shown = shell("ip -6 -o addr show dev va", copy)
        assert "fd05::1/64" in shown and "dadfailed" not in shown and "tentative" not in shown
