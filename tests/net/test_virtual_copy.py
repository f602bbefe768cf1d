"""The oracle for links that stand for no wire of their own: bonds, routing domains, ipvlans, monitors, CAN buses."""

from __future__ import annotations

import pytest

from ckpt.kernel import rtnl
from ckpt.model.travel import cannot_travel
from tests.net import spaces
from tests.net.oracle import assert_copy_equal, copied, need, shown_by
from tests.net.spaces import assert_equal, comparable, fresh, restored, settle, shell

# Two pairs of which one end each can become a port; their other ends, the wire, are up.
WIRES = """ip link add pa address 02:00:00:00:00:0a type veth peer name wa
    ip link add pb address 02:00:00:00:00:0b type veth peer name wb
    ip link set wa up; ip link set wb up
    """
PORTS = "ip link set pb master bo0; ip link set pa master bo0; ip link set bo0 up; "

BONDS = {
    "round-robin": f"ip link add bo0 type bond mode balance-rr miimon 50 packets_per_slave 3; {PORTS}",
    "active-backup": f"""ip link add bo0 type bond mode active-backup miimon 50 updelay 100 downdelay 150 \
            use_carrier 1 fail_over_mac none primary_reselect better num_grat_arp 3 peer_notify_delay 100 \
            resend_igmp 5 all_slaves_active 1 min_links 0
        {PORTS} ip link set pa type bond_slave queue_id 3
        sleep 0.3; ip link set bo0 type bond active_slave pa""",
    "primary": f"""ip link add bo0 type bond mode active-backup miimon 50
        {PORTS} ip link set bo0 type bond primary pa primary_reselect failure""",
    "own-addresses": f"""ip link add bo0 type bond mode active-backup miimon 50 fail_over_mac active
        {PORTS} ip link set pb type bond_slave queue_id 2; sleep 0.2; ip link set bo0 type bond active_slave pa""",
    "802.3ad": f"""ip link add bo0 address 02:00:00:00:00:0c type bond mode 802.3ad miimon 100 lacp_rate fast \
            ad_select bandwidth xmit_hash_policy layer3+4 ad_actor_sys_prio 7 ad_user_port_key 9 \
            ad_actor_system 02:00:00:00:00:0d min_links 1
        {PORTS}""",
    "802.3ad-usual": f"ip link add bo0 type bond mode 802.3ad; {PORTS}",
    "802.3ad-passive": f"ip link add bo0 type bond mode 802.3ad lacp_active off; {PORTS}",
    "transmit-balancing": f"""ip link add bo0 type bond mode balance-tlb tlb_dynamic_lb 0 lp_interval 5
        {PORTS}""",
    "xor": f"ip link add bo0 type bond mode balance-xor xmit_hash_policy encap2+3 miimon 0; {PORTS}",
    "broadcast": f"ip link add bo0 type bond mode broadcast miimon 70; {PORTS}",
    "port-taken-down": f"""ip link add bo0 type bond mode active-backup miimon 50
        {PORTS} ip link set pa down; ip link set bo0 mtu 1400""",
    "without-ports": "ip link add bo0 type bond mode 802.3ad; ip link add bo1 type bond; ip link set bo1 up",
    "priorities": f"""ip link add bo0 type bond mode active-backup miimon 50
        {PORTS} ip link set pa type bond_slave prio 7; ip link set pb type bond_slave prio -3""",
    "many-queues": f"ip link add bo0 numtxqueues 4 numrxqueues 2 type bond mode active-backup miimon 50; {PORTS}",
}
LINKS = "ip -j -d link"
BOND_COMMANDS = (
    LINKS,
    "ip -j addr",
    "sed -n /Interface:/p /proc/net/bonding/bo0",
    "ip -j route show table all",
)


@pytest.mark.parametrize("what", BONDS)
def test_copy_of_bond_is_equal(group: int, what: str) -> None:
    need(WIRES + BONDS[what], f"bonds with {what}")
    shell(WIRES + BONDS[what] + "\nsleep 0.5", group)
    network = assert_copy_equal(group, BOND_COMMANDS)
    assert cannot_travel(network) == ()


def test_copy_of_bond_that_probes_is_equal(host: int) -> None:
    """On the host's bridge somebody answers one of the two targets; what becomes of the other ends is not asked."""
    bond = """ip link add bo0 type bond mode active-backup arp_interval 200 arp_ip_target 10.0.0.1,10.0.0.9 \
        arp_validate active arp_all_targets any"""
    need(f"{bond} ns_ip6_target fd00::1", "bonds that probe")
    with fresh() as space:
        shell("ip addr add 10.0.0.1/24 dev br0")
        for name in ("a", "b"):
            shell(f"ip link add w{name} type veth peer name p{name} netns {spaces.path(space)}")
            shell(f"ip link set w{name} master br0 up")
        shell(f"{bond} ns_ip6_target fd00::1; {PORTS} ip addr add 10.0.0.2/24 dev bo0; sleep 1", space)
        network = assert_copy_equal(space, BOND_COMMANDS)
    assert network.links[-1].options["arp_ip_target"] == "10.0.0.1 10.0.0.9"


def test_bond_that_probes_in_vain_does_not_disturb_reading(group: int) -> None:
    script = f"{WIRES} ip link add bo0 type bond mode active-backup arp_interval 20 arp_ip_target 10.0.0.9; {PORTS}"
    need(script, "bonds")
    shell(f"{script} ip addr add 10.0.0.2/24 dev bo0; sleep 0.5", group)
    assert rtnl.read_network(group).link("bo0") is not None


def test_port_that_leaves_has_its_own_address_again(group: int) -> None:
    script = f"{WIRES} ip link add bo0 type bond mode active-backup; {PORTS}"
    need(script, "bonds")
    shell(script, group)
    with copied(group) as (network, copy):
        assert {link.mac for link in network.links if link.ifname in ("pa", "pb", "bo0")} == {"02:00:00:00:00:0b"}
        shell("ip link set pa nomaster", copy)
        assert "02:00:00:00:00:0a" in shell("ip -br link show pa", copy)


VIRTUAL = {
    "vrf": """ip link add red type vrf table 100; ip link add blue index 90 type vrf table 200; ip link set red up
        ip link set blue up; ip link add va type veth peer name vb
        ip link set va master red; ip link set vb master blue
        ip link set va up; ip link set vb up; ip addr add 10.5.0.1/24 dev va; ip addr add 10.5.0.1/24 dev vb
        ip addr add fd05::1/64 dev va nodad; ip route add 10.6.0.0/16 via 10.5.0.2 vrf red
        ip route add unreachable default metric 4278198272 vrf red; ip addr add 127.0.0.1/8 dev red
        ip -6 route add fd06::/64 via fd05::2 vrf red; ip route add 10.7.0.0/16 dev va table main""",
    "vrf-strict": """ip link add red type vrf table 100; sysctl -qw net.vrf.strict_mode=1; ip link set red up""",
    "vrf-rule-moved": """ip link add red type vrf table 100; ip link set red up
        ip rule add l3mdev prio 77; ip rule del prio 1000; ip -6 rule del prio 1000""",
    "ipvlan": """ip link add low type veth peer name end; ip link set low up; ip link set end up
        ip link add iv0 link low type ipvlan mode l2 private; ip link add iv1 link low type ipvlan mode l2 private
        ip link set iv0 up; ip addr add 10.5.0.1/24 dev iv0; ip addr add 10.5.0.2/24 dev iv1; ip link set iv1 up""",
    "ipvlan-l3": """ip link add low type veth peer name end; ip link set low up; ip link set end up
        ip link add iv0 link low type ipvlan mode l3 vepa; ip link set iv0 up; ip addr add 10.5.0.1/24 dev iv0""",
    "ipvlan-l3s": """ip link add low type veth peer name end; ip link set low up; ip link set end up
        ip link add iv0 link low type ipvlan mode l3s; ip link set iv0 mtu 1400 up; ip addr add 10.5.0.1/24 dev iv0""",
    "ipvlan-with-less-room": """ip link add low type veth peer name end; ip link set low up; ip link set end up
        ip link add iv0 link low type ipvlan; ip link set iv0 up; ip link set low mtu 1400""",
    "ipvtap": """ip link add low type veth peer name end; ip link set low up; ip link set end up
        ip link add it0 link low type ipvtap mode l2; ip link set it0 up""",
    "nlmon": "ip link add nm0 type nlmon; ip link set nm0 up; ip link add nm1 type nlmon",
    "vcan": "ip link add vc0 type vcan; ip link set vc0 up; ip link add vc1 mtu 16 type vcan",
    "vxcan": """ip link add vx0 index 70 type vxcan peer name vx1 index 71; ip link set vx0 up; ip link set vx1 mtu 16
        ip link set vx1 up""",
    "netkit": """ip link add nk0 index 70 type netkit mode l2 forward peer blackhole name nk1
        ip link set nk0 address 02:00:00:00:00:70 up; ip link set nk1 mtu 1400 up; ip addr add 10.5.0.1/24 dev nk1
        ip link add nk2 type netkit mode l3 scrub none peer scrub none name nk3; ip link set nk3 up""",
}

STACKS = {
    "vlan-on-bond": f"""{WIRES} ip link set bo0 up; ip link add link bo0 name vl5 index 91 type vlan id 5
        ip link add link vl5 name mv0 type macvlan mode bridge
        ip link add red type vrf table 100; ip link set red up; ip link set mv0 master red
        ip link set vl5 up; ip link set mv0 up; ip addr add 10.8.0.1/24 dev mv0""",
    "bond-in-bridge": f"""{WIRES} {PORTS}
        ip link add br1 type bridge; ip link set bo0 master br1; ip link set br1 up
        ip link add red type vrf table 100; ip link set red up; ip link set br1 master red
        ip addr add 10.8.0.1/24 dev br1; ip link add link br1 name vl6 type vlan id 6; ip link set vl6 up""",
    "vlan-down": """ip link add link bo0 name vl5 type vlan id 5; ip link add link vl5 name vl6 type vlan id 6
        ip link set bo0 up; ip link set vl5 down; ip link add link bo0 name mv0 type macvlan""",
    "bond-of-vlans": """ip link add pa type veth peer name wa; ip link set wa up; ip link set pa up
        ip link add link pa name pa.5 type vlan id 5; ip link add link pa name pa.6 type vlan id 6
        ip link set pa.6 master bo0; ip link set pa.5 master bo0; ip link set bo0 up""",
}
for name in STACKS:
    made = "ip link add bo0 index 92 address 02:00:00:00:00:0e type bond mode active-backup miimon 50\n"
    joined = f"\n{PORTS}" if name == "vlan-on-bond" else ""
    VIRTUAL[name] = made + STACKS[name] + joined

COMMANDS = (
    LINKS,
    "ip -j -d addr",
    "ip -j -d -4 route show table all",
    "ip -j -d -6 route show table all",
    "ip -j -d rule",
    "ip -j -d -6 rule",
    "ip vrf show",
    "sysctl net.vrf.strict_mode",
)


@pytest.mark.parametrize("what", VIRTUAL)
def test_copy_of_virtual_links_is_equal(group: int, what: str) -> None:
    need(VIRTUAL[what], f"links as in {what}")
    shell(VIRTUAL[what], group)
    network = assert_copy_equal(group, COMMANDS)
    assert cannot_travel(network) == ()


PAIRS = {
    "vxcan": "ip link add out0 type vxcan peer name in0",
    "netkit-primary-outside": "ip link add out0 type netkit mode l2 forward peer blackhole name in0",
    "netkit-primary-inside": "ip link add in0 type netkit mode l3 forward peer blackhole name out0",
}


@pytest.mark.parametrize("what", PAIRS)
def test_copy_of_pair_with_one_end_on_the_host_is_equal(host: int, what: str) -> None:
    need(PAIRS[what], f"links as in {what}")
    with fresh() as space:
        shell(f"{PAIRS[what]}; ip link set in0 netns {spaces.path(space)}; ip link set out0 up")
        shell("ip link set in0 up; ip link set lo up", space)
        network = assert_copy_equal(space, COMMANDS)
    assert cannot_travel(network) == ()
    assert [link.counterpart.ifname for link in network.links if link.counterpart] == ["out0"]


def test_copy_of_ipvlan_on_the_host_is_equal(host: int) -> None:
    need("ip link add link v0 name x0 type ipvlan", "links of kind ipvlan")
    with fresh() as space:
        stand_on_the_host(host, space, "ipvlan")
        before = shown_by(space, COMMANDS)
        network = rtnl.read_network(space)
        assert cannot_travel(network) == ()
        shell("ip link del iv0", space)
    with restored(network) as copy:
        settle(copy)
        assert_equal(comparable(rtnl.read_network(copy)), comparable(network))
        assert_equal(shown_by(copy, COMMANDS), before)


def test_ipvtap_on_the_host_cannot_travel(host: int) -> None:
    """The kernel gives the number of the link it stands on, but not that this is in another namespace."""
    need("ip link add link v0 name x0 type ipvtap", "links of kind ipvtap")
    with fresh() as space:
        stand_on_the_host(host, space, "ipvtap")
        [found] = cannot_travel(rtnl.read_network(space))
    assert (found.code, found.subject, found.reason) == ("link-kind", "link iv0", "what it stands on is not known")


def stand_on_the_host(host: int, space: int, kind: str) -> None:
    """iv0 in ``space`` on low0 of the host, which has the index of a bridge in ``space``."""
    shell("ip link add low0 index 55 type veth peer name low1; ip link set low0 up; ip link set low1 up", host)
    shell(f"ip link add iv0 index 77 link low0 type {kind} mode l2; ip link set iv0 netns {spaces.path(space)}", host)
    shell("ip link add br9 index 55 address 02:00:00:00:00:55 type bridge", space)
    shell("ip link set iv0 up; ip addr add 10.0.0.2/24 dev iv0", space)
    settle(space)
