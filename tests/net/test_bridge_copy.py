"""The oracle for what bridges keep: VLANs, forwarding entries, multicast groups."""

from __future__ import annotations

import socket

import pytest

from ckpt.kernel import netns, rtnl, rtnl_bridge
from ckpt.kernel.netlink import Netlink
from ckpt.model.travel import cannot_travel
from tests.net import witness
from tests.net.oracle import assert_copy_equal, copied, need, shown_by
from tests.net.spaces import assert_equal, fresh, settle, shell

PORTS = """ip link add br1 {} type bridge mcast_snooping 1 {}; ip link add va type veth peer name vb
    ip link add vc type veth peer name vd; ip link set va master br1; ip link set vc master br1
    for one in br1 va vb vc vd; do ip link set $one up; done
    """

BRIDGES = {
    "switches": "ip link set br1 type bridge no_linklocal_learn 1 mcast_querier 1 group_fwd_mask 8",
    "ports": """ip link set va type bridge_slave cost 7 priority 9 hairpin on guard on root_block on fastleave on \
            learning off flood off mcast_flood off bcast_flood off mcast_to_unicast on neigh_suppress on \
            proxy_arp on proxy_arp_wifi on isolated on mcast_router 2
        ip link set vc type bridge_slave group_fwd_mask 0x8 locked on backup_port va""",
    "forwarding": """bridge fdb add 02:00:00:00:00:66 dev va master static
        bridge fdb add 02:00:00:00:00:67 dev va master permanent
        bridge fdb add 02:00:00:00:00:68 dev vc master static sticky
        bridge fdb add 02:00:00:00:00:69 dev vc master extern_learn
        bridge fdb add 02:00:00:00:00:6a dev br1 self permanent
        bridge fdb add 02:00:00:00:00:6b dev vd self permanent""",
    "forwarding-less": "bridge fdb del $(ip -br link show va | awk '{print $3}') dev va master",
    "groups": """bridge mdb add dev br1 port va grp 239.1.1.1 permanent
        bridge mdb add dev br1 port vc grp ff05::5 permanent
        bridge mdb add dev br1 port va grp 239.1.1.3 src 10.0.0.9 permanent
        bridge mdb add dev br1 port va grp 01:02:03:04:05:06 permanent""",
    "groups-sources": """ip link set br1 type bridge mcast_igmp_version 3 mcast_mld_version 2
        bridge mdb add dev br1 port va grp 239.1.1.1 permanent filter_mode include source_list 10.0.0.1,10.0.0.2
        bridge mdb add dev br1 port vc grp 239.1.1.1 permanent filter_mode exclude source_list 10.0.0.3 proto 99""",
    "vlans": """bridge vlan add dev va vid 10 pvid untagged; bridge vlan add dev va vid 20-30
        bridge vlan add dev vc vid 25; bridge vlan add dev vc vid 4094 untagged; bridge vlan del dev vc vid 1
        bridge vlan add dev br1 vid 20-25 self; bridge vlan add dev br1 vid 7 pvid untagged self
        bridge fdb add 02:00:00:00:00:66 dev va master static vlan 22
        bridge mdb add dev br1 port va grp 239.1.1.1 permanent vid 22""",
    "vlan-tunnels": """ip link set va type bridge_slave vlan_tunnel on; bridge vlan add dev va vid 100-102
        bridge vlan add dev va vid 100-102 tunnel_info id 5100-5102""",
    "vlan-options": """bridge vlan add dev va vid 10-12; bridge vlan add dev br1 vid 10-12 self
        bridge vlan set dev va vid 11 state blocking mcast_router 2
        ip link set br1 type bridge mcast_vlan_snooping 1
        bridge vlan global set dev br1 vid 10-11 mcast_snooping 0 mcast_igmp_version 3 mcast_querier 1""",
}
FILTERING = {"vlans", "vlan-tunnels", "vlan-options"}
COMMANDS = (
    "bridge -j -d link",
    "bridge -j fdb show br br1",
    "bridge -j -d mdb show",
    "bridge -j -d vlan show",
    "bridge -j vlan tunnelshow",
    "bridge -j vlan global show",
    "ip -j -d link",
)


@pytest.mark.parametrize("what", BRIDGES)
def test_copy_of_bridge_is_equal(group: int, what: str) -> None:
    script = PORTS.format("", "vlan_filtering 1" if what in FILTERING else "") + BRIDGES[what]
    need(script, f"what a bridge keeps as {what}")
    shell(script, group)
    network = assert_copy_equal(group, COMMANDS)
    assert cannot_travel(network) == ()


def test_copy_of_bridge_that_never_had_a_port_looks_equal() -> None:
    """Up to its carrier: the reason is with the second oracle's table."""
    with fresh() as space:
        shell(
            """ip link set lo up; ip link add br1 type bridge; ip link set br1 up; ip addr add 10.1.0.1/24 dev br1
            ip addr add fd01::1/64 dev br1 nodad; ip link add link br1 name mv0 type macvlan; ip link set mv0 up
            ip route add 10.2.0.0/16 via 10.1.0.9; ip neigh add proxy 10.1.0.7 dev br1""",
            space,
        )
        settle(space)
        before = witness.seen(space, ["br1", "mv0"])
        with copied(space) as (_, copy):
            assert_equal(witness.seen(copy, ["br1", "mv0"]), before)
            shell("ip link add va type veth peer name vb; ip link set va master br1; ip link set va up", copy)
            shell("ip link set vb up", copy)
            settle(copy)
            assert "LOWER_UP" in shell("ip link show br1", copy)


def test_learnt_entries_stay_behind(group: int) -> None:
    shell(PORTS.format("address 02:00:00:00:00:99", ""), group)
    settle(group)  # a port that does not forward yet learns nothing
    shell("bridge fdb add 02:00:00:00:00:66 dev va master dynamic", group)
    with copied(group) as (network, copy):
        assert "02:00:00:00:00:66" not in {entry.mac for entry in network.bridging.forwarding}
        assert "02:00:00:00:00:66" not in str(shown_by(copy, ("bridge -j fdb",)))


def test_learning_does_not_disturb_reading(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shell(PORTS.format("", ""), group)
    settle(group)
    reads: list[object] = []
    read = rtnl._read

    def read_disturbed(space: int, untouched: bool) -> object:
        network = read(space, untouched)
        shell(f"bridge fdb add 02:00:00:00:01:{len(reads):02x} dev va master dynamic", space)
        reads.append(network)
        return network

    monkeypatch.setattr(rtnl, "_read", read_disturbed)
    rtnl.read_network(group)
    assert len(reads) == 1


def test_group_of_the_link_layer_is_joined_again(group: int) -> None:
    shell("ip maddr add 01:02:03:04:05:06 dev eth0", group)
    network = assert_copy_equal(group, ("ip -j maddr show dev eth0",))
    assert [(one.ifname, one.mac) for one in network.link_multicast] == [("eth0", "01:02:03:04:05:06")]


TUNNEL = """ip link set lo up; ip link add vx0 type vxlan id 5 dstport 4789 local 127.0.0.1; ip link set vx0 up
    ip link add vx1 type vxlan external dstport 4790; ip link set vx1 up"""
PLACES = """bridge fdb append 00:00:00:00:00:00 dev vx0 dst 10.0.0.2
    bridge fdb append 00:00:00:00:00:00 dev vx0 dst 10.0.0.3 port 4444 vni 77 via lo
    bridge fdb add 02:00:00:00:00:55 dev vx0 dst 10.0.0.4 self static
    bridge fdb add 02:00:00:00:00:56 dev vx0 dst 10.0.0.5 self permanent router
    bridge fdb add 02:00:00:00:00:57 dev vx0 dst 10.0.0.6 self extern_learn
    bridge fdb add 02:00:00:00:00:58 dev vx1 dst 10.0.0.6 src_vni 9 vni 10 self static
    ip nexthop add id 1 via 10.0.0.7 fdb; ip nexthop add id 2 group 1 fdb
    bridge fdb add 02:00:00:00:00:59 dev vx0 nhid 2 self static"""


def test_places_that_a_tunnel_knows_are_set_again() -> None:
    need(f"{TUNNEL}\n{PLACES}", "tunnels with forwarding entries")
    with fresh() as space, fresh() as copy, Netlink(netns=space) as here, Netlink(netns=copy) as there:
        shell(f"{TUNNEL}\n{PLACES}", space)
        shell(f"{TUNNEL}; ip nexthop add id 1 via 10.0.0.7 fdb; ip nexthop add id 2 group 1 fdb", copy)
        with netns.entered(space):
            indices = {name: index for index, name in socket.if_nameindex()}
        names = {index: name for name, index in indices.items()}
        wanted = rtnl_bridge.read(here, names, [])
        for _, request in rtnl_bridge.making(there, wanted, indices, only=True):
            request()
        assert rtnl_bridge.read(there, names, []) == wanted
        assert len(wanted.forwarding) == 7
        assert shown_by(copy, ("bridge -j fdb",)) == shown_by(space, ("bridge -j fdb",))
