"""The oracle for tunnels: every kind with its options, what is below it, and what it knows of the other side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.kernel import rtnl
from ckpt.model.travel import cannot_travel
from tests.net.oracle import assert_copy_equal, need
from tests.net.spaces import restored, settle, shell

FOUR = "local 10.0.0.1 remote 10.0.0.2"
SIX = "local fd00::1 remote fd00::2"

# The lower links v0 and v1 are a pair inside. Kinds without addresses of their own make IPv6 addresses with a flag that
# nobody can give (stable-privacy), so they are told not to.
NONE_MADE = "sysctl -qw net.ipv6.conf.t0.addr_gen_mode=1"
TUNNELS = {
    "vxlan": f"ip link add t0 address 02:00:00:00:00:07 type vxlan id 5 dstport 4789 {FOUR}",
    "vxlan-options": """ip link add t0 type vxlan id 6 group 239.1.1.1 dev v0 dstport 4790 ttl 5 tos 8 ageing 77 \
            maxaddress 9 srcport 3000 4000 nolearning proxy rsc l2miss l3miss noudpcsum gbp
        ip link add t1 type vxlan id 0 dstport 4791 ttl inherit tos inherit df inherit""",
    "vxlan-six": f"""ip link add t0 type vxlan id 7 {SIX} dstport 4791 flowlabel 0x123 udp6zerocsumtx \
            udp6zerocsumrx remcsumtx remcsumrx df set
        ip link add t1 type vxlan id 8 group ff05::5 dev v1 dstport 4794""",
    "vxlan-external": """ip link add t0 type vxlan external dstport 4792 gpe; ip link set t0 addrgenmode none
        ip link add t1 type vxlan external dstport 4793 ttl 7""",
    "vxlan-scoped": "ip link add t0 type vxlan id 7 remote fe80::9 local fe80::8 dev v1 dstport 4791",
    "geneve": """ip link add t0 type geneve id 5 remote 10.0.0.2 ttl 3 tos 4 dstport 6082 udpcsum
        ip link add t1 type geneve id 6 remote fd00::2 ttl inherit tos inherit flowlabel 4 udp6zerocsumtx udp6zerocsumrx
        ip link add t2 type geneve id 7 remote 10.0.0.2 noudpcsum df set
        ip link add t3 type geneve id 8 remote 10.0.0.3 df inherit""",
    "geneve-external": """ip link add t0 type geneve external dstport 6083
        ip link add t1 type geneve external dstport 6084 innerprotoinherit; ip link set t1 addrgenmode none""",
    "gre": f"""ip link add t0 type gre {FOUR} ikey 1.2.3.4 okey 77 ttl 64 tos 4 icsum ocsum iseq oseq dev v0 fwmark 7
        ip link add t1 type gre local 10.0.0.1 remote 10.0.0.3 nopmtudisc ignore-df tos inherit
        ip link add t2 type gre local 10.0.0.1 remote 239.9.9.9 dev v0 key 5 ocsum""",
    "gre-external": "ip link add t0 type gre external; ip link set t0 addrgenmode none",
    "gre-encapsulated": f"""ip link add t0 type gre {FOUR} encap fou encap-sport auto encap-dport 5555 encap-csum
        ip link add t1 type gretap {FOUR} encap gue encap-sport 7 encap-dport 8 encap-remcsum""",
    "gretap": f"""ip link add t0 address 02:00:00:00:00:07 type gretap {FOUR} key 9 seq ttl 7
        ip link add t1 type gretap external""",
    "erspan": """ip link add t0 type erspan local 10.0.0.1 remote 10.0.0.2 key 30 seq erspan_ver 1 erspan 123
        ip link add t1 type erspan local 10.0.0.1 remote 10.0.0.4 key 31 seq erspan_ver 2 erspan_dir egress \
            erspan_hwid 17
        ip link add t2 type erspan external""",
    "ip6gre": f"""ip link add t0 type ip6gre {SIX} ikey 5 okey 6 csum seq hoplimit 33 encaplimit 3 flowlabel 0x12 \
            tclass 3 dev v0
        ip link add t1 type ip6gre local fd00::1 remote fd00::3 encaplimit none flowlabel inherit tclass inherit \
            dscp inherit fwmark inherit allow-localremote hoplimit 0""",
    "ip6gretap": f"""ip link add t0 address 02:00:00:00:00:07 type ip6gretap {SIX} key 8 fwmark 5
        ip link add t1 type ip6gretap external""",
    "ip6erspan": f"""ip link add t0 type ip6erspan {SIX} key 30 seq erspan_ver 1 erspan 5
        ip link add t1 type ip6erspan local fd00::1 remote fd00::4 key 31 seq erspan_ver 2 erspan_dir ingress \
            erspan_hwid 3
        ip link add t2 type ip6erspan external""",
    "ipip": f"""ip link add t0 type ipip {FOUR} ttl 9 tos inherit dev v0 mode any
        ip link add t1 type ipip local 10.0.0.1 remote 10.0.0.9 mode ipip fwmark 3 nopmtudisc
        ip link add t2 type ipip local 10.0.0.7""",
    "ipip-external": "ip link add t0 type ipip external",
    "ipip-encapsulated": f"ip link add t0 type ipip {FOUR} encap gue encap-sport 77 encap-dport 78 encap-csum",
    "ipip-mpls": f"ip link add t0 type ipip {FOUR} mode mplsip",
    "sit": f"""ip link add t0 type sit {FOUR} ttl 9 mode ip6ip
        ip link add t1 type sit local 10.0.0.1 remote 10.0.0.3 mode any nopmtudisc fwmark 3 dev v0
        ip link add t2 type sit local 10.0.0.6 isatap""",
    "sit-6rd": """ip link add t0 type sit local 10.0.0.5
        ip tunnel 6rd dev t0 6rd-prefix 2001:db8::/32 6rd-relay_prefix 10.0.0.0/8""",
    "ip6tnl": f"""ip link add t0 type ip6tnl {SIX} hoplimit 9 encaplimit none flowlabel 0x55 tclass 0x10 dscp inherit \
            dev v0 mode ipip6
        ip link add t1 type ip6tnl local fd00::1 remote fd00::3 mode any encaplimit 7 flowlabel inherit tclass inherit \
            fwmark inherit allow-localremote
        ip link add t2 type ip6tnl local fd00::1 remote fd00::4 mode ip6ip6 hoplimit 0
        ip link add t3 type ip6tnl remote fd00::5""",
    "ip6tnl-external": "ip link add t0 type ip6tnl external",
    "ip6tnl-encapsulated": f"ip link add t0 type ip6tnl {SIX} encap fou encap-sport 77 encap-dport 78 encap-csum",
    "vti": f"""ip link add t0 type vti {FOUR} ikey 5 okey 6 dev v0 fwmark 9
        ip link add t1 type vti local 10.0.0.7 key 1.2.3.4""",
    "vti6": f"""ip link add t0 type vti6 {SIX} ikey 5 okey 6 dev v0 fwmark 9
        ip link add t1 type vti6 local fd00::7 key 1.2.3.4""",
    "xfrm": """ip link add t0 type xfrm if_id 5 dev v0; ip link add t1 type xfrm if_id 0x6
        ip link set t0 addrgenmode none; ip link set t1 addrgenmode none""",
    "xfrm-external": "ip link add t0 type xfrm external; ip link set t0 addrgenmode none",
    # Without an address of the kernel's own making, which would have a flag that nobody can set (stable-privacy).
    "bareudp": f"""ip link add t0 type bareudp dstport 6635 ethertype mpls_uc srcportmin 1000; {NONE_MADE}""",
    "bareudp-multiproto": f"ip link add t0 type bareudp dstport 6636 ethertype ipv4 multiproto; {NONE_MADE}",
    "on-a-tunnel": f"""ip link add t0 index 90 type gre {FOUR} dev v0
        ip link add t1 index 80 type ipip local 10.0.0.1 remote 10.0.0.5 dev t0""",
    "mtu-and-more": f"""ip link add t0 mtu 1234 txqueuelen 7 type gre {FOUR}; ip link set t0 alias far group 5
        ip link property add dev t0 altname farther; ip link set t0 multicast on""",
    "larger-than-there-is-room-for": """ip link add t0 type vxlan id 5 dstport 4789 local 10.0.0.1 dev v0
        ip link add t1 type vxlan id 6 dstport 4790 local fd00::1 dev v1; ip link set v0 mtu 1400
        ip link set v1 mtu 1380""",
    "changed": f"""ip link add t0 type gre {FOUR} key 5; ip link set t0 type gre {FOUR} key 6 ttl 5
        ip link set t0 mtu 1300""",
}
PAIR = "ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up"
ADDRESSES = "ip addr add 10.0.0.1/24 dev v0; ip addr add fd00::1/64 dev v0 nodad"
UP = """for one in t0 t1 t2 t3; do if ip link show $one >/dev/null 2>&1; then ip link set $one up; fi; done
    ip addr add 10.9.0.1/24 dev t0 || true; ip addr add fd09::1/64 dev t0 nodad || true
    ip route add 10.99.0.0/16 dev t0 || true"""
KNOWING = {
    "places": f"""ip link add t0 type vxlan id 5 dstport 4789 {FOUR} dev v0
        bridge fdb append 00:00:00:00:00:00 dev t0 dst 10.0.0.3
        bridge fdb append 00:00:00:00:00:00 dev t0 dst 10.0.0.4 port 4444 vni 77 via v0
        bridge fdb add 02:00:00:00:00:55 dev t0 dst 10.0.0.4 self static
        bridge fdb append 01:02:03:04:05:06 dev t0 dst 10.0.0.4 self permanent
        bridge fdb append 01:02:03:04:05:06 dev t0 dst 10.0.0.5 self permanent
        bridge fdb add 02:00:00:00:00:56 dev t0 dst 10.0.0.5 self permanent router""",
    "no-default-place": f"""ip link add t0 type vxlan id 5 dstport 4789 {FOUR}
        bridge fdb del 00:00:00:00:00:00 dev t0""",
    "places-by-nexthop": """ip link add t0 type vxlan id 5 dstport 4789 local 10.0.0.1
        ip nexthop add id 1 via 10.0.0.7 fdb; ip nexthop add id 2 group 1 fdb
        bridge fdb add 02:00:00:00:00:59 dev t0 nhid 2 self static""",
    "six": f"""ip link add t0 type vxlan id 5 dstport 4789 {SIX} dev v0
        bridge fdb append 00:00:00:00:00:00 dev t0 dst fd00::77 port 4444 vni 77
        bridge fdb add 02:00:00:00:00:55 dev t0 dst fd00::78""",
    "external": """ip link add t0 type vxlan external dstport 4789
        bridge fdb add 02:00:00:00:00:58 dev t0 dst 10.0.0.6 src_vni 9 vni 10 self static
        bridge fdb append 00:00:00:00:00:00 dev t0 dst 10.0.0.6 src_vni 9""",
    "in-a-bridge": f"""ip link add t0 type vxlan id 5 dstport 4789 {FOUR}; ip link add br1 type bridge
        ip link set t0 master br1; ip link set br1 up
        bridge fdb add 02:00:00:00:00:55 dev t0 dst 10.0.0.4 self master static
        bridge fdb add 02:00:00:00:00:57 dev t0 dst 10.0.0.4 self extern_learn""",
    "vnis": """ip link add t0 type vxlan external vnifilter dstport 4789 local 10.0.0.1 dev v0
        bridge vni add dev t0 vni 100-110; bridge vni add dev t0 vni 200 group 239.1.1.7
        bridge vni add dev t0 vni 300 remote 10.0.0.9""",
}
COMMANDS = ("ip -j -d link", "ip -j addr", "ip -j route", "ip tunnel show", "ip -6 tunnel show", "bridge -j fdb")


@pytest.mark.parametrize("what", TUNNELS)
def test_copy_of_tunnel_is_equal(group: int, what: str) -> None:
    script = TUNNELS[what]
    need(f"{ADDRESSES}\n{script}", f"tunnels as {what}")
    shell(f"{PAIR}\n{ADDRESSES}\n{script}\n{UP}", group)
    network = assert_copy_equal(group, COMMANDS)
    assert cannot_travel(network) == ()


@pytest.mark.parametrize("what", KNOWING)
def test_copy_of_vxlan_knows_the_same(group: int, what: str) -> None:
    need(f"{ADDRESSES}\n{KNOWING[what]}", f"what a vxlan knows as {what}")
    shell(f"{PAIR}\n{ADDRESSES}\n{KNOWING[what]}\n{UP}", group)
    network = assert_copy_equal(group, ("bridge -j -d fdb", "bridge -j vni show", "ip -j -d link"))
    assert cannot_travel(network) == ()


def test_ports_that_receive_for_tunnels_are_opened_again(group: int) -> None:
    script = """ip fou add port 5555 ipproto 4; ip fou add port 5556 gue
        ip fou add port 5557 ipproto 47 local 10.0.0.1
        ip fou add port 5558 ipproto 47 local 10.0.0.1 peer 10.0.0.2 peer_port 99 dev v0"""
    need(f"{ADDRESSES}\n{script}", "ports for tunnels (fou)")
    shell(f"{PAIR}\n{ADDRESSES}\n{script}", group)
    network = assert_copy_equal(group, ("ip -j fou show",))
    assert len(network.fou) == 4
    assert cannot_travel(network) == ()


def test_routers_of_an_isatap_link_are_known_again(group: int) -> None:
    script = """ip link add t0 type sit local 10.0.0.6 isatap; ip link set t0 up
        ip tunnel prl prl-nodefault 10.0.0.8 dev t0; ip tunnel prl prl-default 10.0.0.9 dev t0"""
    need(f"{ADDRESSES}\n{script}", "ISATAP")
    shell(f"{PAIR}\n{ADDRESSES}\n{script}", group)
    network = assert_copy_equal(group, ("ip tunnel show", "ip tunnel prl"))
    assert [(one.address, one.default) for one in network.isatap] == [("10.0.0.8", False), ("10.0.0.9", True)]


def test_tunnel_is_made_with_other_ends_than_it_had(group: int) -> None:
    script = f"ip link add t0 type ipip {FOUR}; ip link add t1 type ip6gre {SIX}"
    need(f"{ADDRESSES}\n{script}", "tunnels for packets")
    shell(f"{PAIR}\n{script}", group)
    settle(group)
    network = rtnl.read_network(group)
    shell("ip link del veth0")
    ends = {"t0": ("10.1.0.1", "10.1.0.2"), "t1": ("fd01::1", "fd01::2")}
    links = tuple(
        replace(link, options={**link.options, "local": ends[link.ifname][0], "remote": ends[link.ifname][1]})
        if link.ifname in ends
        else link
        for link in network.links
    )
    with restored(replace(network, links=links)) as copy:
        made = {link.ifname: link for link in rtnl.read_network(copy).links}
    assert {name: (made[name].options["local"], made[name].options["remote"]) for name in ends} == ends
    assert made["t0"].mac == "0a:01:00:01"


def test_tunnel_keeps_the_index_of_a_lower_link_that_has_gone(group: int) -> None:
    script = f"ip link add w0 type veth peer name w1; ip link add t0 type gre {FOUR} dev w0; ip link del w0"
    need(script, "GRE tunnels")
    shell(script, group)
    network = assert_copy_equal(group, ("ip -j -d link",))
    assert cannot_travel(network) == ()
