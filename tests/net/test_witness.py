"""The second oracle is worth something only if it sees: each of its tools notices a change that concerns it."""

from __future__ import annotations

import pytest

from tests.net import witness
from tests.net.oracle import need
from tests.net.spaces import fresh, settle, shell

SCENE = """sysctl -qw net.ipv6.conf.default.accept_dad=0; ip link set lo up
    ip link add br1 address 02:00:00:00:00:09 type bridge; ip link set br1 up
    ip link add v0 type veth peer name v1; ip link set v0 master br1; ip link set v0 up; ip link set v1 up
    ip addr add 10.1.0.1/24 dev v1; ip -6 addr add fd00::1/64 dev v1 nodad"""

CHANGES = {
    "link": ("ip -j -d", "ip link set v1 alias other"),
    "address": ("ip -j -d", "ip addr add 10.1.0.2/24 dev v1"),
    "neighbour": ("ip -j -d", "ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:01 dev v1"),
    "proxy": ("ip -j -d", "ip neigh add proxy 10.1.0.9 dev v1"),
    "nexthop": ("ip -j -d", "ip nexthop add id 7 blackhole"),
    "group": ("ip -j -d", "ip maddr add 01:02:03:04:05:06 dev v1"),
    "route": ("ip -j -d", "ip route add 10.2.0.0/16 via 10.1.0.9"),
    "rule": ("ip -j -d", "ip rule add fwmark 5 lookup 100"),
    "route-6": ("ip -6 -j -d", "ip -6 route add fd02::/64 via fd00::9"),
    "rule-6": ("ip -6 -j -d", "ip -6 rule add fwmark 5 lookup 100"),
    "policy": ("ip", "ip xfrm policy add src 10.0.0.0/8 dst 10.0.0.1 dir out action block"),
    "port": ("bridge -j -d", "ip link set v0 type bridge_slave cost 77"),
    "forwarding": ("bridge -j -d", "bridge fdb add 02:00:00:00:00:07 dev v0 master static"),
    "multicast": ("bridge -j -d", "bridge mdb add dev br1 port v0 grp 239.1.1.1 permanent"),
    "vlan": ("bridge -j -d", "ip link set br1 type bridge vlan_filtering 1; bridge vlan add dev v0 vid 7"),
    "qdisc": ("tc -j", "tc qdisc add dev v1 root pfifo limit 7"),
    "class": ("tc -j", "tc qdisc add dev v1 root handle 1: htb; tc class add dev v1 classid 1:1 htb rate 1mbit"),
    "filter": ("tc -j", "tc qdisc add dev v1 clsact; tc filter add dev v1 egress u32 match u32 0 0 flowid 1:1"),
    "table": ("nft -j list ruleset", "nft add table ip x"),
    "set": ("ipset save", "ipset create s hash:ip"),
    "sysctl": ("sysctl -a --pattern ^net", "sysctl -qw net.ipv4.conf.v1.rp_filter=2"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_change_is_seen_by_the_tool_it_concerns(what: str) -> None:
    tool, script = CHANGES[what]
    need(f"ip link del v0; {SCENE}; {script}", what)
    with fresh() as space:
        shell(SCENE, space)
        settle(space)
        before = witness.seen(space, ["v0", "v1"])
        shell(script, space)
        assert witness.seen(space, ["v0", "v1"])[tool] != before[tool]


def test_namespace_that_stays_as_it_is_is_seen_as_it_was() -> None:
    with fresh() as space:
        shell(SCENE, space)
        settle(space)
        assert witness.seen(space, ["v0", "v1"]) == witness.seen(space, ["v0", "v1"])
