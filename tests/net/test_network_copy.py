"""The oracle of the network: read, apply into a fresh namespace, read again, equal; and equal to other tools' eyes."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from ckpt.errors import NetworkError
from ckpt.kernel import apply, conntrack, netns, nft, rtnl, sysctl
from ckpt.kernel.netlink import Netlink
from ckpt.model.network import PAIRED, Counterpart, Link, Network, Place
from ckpt.model.travel import cannot_travel
from ckpt.plan import plan_network
from tests.net import spaces
from tests.net.spaces import comparable, fresh, restored, settle, shell

IPV6_JOIN_ANYCAST = 27
RTNLGRP_LINK = 1

LINKS = {
    "veth-outside": "ip link set eth0 mtu 1400 address 02:11:22:33:44:55 txqueuelen 77 group 5 alias 'a \"b\" $c'",
    "altnames": "ip link property add dev eth0 altname second altname third",
    "names": "ip link set eth0 down; ip link set eth0 name 'é{}$;012345678'",
    "flags": "ip link set eth0 promisc on allmulticast on multicast off; ip link set lo down",
    "limits": """ip link set eth0 gso_max_size 30000 gso_max_segs 99 gro_max_size 40000
        ip link add va type veth peer name vb; ip link set va gro_max_size 8000""",
    "loopback-renamed": """ip link set lo down; ip link set lo name '$lo'; ip link set '$lo' up
        ip addr add 10.9.0.1/32 dev '$lo'; ip -6 addr add fd09::1/64 dev '$lo'
        sysctl -qw 'net.ipv4.conf.$lo.rp_filter=2'
        ip link add lo type veth peer name ol""",
    "down": "ip link set eth0 down",
    "veth-inside": """ip link add va index 50 type veth peer name vb index 51; ip link set va up; ip link set vb up
        ip addr add 10.5.0.1/24 dev va; ip link set vb address 02:00:00:00:00:07 mtu 1300""",
    "bridge": """ip link add br1 index 40 type bridge ageing_time 12345 priority 4096 forward_delay 500
        ip link add va type veth peer name vb; ip link add vc type veth peer name vd
        ip link set vc master br1; ip link set va master br1
        ip link set vc type bridge_slave cost 33 priority 7 hairpin on isolated on
        ip link set va type bridge_slave learning off
        ip link set br1 up; ip link set va up; ip link set vb up""",
    "bridge-empty": "ip link add br1 address 02:00:00:00:00:08 type bridge; ip link set br1 up mtu 1300",
    "macvlan-inside": """ip link add mv0 link eth0 type macvlan mode bridge; ip link set mv0 up
        ip link add mv1 link eth0 type macvlan mode source macaddr add 02:00:00:00:00:09
        ip link set mv1 type macvlan macaddr add 02:00:00:00:00:0a""",
    "macvtap": "ip link add mt0 link eth0 type macvtap mode vepa",
    "ifb": "ip link add ifb7 type ifb; ip link set ifb7 up",
    "dummy": "ip link add d0 type dummy; ip link set d0 up; ip addr add 10.6.0.1/24 dev d0",
    "vlan": """ip link add link eth0 name vl5 type vlan id 5 reorder_hdr off egress-qos-map 1:2 3:4 ingress-qos-map 5:6
        ip link add link vl5 name vl6 type vlan id 6; ip link set vl5 up; ip link set vl6 up""",
    "tun": """ip tuntap add tp0 mode tap user 1000 group 100; ip tuntap add tn0 mode tun vnet_hdr multi_queue
        ip link set tn0 up; ip addr add 10.77.0.1 peer 10.77.0.2 dev tn0""",
}

CARRIED = {
    "addresses-4": """ip addr add 10.0.0.2/24 broadcast 10.0.0.255 dev eth0
        ip addr add 10.0.0.3/24 dev eth0 label eth0:1
        ip addr add 10.0.0.4/24 dev eth0 valid_lft 1000 preferred_lft 500; ip addr del 127.0.0.1/8 dev lo
        ip addr add 10.1.0.4/16 dev eth0 metric 77 scope link; ip addr add 10.2.0.4/16 dev eth0 noprefixroute
        ip addr add 10.3.0.1 peer 10.3.0.2/32 dev eth0""",
    "addresses-6": """ip addr add fd00::2/64 dev eth0; ip addr add fd00::4/64 dev eth0
        ip addr add fd00::3/64 dev eth0 nodad valid_lft 1000 preferred_lft 0
        ip addr add fd00:1::3/64 dev eth0 noprefixroute home; ip addr add fd00:2::3 peer fd00:2::4/128 dev eth0""",
    "link-local-removed": "ip -6 addr flush dev eth0; ip -6 addr add fd00::2/64 dev eth0",
    "routes-4": """ip addr add 10.0.0.2/24 dev eth0; ip addr add 10.0.0.3/24 dev eth0
        ip route add default via 10.0.0.1 mtu 1300 advmss 1200 rto_min 5s initcwnd 20 congctl cubic
        ip route add 10.20.0.0/16 via 10.0.0.9 table 500; ip route add blackhole 10.21.0.0/16
        ip route add unreachable 10.22.0.0/16 metric 5; ip route add prohibit 10.23.0.0/16 table 7
        ip route add throw 10.24.0.0/16 table 7
        ip route add 10.25.0.0/16 nexthop via 10.0.0.7 weight 3 nexthop via 10.0.0.9 dev eth0 weight 2
        ip route add 10.26.0.0/16 via 10.99.0.1 dev eth0 onlink
        ip route add 10.27.0.0/16 dev eth0 src 10.0.0.3 scope link tos 8
        ip route add 10.27.0.0/16 via 10.0.0.8 metric 10
        ip route append 10.27.0.0/16 via 10.0.0.7 metric 10 proto static
        ip route add 10.28.0.0/16 via inet6 fe80::1 dev eth0
        ip route add local 10.30.0.0/16 dev lo table local; ip route del broadcast 10.0.0.255 dev eth0 table local""",
    "route-gateway-gone": """ip addr add 10.0.0.2/24 dev eth0; ip route add 10.88.0.0/24 dev eth0
        ip route add 10.31.0.0/16 via 10.88.0.1; ip route del 10.88.0.0/24""",
    "routes-6": """ip addr add fd00::2/64 dev eth0 nodad; ip -6 route add default via fd00::1
        ip -6 route add fd01::/64 via fe80::9 dev eth0 expires 500 pref high
        ip -6 route add fd02::/64 nexthop via fd00::8 weight 2 nexthop via fd00::9
        ip -6 route add blackhole fd03::/64; ip -6 route add unreachable fd03:1::/64 table 44
        ip -6 route add fd05::/64 via fd00::7 metric 5 mtu 1400""",
    "rules": """ip rule add from 10.0.0.2 table 77; ip rule add fwmark 0x1/0xff lookup 88 prio 100
        ip rule add iif eth0 oif lo ipproto tcp sport 10-20 dport 30 uidrange 5-9 blackhole prio 101
        ip rule add not to 10.0.0.0/8 suppress_prefixlength 0 lookup main prio 102; ip rule del prio 32767
        ip -6 rule add to fd00::/16 goto 40000; ip -6 rule add from fd00::/16 prio 40000 nop""",
    "neighbours": """ip addr add 10.0.0.2/24 dev eth0; ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:01 dev eth0
        ip neigh add proxy 10.0.0.7 dev eth0; ip -6 neigh add fd00::77 lladdr 02:00:00:00:00:01 router dev eth0
        ip -6 neigh add proxy fd00::78 dev eth0""",
    "sysctls": """sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.eth0.rp_filter=2 \
        net.ipv4.ip_local_port_range='2000 3000' net.ipv4.tcp_keepalive_time=99 net.ipv6.conf.default.accept_ra=0 \
        net.core.somaxconn=333 net.ipv4.neigh.eth0.gc_stale_time=61 net.ipv4.neigh.eth0.base_reachable_time_ms=12345 \
        net.ipv6.conf.eth0.disable_ipv6=1 net.ipv6.conf.lo.stable_secret=fd00::1234""",
    "nftables": """nft -f - <<'END'
        table ip x {
            set s { type ipv4_addr; flags timeout; elements = { 1.2.3.4 timeout 1h } ; }
            counter c { packets 5 bytes 77; }
            map m { type inet_service : verdict; elements = { 80 : accept, 90 : drop } ; }
            chain y {
                type filter hook input priority 0; policy accept;
                ct state established counter packets 3 bytes 4 accept
                iif "eth0" ip saddr @s drop
                tcp dport vmap @m
            }
        }
        table inet nat { chain post { type nat hook postrouting priority 100; oif "eth0" masquerade; } ; }
        table netdev early { chain in { type filter hook ingress device "eth0" priority 0; } ; }
END""",
    "nftables-dormant": "nft add table ip6 asleep '{ flags dormant; }'; nft add chain ip6 asleep c",
    "conntrack": """ip addr add 10.0.0.2/24 dev eth0; ip addr add 10.0.0.3/24 dev eth0; nft add table ip x
        nft add chain ip x y '{ type filter hook input priority 0; }'; nft add rule ip x y ct state new
        tcp() { conntrack -I -p tcp --dport 80 -t 5000 "$@"; }; o=10.0.0.2; p=10.0.0.9
        tcp -s $o -d $p --sport 1 --state ESTABLISHED -u SEEN_REPLY,ASSURED -m 7
        tcp -s $o -d $p --sport 2 --state ESTABLISHED -u SEEN_REPLY -n 10.0.0.3
        tcp -s $p -d $o --sport 3 --state ESTABLISHED -u SEEN_REPLY -g 10.0.0.4:8080
        tcp -s fd00::2 -d fd00::9 --sport 1 --state CLOSE_WAIT -u SEEN_REPLY,ASSURED
        conntrack -I -s $o -d $p -p udp --sport 1 --dport 53 -t 500 -u SEEN_REPLY
        conntrack -I -s $o -d $p -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 77 -t 500 -u SEEN_REPLY""",
}


@contextmanager
def copied(group: int) -> Iterator[tuple[Network, int]]:
    """``group`` as records, and its copy; the original is gone before its copy comes, as after a dump."""
    settle(group)
    network = rtnl.read_network(group)
    for link in network.links:
        if link.counterpart and link.counterpart.place == "caller" and link.kind in PAIRED:
            shell(f"ip link del {link.counterpart.ifname}")
    with restored(network) as copy:
        settle(copy)
        yield network, copy


@pytest.mark.parametrize("kind", LINKS)
def test_copy_of_links_is_equal(group: int, kind: str) -> None:
    if kind in ("vlan", "dummy") and not spaces.kernel_has(kind):
        pytest.skip(f"this kernel cannot make a {kind}: tested on the machines that can")
    shell(LINKS[kind], group)
    with copied(group) as (network, copy):
        assert cannot_travel(network) == ()
        spaces.assert_equal(comparable(rtnl.read_network(copy)), comparable(network))


@pytest.mark.parametrize("what", CARRIED)
def test_copy_of_what_links_carry_is_equal(group: int, what: str) -> None:
    shell(CARRIED[what], group)
    with copied(group) as (network, copy):
        assert cannot_travel(network) == ()
        spaces.assert_equal(comparable(rtnl.read_network(copy)), comparable(network))


@pytest.mark.parametrize("what", ["routes-4", "routes-6", "rules", "neighbours", "nftables", "addresses-4"])
def test_copy_looks_equal_to_other_tools(group: int, what: str) -> None:
    shell(CARRIED[what], group)
    settle(group)
    before = spaces.shown(group)
    with copied(group) as (_, copy):
        spaces.assert_equal(spaces.shown(copy), before)


def test_copy_of_all_at_once_looks_equal_to_other_tools(group: int) -> None:
    for what in ("bridge", "macvlan-inside", "veth-inside"):
        shell(LINKS[what].replace("va", f"{what[0]}a").replace("vb", f"{what[0]}b"), group)
    for what in ("addresses-6", "routes-4", "rules", "nftables", "sysctls"):
        shell(CARRIED[what].replace("net.ipv6.conf.eth0.disable_ipv6=1", ""), group)
    settle(group)
    before = spaces.shown(group)
    with copied(group) as (network, copy):
        spaces.assert_equal(spaces.shown(copy), before)
        spaces.assert_equal(comparable(rtnl.read_network(copy)), comparable(network))


def test_copy_keeps_the_outside_end_of_a_veth(group: int) -> None:
    shell("ip link set veth0 address 02:00:00:00:00:55 mtu 1400; ip addr add 192.0.2.1/24 dev veth0")
    with copied(group) as (network, copy):
        counterpart = network.links[1].counterpart
        assert counterpart is not None
        assert (counterpart.master, counterpart.mac, counterpart.mtu) == ("br0", "02:00:00:00:00:55", 1400)
        again = rtnl.read_network(copy).links[1].counterpart
        assert again is not None
        assert spaces.comparable_counterpart(again) == spaces.comparable_counterpart(counterpart)


def test_copy_of_macvlan_on_the_host_is_equal(host: int) -> None:
    shell("ip link add low0 type veth peer name low1; ip link set low0 up; ip link set low1 up")
    with fresh() as space:
        shell(f"ip link add mv0 netns {spaces.path(space)} link low0 type macvlan mode bridge")
        shell("ip link set mv0 up; ip addr add 10.0.0.2/24 dev mv0; ip route add default via 10.0.0.1", space)
        settle(space)
        settle(host)
        network = rtnl.read_network(space)
        # The kernel tears a namespace down some time after its last descriptor; until then the MAC is taken.
        shell("ip link del mv0", space)
    with restored(network) as copy:
        spaces.assert_equal(comparable(rtnl.read_network(copy)), comparable(network))


def test_restored_addresses_are_never_tentative(group: int) -> None:
    shell("sysctl -qw net.ipv6.conf.eth0.accept_dad=1 net.ipv6.conf.default.accept_dad=1", group)
    shell("ip addr add fd00::2/64 dev eth0", group)
    settle(group)
    network = rtnl.read_network(group)
    shell("ip link del veth0")
    with restored(network) as copy:
        assert shell("sysctl -n net.ipv6.conf.eth0.accept_dad", copy) == "1\n"
        assert "tentative" not in shell("ip -6 addr show dev eth0", copy)
        with netns.entered(copy), socket.socket(socket.AF_INET6) as one:
            one.bind(("fd00::2", 0))


def test_restored_flow_is_established(host: int, group: int) -> None:
    rule = "ct state established udp dport 7 counter name hits"
    shell(
        f"""ip addr add 10.0.0.2/24 dev eth0
        nft 'add table ip x {{ counter hits {{ }} ; chain in {{ type filter hook input priority 0; {rule}; }} ; }}'
        conntrack -I -s 10.0.0.1 -d 10.0.0.2 -p udp --sport 5 --dport 7 -t 500 -u SEEN_REPLY""",
        group,
    )
    shell("ip addr add 10.0.0.1/24 dev br0")
    with copied(group) as (_, copy), netns.entered(copy), socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("10.0.0.2", 7))
        server.settimeout(20)
        with netns.entered(host), socket.socket(type=socket.SOCK_DGRAM) as client:
            client.bind(("10.0.0.1", 5))
            client.sendto(b"x", ("10.0.0.2", 7))
        server.recv(10)
        assert "packets 1 " in shell("nft list counter ip x hits", copy)


def test_apply_undone_leaves_the_host_as_it_was(host: int, group: int) -> None:
    shell("ip addr add 10.0.0.2/24 dev eth0; ip route add default via 10.0.0.1", group)
    settle(group)
    network = rtnl.read_network(group)
    shell("ip link del veth0")
    settle(host)
    before = everything(host)
    with fresh() as space, ExitStack() as undo:
        apply.apply(space, plan_network(network, rtnl.read_network(space)), undo)
    settle(host)
    spaces.assert_equal(everything(host), before)


def test_apply_refused_names_object_and_kernels_words(host: int) -> None:
    with fresh() as space:
        shell("ip link set lo up; ip route add 10.9.0.0/16 dev lo", space)
        network = rtnl.read_network(space)
    wrong = tuple(replace(route, gateway="10.77.0.1") if route.table == 254 else route for route in network.routes)
    with pytest.raises(NetworkError) as caught, restored(replace(network, routes=wrong, complete=False)):
        pass
    assert caught.value.code == "route-refused"
    assert caught.value.brief == "cannot add the route to 10.9.0.0/16 in table 254"
    assert caught.value.details == "Nexthop has invalid gateway (Network is unreachable)"


def pair(one: str, other: str, ifindex: int, **changes: Any) -> tuple[Link, Link]:
    """Two links that are each other's counterpart; ``changes`` are of the second."""
    first = Link(ifname=one, kind="veth", ifindex=ifindex, mtu=1500)
    second = replace(first, ifname=other, ifindex=ifindex + 1, **changes)
    ends = [Counterpart(place=Place.INSIDE, ifname=link.ifname, ifindex=link.ifindex) for link in (second, first)]
    return replace(first, counterpart=ends[0]), replace(second, counterpart=ends[1])


def test_apply_refused_a_link_among_many_names_it_and_undoes_all(host: int, group: int) -> None:
    settle(group)
    network = rtnl.read_network(group)
    shell("ip link del veth0")
    settle(host)
    before = everything(host)
    many = [
        link for n in range(20) for link in pair(f"a{n}", f"b{n}", 100 + 2 * n, **{"tx_queues": 5000} if n == 7 else {})
    ]
    with pytest.raises(NetworkError) as caught, restored(replace(network, links=(*network.links, *many))):
        pass
    assert (caught.value.code, caught.value.brief) == ("link-refused", "cannot make the link a7 of kind veth")
    assert caught.value.details == "Invalid number of transmit queues (Invalid argument)"
    settle(host)
    spaces.assert_equal(everything(host), before)


def test_apply_onto_missing_bridge_is_refused_and_undone(group: int) -> None:
    settle(group)
    network = rtnl.read_network(group)
    shell("ip link del veth0; ip link del br0")
    with pytest.raises(NetworkError) as caught, restored(network):
        pass
    assert caught.value.code == "link-missing"
    assert "veth0" not in shell("ip -br link")


def test_read_leaves_out_the_lock(group: int) -> None:
    shell("nft add table inet ckpt-lock-0123abcd", group)
    assert rtnl.read_network(group).nftables == ()


def test_read_names_what_cannot_travel(group: int) -> None:
    if not spaces.kernel_has("vxlan id 5 dstport 4789 local 127.0.0.1"):
        pytest.skip("this kernel has no vxlan")
    shell(f"ip link add vx0 type vxlan id 5 dstport 4789 local 127.0.0.1; ip link set vx0 netns {spaces.path(group)}")
    findings = cannot_travel(rtnl.read_network(group))
    assert [(finding.code, finding.subject) for finding in findings] == [("link-kind", "link vx0")]


def test_read_names_what_records_do_not_hold(group: int) -> None:
    with netns.entered(group), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as member:
        anycast = socket.inet_pton(socket.AF_INET6, "fd00::77") + struct.pack("=i", socket.if_nametoindex("eth0"))
        shell("ip addr add fd00::2/64 dev eth0")
        member.setsockopt(socket.IPPROTO_IPV6, IPV6_JOIN_ANYCAST, anycast)
        found = cannot_travel(rtnl.read_network(group))
    assert ("anycast", "anycast address fd00::77 of eth0") in {(finding.code, finding.subject) for finding in found}


def test_read_repeats_when_something_changes_meanwhile(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Network] = []
    read = rtnl._read

    def read_disturbed(space: int, untouched: bool) -> Network:
        network = read(space, untouched)
        if not reads:
            shell("ip route add blackhole 10.66.0.0/16", group)
        reads.append(network)
        return network

    monkeypatch.setattr(rtnl, "_read", read_disturbed)
    network = rtnl.read_network(group)
    assert len(reads) == 2
    assert "10.66.0.0/16" in {route.destination for route in network.routes}


def test_read_takes_no_notice_of_carriers(host: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that loses its carrier, and has it again, is told of as a link that changes is."""
    settle(group)
    reads: list[Network] = []
    read = rtnl._read

    def read_disturbed(space: int, untouched: bool) -> Network:
        network = read(space, untouched)
        if not reads:
            with Netlink(netns=space, groups=(RTNLGRP_LINK,)) as watcher:
                shell("ip link set veth0 down", host)
                while not watcher.events():
                    time.sleep(0.01)
        reads.append(network)
        return network

    monkeypatch.setattr(rtnl, "_read", read_disturbed)
    rtnl.read_network(group)
    assert "NO-CARRIER" in shell("ip link show eth0", group)
    assert len(reads) == 1


@pytest.mark.parametrize("change", ["ip route {} blackhole 10.66.0.0/16", "nft {} table ip flapping"])
def test_read_refuses_what_changes_each_time(group: int, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verbs = iter(["add", "delete"] * 10)
    read = rtnl._read

    def read_disturbed(space: int, untouched: bool) -> Network:
        network = read(space, untouched)
        shell(change.format(next(verbs)), group)
        return network

    monkeypatch.setattr(rtnl, "_read", read_disturbed)
    with pytest.raises(NetworkError) as caught:
        rtnl.read_network(group)
    assert caught.value.code == "network-changing"


def everything(space: int) -> tuple[object, ...]:
    """All that could be changed of a namespace."""
    tables, _ = nft.read_tables(space)
    return spaces.shown(space), sysctl.read_all(space), tables, conntrack.read_entries(space)
