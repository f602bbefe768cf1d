"""The oracle for traffic control, and the findings for what of it cannot travel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.errors import NetworkError
from ckpt.kernel import rtnl
from ckpt.model.finding import Severity
from ckpt.model.travel import cannot_travel
from tests.net.oracle import assert_copy_equal, need
from tests.net.spaces import fresh, restored, shell

COMMANDS = ("tc -j qdisc", "tc -j class show dev eth0 parent 1:")

TRAFFIC = {
    "htb": """tc qdisc add dev eth0 root handle 1: htb default 20 r2q 5 direct_qlen 77
        tc class add dev eth0 parent 1: classid 1:1 htb rate 10mbit ceil 20mbit burst 5k
        tc class add dev eth0 parent 1:1 classid 1:10 htb rate 3mbit prio 3 quantum 3000 mpu 64 overhead 14
        tc class add dev eth0 parent 1:1 classid 1:20 htb rate 40gbit ceil 50gbit
        tc qdisc add dev eth0 parent 1:10 handle 10: tbf rate 1mbit burst 1601 limit 30000 peakrate 2mbit mtu 1540
        tc qdisc add dev eth0 parent 1:20 handle 20: bfifo limit 5000""",
    "tbf": "tc qdisc add dev eth0 root tbf rate 9123kbit burst 3217 latency 50ms",
    "tbf-wide": "tc qdisc add dev eth0 root tbf rate 40gbit burst 500k limit 10mb",
    "size-table": "tc qdisc add dev eth0 root handle 1: stab linklayer atm overhead 18 mtu 2048 mpu 53 htb default 1",
    "pfifo": "tc qdisc add dev eth0 root pfifo limit 33; tc qdisc add dev lo root handle 5: pfifo_head_drop",
    "noqueue": "ip link add va type veth peer name vb; tc qdisc add dev va root noqueue",
    "clsact": "tc qdisc add dev eth0 clsact",
    "mirred": """ip link add va type veth peer name vb; tc qdisc add dev eth0 handle ffff: ingress
        tc filter add dev eth0 parent ffff: protocol ip prio 5 u32 match ip src 10.1.0.0/16 \
            action mirred egress redirect dev va
        tc filter add dev eth0 parent ffff: protocol all prio 6 u32 match u32 0 0 \
            action mirred egress mirror dev vb index 44""",
    "u32": """tc qdisc add dev eth0 root handle 1: htb
        tc class add dev eth0 parent 1: classid 1:1 htb rate 10mbit
        tc filter add dev eth0 parent 1: prio 5 protocol ip u32
        tc filter add dev eth0 parent 1: prio 5 handle 2: protocol ip u32 divisor 256
        tc filter add dev eth0 parent 1: prio 5 handle 3: protocol ip u32 divisor 1
        tc filter add dev eth0 parent 1: prio 5 protocol ip u32 ht 2:7b: match ip src 1.2.0.123 flowid 1:1
        tc filter add dev eth0 parent 1: prio 5 handle 2:7b:9 protocol ip u32 ht 2:7b: match ip dport 80 0xffff \
            classid 1:1
        tc filter add dev eth0 parent 1: prio 5 protocol ip u32 ht 800:: match ip src 1.2.0.0/16 \
            link 2: hashkey mask 0x000000ff at 12
        tc filter add dev eth0 parent 1: prio 9 protocol ipv6 u32 match ip6 dst fd00::/64 flowid 1:1
        tc filter add dev eth0 parent 1:1 prio 2 protocol ip u32 match mark 5 0xff flowid 1:1""",
    "u32-gaps": """tc qdisc add dev eth0 clsact
        for p in 1 2 3 4 5; do tc filter add dev eth0 ingress prio $p protocol ip u32 match ip sport $p 0xffff \
            flowid 1:1; done
        tc filter del dev eth0 ingress prio 1; tc filter del dev eth0 ingress prio 3
        tc filter add dev eth0 ingress prio 1 protocol ip u32 match ip sport 9 0xffff flowid 1:2
        tc filter add dev eth0 ingress prio 4 handle 5: protocol ip u32 divisor 4
        tc filter add dev eth0 egress chain 7 prio 8 protocol ip u32 match ip sport 9 0xffff flowid 1:3""",
    "blocks": """ip link add va type veth peer name vb
        tc qdisc add dev va ingress_block 22 clsact; tc qdisc add dev vb ingress_block 22 egress_block 23 clsact
        tc filter add block 22 protocol ip prio 5 u32 match ip src 10.1.0.0/16 flowid 1:1
        tc filter add block 23 chain 3 protocol ip prio 5 u32 match ip src 10.1.0.0/16 flowid 1:2
        tc chain add block 22 chain 9""",
    "classic-bpf": """tc qdisc add dev eth0 clsact
        tc filter add dev eth0 ingress bpf bytecode '1,6 0 0 4294967295,' flowid 1:1""",
    "actions": """tc actions add action mirred egress redirect dev lo index 5 cookie 0102
        tc actions add action mirred egress mirror dev lo index 6
        tc qdisc add dev eth0 clsact
        tc filter add dev eth0 ingress protocol ip u32 match ip src 10.1.0.0/16 action mirred index 5""",
    "fq_codel": """tc qdisc add dev eth0 root fq_codel limit 999 flows 64 target 7ms interval 77ms quantum 300 noecn \
        ce_threshold 3ms memory_limit 5mb drop_batch 9""",
    "codel": "tc qdisc add dev eth0 root codel limit 99 target 3ms interval 33ms ecn",
    "fq": "tc qdisc add dev eth0 root fq limit 500 flow_limit 20 maxrate 5mbit nopacing buckets 512",
    "fq_pie": "tc qdisc add dev eth0 root fq_pie limit 500 flows 16 target 13ms tupdate 20ms",
    "pie": "tc qdisc add dev eth0 root pie target 13ms limit 500 tupdate 20ms alpha 3 beta 5 ecn bytemode",
    "cake": "tc qdisc add dev eth0 root cake bandwidth 5mbit diffserv4 nat overhead 18 mpu 64 rtt 55ms ack-filter",
    "netem": """tc qdisc add dev eth0 root handle 3: netem delay 10ms loss gemodel 1% 10% 70% 0.1% duplicate 2% \
        reorder 25% 50% gap 5 corrupt 0.1% rate 1mbit 20 limit 50
        tc qdisc add dev eth0 parent 3:1 handle 4: tbf rate 1mbit burst 1600 limit 3000""",
    "sfq": "tc qdisc add dev eth0 root sfq perturb 10 quantum 3000 limit 100 divisor 512 headdrop",
    "prio": """tc qdisc add dev eth0 root handle 1: prio bands 4 priomap 1 2 3 0 1 2 0 0 1 1 1 1 1 1 1 1
        tc qdisc add dev eth0 parent 1:2 handle 20: pfifo limit 7""",
    "drr": """tc qdisc add dev eth0 root handle 1: drr; tc class add dev eth0 parent 1: classid 1:1 drr quantum 600
        tc class add dev eth0 parent 1: classid 1:2 drr; tc qdisc add dev eth0 parent 1:2 handle 7: sfq""",
    "qfq": """tc qdisc add dev eth0 root handle 1: qfq
        tc class add dev eth0 parent 1: classid 1:1 qfq weight 10 maxpkt 2000""",
    "hfsc": """tc qdisc add dev eth0 root handle 1: hfsc default 2
        tc class add dev eth0 parent 1: classid 1:1 hfsc sc m1 3mbit d 10ms m2 1mbit ul rate 5mbit
        tc class add dev eth0 parent 1:1 classid 1:2 hfsc rt umax 1500b dmax 30ms rate 100kbit ls rate 77kbit""",
    "ets": "tc qdisc add dev eth0 root handle 1: ets bands 4 strict 2 quanta 1500 3000 priomap 0 1 2 3",
    "others": """tc qdisc add dev eth0 root handle 1: prio; tc qdisc add dev eth0 parent 1:1 sfb
        tc qdisc add dev eth0 parent 1:2 hhf limit 77; tc qdisc add dev eth0 parent 1:3 skbprio limit 9""",
    "flower": """tc qdisc add dev eth0 clsact
        tc chain add dev eth0 ingress chain 5 protocol ip flower dst_ip 0.0.0.0/24
        tc filter add dev eth0 ingress protocol ip prio 5 flower src_ip 10.0.0.0/8 ip_proto tcp dst_port 80-90 \
            action drop
        tc filter add dev eth0 ingress protocol 802.1q prio 6 flower skip_hw vlan_id 5 vlan_ethtype ipv4 \
            dst_ip 1.2.3.4 tcp_flags 0x2/0x12 ip_proto tcp action vlan pop action skbedit mark 7 priority 1:5 pass
        tc filter add dev eth0 ingress protocol ip prio 7 chain 5 flower dst_ip 10.1.2.0/24 action goto chain 5
        tc filter add dev eth0 egress protocol ipv6 prio 7 handle 0x77 flower enc_key_id 7 enc_dst_ip fd00::1 \
            geneve_opts 0102:80:00800022/ffff:ff:ffffffff classid 1:7
        tc filter add dev eth0 egress protocol mpls_uc prio 8 flower mpls lse depth 1 label 77 action ok""",
    "matchall": """tc qdisc add dev eth0 clsact
        tc filter add dev eth0 ingress matchall action police rate 1mbit burst 9k \
            peakrate 2mbit mtu 1600 conform-exceed drop/pipe action pedit ex munge ip ttl add 0xff munge eth dst set \
            02:00:00:00:00:01 pipe action csum ip4h action nat ingress 10.0.0.0/24 10.1.0.0 pass
        tc filter add dev eth0 egress prio 7 matchall action police pkts_rate 100 pkts_burst 10 continue
        tc filter add dev eth0 egress prio 9 matchall action tunnel_key set id 5 src_ip 1.2.3.4 dst_ip 1.2.3.5 \
            dst_port 9 action connmark zone 3 pipe action simple sdata hello \
            action vlan push id 9 protocol 802.1ad action mpls push label 8 action drop random determ pass 5""",
    "ct": """tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress matchall action ct commit mark 3/7 nat src \
            addr 1.2.3.4 port 5-9""",
    "police-old": """tc qdisc add dev eth0 handle ffff: ingress
        tc filter add dev eth0 parent ffff: protocol ip prio 50 u32 match ip src 0.0.0.0/0 police rate 1mbit burst 10k \
            drop flowid :1""",
    "classifiers": """tc qdisc add dev eth0 root handle 1: prio
        tc filter add dev eth0 parent 1: prio 1 handle 6/0xff fw classid 1:2 action pass
        tc filter add dev eth0 parent 1: prio 2 protocol ip basic \
            match 'cmp(u8 at 6 layer 1 eq 6) and meta(vlan mask 0 eq 5)' classid 1:3
        tc filter add dev eth0 parent 1: prio 3 protocol all handle 1 flow hash keys src,dst divisor 16 baseclass 1:1
        tc filter add dev eth0 parent 1: prio 4 protocol ip route from 5 to 7 classid 1:2
        tc filter add dev eth0 parent 1: prio 7 handle 1: protocol ip cgroup""",
    "multiqueue": """ip link add mq0 numtxqueues 4 numrxqueues 4 type veth peer name mq1
        tc qdisc add dev mq0 root handle 9: mq; tc qdisc add dev mq0 parent 9:2 handle 10: pfifo limit 7""",
}


@pytest.mark.parametrize("what", TRAFFIC)
def test_copy_of_traffic_control_is_equal(group: int, what: str) -> None:
    need(TRAFFIC[what].replace("eth0", "v0"), what)
    shell(TRAFFIC[what], group)
    hooks = [f"tc -j filter show dev eth0{side}" for side in ("", " ingress", " egress")]
    network = assert_copy_equal(
        group, (*COMMANDS, *hooks, "tc -j actions ls action mirred", "tc -j chain ls dev eth0 ingress")
    )
    assert network.traffic.qdiscs
    assert cannot_travel(network) == ()


def test_untouched_link_has_no_traffic_control(group: int) -> None:
    shell("ip link add va type veth peer name vb; ip link set va up; ip link set vb up", group)
    assert rtnl.read_network(group).traffic.qdiscs == ()


@pytest.mark.parametrize("kind", ["fq_codel", "codel", "pie", "fq_pie"])
def test_qdisc_keeps_its_times_through_copies_of_copies(host: int, kind: str) -> None:
    times = "target 7ms interval 77ms" if "codel" in kind else "target 13ms"
    need(f"tc qdisc add dev v0 root {kind}", kind)
    with fresh() as space:
        shell(f"ip link set lo up; tc qdisc add dev lo root {kind} {times}", space)
        network = rtnl.read_network(space)
    with restored(network) as once:
        again = rtnl.read_network(once)
    with restored(again) as twice:
        assert rtnl.read_network(twice).traffic == network.traffic


INEXACT = {
    "red": "tc qdisc add dev eth0 root red limit 400000 min 30000 max 90000 avpkt 1000 burst 55 probability 0.02",
    "choke": "tc qdisc add dev eth0 root choke limit 400 min 30 max 90 avpkt 1000 burst 55 bandwidth 10mbit",
    "netem-jitter": "tc qdisc add dev eth0 root netem delay 10ms 5ms distribution normal",
}


@pytest.mark.parametrize("what", INEXACT)
def test_what_is_not_shown_whole_is_restored_with_a_warning(group: int, what: str) -> None:
    need(INEXACT[what].replace("eth0", "v0"), what)
    shell(INEXACT[what], group)
    found = cannot_travel(assert_copy_equal(group, COMMANDS))
    assert [(finding.code, finding.severity) for finding in found] == [("tc-inexact", Severity.WARN)]


BLOCKING = {
    "gred": ("tc-kind", "tc qdisc add dev eth0 root gred setup DPs 3 default 2 grio"),
    "u32-mixed": (
        "tc-filter",
        """tc qdisc add dev eth0 clsact
        tc filter add dev eth0 ingress prio 5 protocol ip u32 match ip sport 9 0xffff flowid 1:3
        tc filter add dev eth0 egress prio 5 protocol ip u32 match ip sport 9 0xffff flowid 1:4""",
    ),
    # A list with such a filter in it is broken off by the kernel: it is named then, and not left out.
    "fw-without-options": (
        "tc-unreadable",
        "tc qdisc add dev eth0 root handle 1: htb; tc filter add dev eth0 parent 1: prio 7 protocol ip fw",
    ),
    "plug": ("tc-kind", "tc qdisc add dev eth0 root plug limit 7"),
    "ipset": (
        "tc-filter",
        """ipset create s hash:ip; tc qdisc add dev eth0 root handle 1: prio
        tc filter add dev eth0 parent 1: basic match 'ipset(s src)' classid 1:1""",
    ),
}


@pytest.mark.parametrize("what", BLOCKING)
def test_what_cannot_be_set_again_blocks(group: int, what: str) -> None:
    code, script = BLOCKING[what]
    need(script.replace("eth0", "v0"), what)
    shell(script, group)
    found = cannot_travel(rtnl.read_network(group))
    assert [(finding.code, finding.severity) for finding in found] == [(code, Severity.BLOCK)]
    assert found[0].remedy


def test_refused_qdisc_is_named(group: int) -> None:
    shell("tc qdisc add dev eth0 root handle 1: htb; tc class add dev eth0 parent 1: classid 1:1 htb rate 1mbit", group)
    network = rtnl.read_network(group)
    shell("ip link del veth0")
    traffic = replace(network.traffic, classes=tuple(replace(one, options=b"") for one in network.traffic.classes))
    with pytest.raises(NetworkError) as caught, restored(replace(network, traffic=traffic)):
        pass
    assert caught.value.code == "tc-refused"
    assert caught.value.brief == "cannot make the class 1:1 of eth0"
