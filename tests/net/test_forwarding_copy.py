"""The oracle for what routes name and carry: nexthop objects, encapsulations, metrics, label switching."""

from __future__ import annotations

import pytest

from ckpt.model.travel import cannot_travel
from tests.net.oracle import assert_copy_equal, need
from tests.net.spaces import shell

BASE = """ip addr add 10.0.0.2/24 dev eth0; ip addr add fd00::2/64 dev eth0 nodad
    sysctl -qw net.ipv6.conf.all.seg6_enabled=1 net.ipv6.conf.eth0.seg6_enabled=1 2>/dev/null || true
    """

FORWARDING = {
    "nexthops": """ip nexthop add id 1 via 10.0.0.1 dev eth0; ip nexthop add id 7 via 10.0.0.9 dev eth0 proto 99
        ip nexthop add id 3 via fd00::1 dev eth0; ip nexthop add id 4 blackhole; ip nexthop add id 5 dev eth0
        ip nexthop add id 6 via 10.99.0.1 dev eth0 onlink; ip -6 nexthop add id 8 blackhole
        ip nexthop add id 20 group 1,5/7,3; ip nexthop add id 21 group 3
        ip route add 10.30.0.0/16 nhid 20; ip route add 10.31.0.0/16 nhid 1 metric 5; ip route add 10.32.0.0/16 nhid 4
        ip -6 route add fd30::/64 nhid 21; ip -6 route add fd31::/64 nhid 3""",
    "nexthops-compact": """sysctl -qw net.ipv4.nexthop_compat_mode=0
        ip nexthop add id 1 via 10.0.0.1 dev eth0; ip route add 10.30.0.0/16 nhid 1""",
    "nexthops-resilient": """ip nexthop add id 1 via 10.0.0.1 dev eth0; ip nexthop add id 2 via 10.0.0.9 dev eth0
        ip nexthop add id 20 group 1/2 type resilient buckets 32 idle_timer 60 unbalanced_timer 300
        ip route add 10.30.0.0/16 nhid 20""",
    "nexthops-fdb": """ip nexthop add id 1 via 10.0.0.1 fdb; ip nexthop add id 2 via 10.0.0.9 fdb
        ip nexthop add id 20 group 1/2 fdb""",
    "nexthop-encap": """ip nexthop add id 1 encap ip id 5 dst 10.0.0.9 dev eth0
        ip route add 10.30.0.0/16 nhid 1""",
    "encap-ip": """ip route add 10.30.0.0/16 encap ip id 77 src 10.0.0.2 dst 10.0.0.9 ttl 9 tos 4 key csum dev eth0
        ip route add 10.31.0.0/16 encap ip6 id 7 dst fd00::9 hoplimit 9 dev eth0
        ip -6 route add fd30::/64 encap ip id 5 dst 10.0.0.9 via fd00::9 dev eth0""",
    "encap-multipath": """ip route add 10.30.0.0/16 nexthop encap ip id 7 dst 10.0.0.9 via 10.0.0.1 dev eth0 weight 3 \
        nexthop via 10.0.0.9 dev eth0""",
    "encap-mpls": """ip route add 10.30.0.0/16 encap mpls 100/200 ttl 7 via 10.0.0.1 dev eth0
        ip -6 route add fd30::/64 encap mpls 300 via fd00::9""",
    "encap-seg6": """ip -6 route add fd30::/64 encap seg6 mode encap segs fd01::1,fd01::2 dev eth0
        ip -6 route add fd31::/64 encap seg6 mode inline segs fd01::1 dev eth0
        ip route add 10.30.0.0/16 encap seg6 mode encap segs fd01::3 dev eth0""",
    "encap-seg6local": """ip -6 route add fd30::1/128 encap seg6local action End dev eth0
        ip -6 route add fd30::2/128 encap seg6local action End.X nh6 fd00::9 count dev eth0
        ip -6 route add fd30::3/128 encap seg6local action End.DX4 nh4 10.0.0.9 dev eth0""",
    "metrics": """ip route add 10.30.0.0/16 via 10.0.0.1 mtu lock 1300 window 5 rtt 10ms rttvar 20ms ssthresh 9 \
        cwnd lock 5 reordering 4 hoplimit 8 initrwnd 7 features ecn quickack 1 fastopen_no_cookie 1 realms 3/4
        ip -6 route add fd30::/64 via fd00::9 congctl lock cubic rto_min 700ms pref low
        ip -6 route add fd31::/64 via fd00::9 expires 900 proto ra""",
    "families": """ip route add 10.30.0.0/16 via inet6 fd00::9 dev eth0
        ip route add 10.31.0.0/16 nexthop via inet6 fe80::1 dev eth0 weight 2 nexthop via 10.0.0.1
        ip -6 route add default from fd00:7::/64 via fd00::9 dev eth0
        ip -6 route add anycast fd00::aa dev eth0 table local; ip -6 route add multicast ff05::/16 dev eth0
        ip route add multicast 239.0.0.0/8 dev eth0; ip route add nat 10.33.0.0/16 via 10.0.0.1 2>/dev/null || true""",
    "labels": """sysctl -qw net.mpls.platform_labels=1000 net.mpls.conf.eth0.input=1
        ip -f mpls route add 100 as 200/300 via inet 10.0.0.1 dev eth0; ip -f mpls route add 101 dev lo
        ip -f mpls route add 102 via inet6 fd00::9 dev eth0 proto 99 ttl-propagate disabled
        ip -f mpls route add 103 as 7 via link 02:00:00:00:00:07 dev eth0
        ip -f mpls route add 104 nexthop as 5 via inet 10.0.0.1 dev eth0 nexthop via inet 10.0.0.9 dev eth0""",
}
NEEDS = {
    "encap-mpls": "ip route add 10.8.0.0/16 encap mpls 9 dev lo",
    "labels": "sysctl net.mpls.platform_labels",
    "encap-seg6": "ip -6 route add fd08::/64 encap seg6 mode encap segs fd01::1 dev lo",
    "encap-seg6local": "ip -6 route add fd08::/64 encap seg6local action End dev lo",
}
COMMANDS = ("ip -j nexthop", "ip -j -d nexthop", "ip -j -d route show table all", "ip -j -d -6 route show table all")


def require(what: str) -> None:
    if what in NEEDS:
        need(NEEDS[what], what)


@pytest.mark.parametrize("what", FORWARDING)
def test_copy_of_forwarding_is_equal(group: int, what: str) -> None:
    require(what)
    shell(BASE + FORWARDING[what], group)
    assert cannot_travel(assert_copy_equal(group, COMMANDS)) == ()


def test_copy_of_label_routes_looks_equal_to_other_tools(group: int) -> None:
    require("labels")
    shell(BASE + FORWARDING["labels"], group)
    network = assert_copy_equal(group, ("ip -j -f mpls route",))
    assert len(network.label_routes) == 5


def test_nexthop_whose_gateway_lost_its_route_is_restored(group: int) -> None:
    shell(
        BASE
        + """ip route add 10.88.0.0/24 dev eth0; ip nexthop add id 9 via 10.88.0.1 dev eth0
        ip route add 10.30.0.0/16 nhid 9; ip route del 10.88.0.0/24""",
        group,
    )
    assert assert_copy_equal(group).nexthops[0].gateway == "10.88.0.1"
