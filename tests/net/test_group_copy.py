"""Several namespaces with links between them: read, made anew, read again, equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from ckpt.kernel import apply, rtnl, rtnl_group
from ckpt.model.finding import blocking
from ckpt.model.network import Network, Place
from ckpt.model.travel import cannot_travel
from ckpt.plan_group import plan_networks
from tests.net import spaces
from tests.net.oracle import need
from tests.net.spaces import comparable, fresh, settle, shell

KEYS = ("a", "b", "c")

# Two pairs from a to b, of which the ends in a can become ports.
TWO_WIRES = """in a ip link add pa address 02:00:00:00:00:0a type veth peer name wa netns B
    in a ip link add pb address 02:00:00:00:00:0b type veth peer name wb netns B
    """

ACROSS = {
    "veth": """in a ip link add left index 47 address 02:00:00:00:00:01 type veth peer name right netns B
        in a ip link set left mtu 1400 up; in b ip link set right mtu 1400 up
        in a ip addr add 10.1.0.1/24 dev left; in b ip addr add 10.1.0.2/24 dev right
        in b ip route add default via 10.1.0.1""",
    "veths-of-one-name": """in a ip link add eth9 index 42 type veth peer name eth9 index 42 netns B
        in a ip link set eth9 up; in b ip link set eth9 up; in b ip -6 addr add fd00::1/64 dev eth9 nodad""",
    "bridge": """in a ip link add br5 type bridge; in a ip link set br5 up
        in a ip link add pb master br5 type veth peer name eth0 netns B
        in a ip link add pc master br5 type veth peer name eth0 netns C
        in a ip link set pb up; in a ip link set pc up; in b ip link set eth0 up; in c ip link set eth0 up
        in a ip addr add 10.2.0.1/24 dev br5; in b ip addr add 10.2.0.2/24 dev eth0
        in c ip addr add fd02::3/64 dev eth0 nodad""",
    "macvlan": """in a ip link add low type veth peer name end; in a ip link set low up; in a ip link set end up
        in a ip link add link low name mv0 netns B index 49 type macvlan mode bridge; in b ip link set mv0 up
        in b ip addr add 10.3.0.2/24 dev mv0""",
    "macvlan-of-the-first-on-the-second": """in b ip link add low type veth peer name end; in b ip link set end up
        in b ip link set low up; in b ip link add link end name mv0 netns A type macvlan mode vepa
        in a ip link set mv0 up; in a ip link add link mv0 name mv1 netns C type macvlan mode bridge
        in c ip link set mv1 up""",
    "chain": """in b ip link add up0 type veth peer name down0 netns C
        in a ip link add up0 type veth peer name down0 netns B
        in a ip link set up0 up; in b ip link set down0 up; in b ip link set up0 up; in c ip link set down0 up
        in a ip addr add 10.4.0.1/24 dev up0; in b ip addr add 10.4.0.2/24 dev down0
        in b ip addr add 10.5.0.1/24 dev up0; in c ip addr add 10.5.0.2/24 dev down0
        in c ip route add default via 10.5.0.1; in a ip route add 10.5.0.0/24 via 10.4.0.2""",
    "macvlan-on-one-end-of-a-pair": """in b ip link add va type veth peer name vb; in b ip link set vb up
        in a ip link add m9 type veth peer name n9
        in b ip link set va up; in b ip link add link vb name mv0 netns A type macvlan; in a ip link set mv0 up""",
    "down": "in a ip link add left type veth peer name right netns B; in b ip link set right up",
    "vlan": """in a ip link add low type veth peer name end; in a ip link set low up; in a ip link set end up
        in a ip link add link low name vl5 netns B type vlan id 5; in b ip link set vl5 up""",
    "vxcan": """in a ip link add left index 47 type vxcan peer name right netns B
        in a ip link set left up; in b ip link set right mtu 16 up""",
    "netkit": """in b ip link add left index 47 type netkit mode l3 blackhole peer forward name right netns A
        in a ip link set right mtu 1400 up; in b ip link set left up; in a ip addr add 10.1.0.1/24 dev right""",
    "ipvlan": """in a ip link add low type veth peer name end; in a ip link set low up; in a ip link set end up
        in a ip link add link low name iv0 netns B index 49 type ipvlan mode l3; in b ip link set iv0 up
        in b ip addr add 10.3.0.2/24 dev iv0""",
    "wireguard": """in a ip link add left type veth peer name right netns B; in a ip link set left up
        in b ip link set right up; in a ip addr add 10.1.0.1/24 dev left; in b ip addr add 10.1.0.2/24 dev right
        keys=$(mktemp -d); wg genkey >$keys/one; wg genkey >$keys/other
        in a ip link add wg0 index 61 type wireguard; in b ip link add wg0 index 61 type wireguard
        in a wg set wg0 private-key $keys/one listen-port 5001 peer $(wg pubkey <$keys/other) \\
            allowed-ips 10.8.0.2/32 endpoint 10.1.0.2:5002
        in b wg set wg0 private-key $keys/other listen-port 5002 peer $(wg pubkey <$keys/one) \\
            allowed-ips 10.8.0.1/32,fd08::/64 endpoint 10.1.0.1:5001 persistent-keepalive 25
        rm -r $keys
        in a ip link set wg0 up; in b ip link set wg0 mtu 1380 up; in a ip addr add 10.8.0.1/24 dev wg0
        in b ip addr add 10.8.0.2/24 dev wg0; in b ip route add 10.9.0.0/16 dev wg0""",
    "wireguard-that-sends-in-another": """in a ip link add left type veth peer name right netns B
        in a ip link set left up
        in b ip link set right up; in a ip addr add 10.1.0.1/24 dev left; in b ip addr add 10.1.0.2/24 dev right
        keys=$(mktemp -d); wg genkey >$keys/one; wg genkey >$keys/other
        in a ip link add wg0 index 61 type wireguard; in a wg set wg0 private-key $keys/one listen-port 5001
        in a ip link set wg0 up; in a ip link set wg0 netns C
        in c ip link set wg0 up; in c ip addr add 10.8.0.1/24 dev wg0
        in b ip link add wg0 index 61 type wireguard; in b wg set wg0 private-key $keys/other listen-port 5002
        in b ip link set wg0 up; in b ip addr add 10.8.0.2/24 dev wg0; rm -r $keys""",
    "bonds": f"""{TWO_WIRES}
        in a ip link add bo0 index 92 address 02:00:00:00:00:0e type bond mode active-backup miimon 50
        in b ip link add bo0 index 92 address 02:00:00:00:00:0f type bond mode active-backup miimon 50
        in a ip link set pb master bo0; in a ip link set pa master bo0; in b ip link set wb master bo0
        in a ip link set bo0 up; in b ip link set bo0 up; in b ip link set wa up
        in a ip link add link bo0 name vl5 type vlan id 5; in b ip link add link bo0 name vl5 type vlan id 5
        in a ip link set vl5 up; in b ip link set vl5 up
        in a ip addr add 10.5.0.1/24 dev vl5; in b ip addr add 10.5.0.2/24 dev vl5""",
    "vlan-on-a-bond-elsewhere": f"""{TWO_WIRES} in b ip link set wa up; in b ip link set wb up
        in a ip link add bo0 index 92 address 02:00:00:00:00:0e type bond mode active-backup miimon 50
        in a ip link set pb master bo0; in a ip link set pa master bo0; in a ip link set bo0 up
        in a ip link add link bo0 name vl5 netns C index 93 type vlan id 5
        in c ip link add link vl5 name mv0 type macvlan mode bridge; in c ip link set vl5 up; in c ip link set mv0 up
        in c ip addr add 10.5.0.1/24 dev mv0""",
    "team": f"""{TWO_WIRES} in b ip link set wa up; in b ip link set wb up
        in a ip link add te0 index 70 address 02:00:00:00:00:0c type team
        in a teamnl te0 setoption mode roundrobin
        in a ip link set pb master te0; in a ip link set pa master te0; in a ip link set te0 up
        in a ip link add link te0 name vl5 netns C type vlan id 5; in c ip link set vl5 up
        in c ip addr add 10.5.0.1/24 dev vl5""",
    "vrfs": """in a ip link add red type vrf table 100; in a ip link add blue type vrf table 200
        in a ip link set red up; in a ip link set blue up
        in a ip link add pb type veth peer name eth0 netns B; in a ip link add pc type veth peer name eth0 netns C
        in a ip link set pb master red; in a ip link set pc master blue; in a ip link set pb up; in a ip link set pc up
        in b ip link set eth0 up; in c ip link set eth0 up
        in a ip addr add 10.2.0.1/24 dev pb; in a ip addr add 10.2.0.1/24 dev pc
        in b ip addr add 10.2.0.2/24 dev eth0; in c ip addr add 10.2.0.2/24 dev eth0
        in a ip route add 10.6.0.0/16 via 10.2.0.2 vrf red; in a ip route add 10.6.0.0/16 via 10.2.0.2 vrf blue
        in b ip link add green type vrf table 300; in b ip link set green up; in b ip link set eth0 master green""",
    # The index of each is that of some link in the namespace in which it was made.
    "tunnels": """in a ip link add low type veth peer name end; in a ip link set low up; in a ip link set end up
        in a ip addr add 10.6.0.1/24 dev low; in a ip link add vx0 index 78 type vxlan id 5 dstport 4789 remote 10.6.0.9
        in a ip link add vx1 type vxlan id 6 dstport 4790 remote 10.6.0.9 dev low
        in a ip link set vx0 netns B; in a ip link set vx1 netns C
        in a ip link add decoy index 78 address 02:00:00:00:00:09 type bridge
        in b ip link set vx0 up; in b ip addr add 10.7.0.1/24 dev vx0; in c ip link set vx1 up""",
}
NEEDED = {
    "vlan": "ip link add link v0 name x0 type vlan id 5",
    "vxcan": "ip link add x0 type vxcan",
    "netkit": "ip link add x0 type netkit mode l3 blackhole peer forward name x1",
    "ipvlan": "ip link add link v0 name x0 type ipvlan",
    "wireguard": "ip link add x0 type wireguard",
    "wireguard-that-sends-in-another": "ip link add x0 type wireguard",
    "bonds": "ip link add x0 type bond; ip link add link v0 name x1 type vlan id 5",
    "vlan-on-a-bond-elsewhere": "ip link add x0 type bond; ip link add link v0 name x1 type vlan id 5",
    "team": "ip link add x0 type team; teamnl x0 options; ip link add link v0 name x1 type vlan id 5",
    "vrfs": "ip link add x0 type vrf table 5",
}
"""What a kernel, or an old ip, may be unable to make."""
TOLD = {
    "team": {"team-port-address"},
    "wireguard": {"wireguard-keys"},
    "wireguard-that-sends-in-another": {"wireguard-keys"},
}
"""What is said of them, which is no reason not to travel."""


@contextmanager
def made() -> Iterator[dict[str, int]]:
    """Three fresh namespaces, each with lo up."""
    with ExitStack() as stack:
        found = {key: stack.enter_context(fresh()) for key in KEYS}
        for space in found.values():
            shell("sysctl -qw net.ipv6.conf.default.accept_dad=0; ip link set lo up", space)
        yield found


def fill(namespaces: dict[str, int], script: str) -> None:
    """Run ``script``, in which ``in a`` precedes a command for that namespace and A, B and C are paths to them."""
    for key, space in namespaces.items():
        script = script.replace(f"netns {key.upper()}", f"netns {spaces.path(space)}")
        script = script.replace(f"in {key} ", f"nsenter --net={spaces.path(space)} ")
    shell(script)


def read(namespaces: dict[str, int]) -> dict[str, Network]:
    for space in namespaces.values():
        settle(space)
    return rtnl_group.read_networks(namespaces)


def equal_up_to(network: Network) -> Network:
    """``comparable``, but the index of a counterpart in the group counts."""
    indices = {link.ifname: link.counterpart.ifindex for link in network.links if link.counterpart}
    found = comparable(network)
    return replace(
        found,
        links=tuple(
            replace(link, counterpart=replace(link.counterpart, ifindex=indices[link.ifname]))
            if link.counterpart and link.counterpart.place is Place.ELSEWHERE
            else link
            for link in found.links
        ),
    )


@pytest.mark.parametrize("what", ACROSS)
def test_copy_of_linked_namespaces_is_equal(host: int, what: str) -> None:
    need(NEEDED.get(what, "true"), f"links of kind {what}")
    with made() as originals, ExitStack() as undo:
        fill(originals, ACROSS[what])
        wanted = read(originals)
        lost = {found.code for network in wanted.values() for found in cannot_travel(network)}
        assert lost == TOLD.get(what, set())
        shown = {key: spaces.shown(space) for key, space in originals.items()}
        with ExitStack() as fresh_ones:
            targets = {key: fresh_ones.enter_context(fresh()) for key in KEYS}
            observed = {key: rtnl.read_network(space) for key, space in targets.items()}
            apply.apply_group(targets, plan_networks(wanted, observed), undo)
            again = read(targets)
            for key in KEYS:
                spaces.assert_equal(equal_up_to(again[key]), equal_up_to(wanted[key]))
                spaces.assert_equal(spaces.shown(targets[key]), shown[key])


def test_link_into_a_namespace_that_is_not_the_groups_cannot_travel(host: int) -> None:
    with made() as namespaces:
        fill(namespaces, "in a ip link add left type veth peer name right netns C")
        del namespaces["c"]
        [found] = cannot_travel(read(namespaces)["a"])
        assert (found.severity, found.code, found.subject) == ("block", "link-kind", "link left")


def test_wireguard_of_which_it_cannot_be_told_where_it_sends_cannot_travel(host: int) -> None:
    need("ip link add x0 type wireguard", "links of kind wireguard")
    with made() as namespaces:
        for key, name in (("b", "wg1"), ("c", "wg2")):
            fill(namespaces, f"in {key} ip link add {name} type wireguard; in {key} wg set {name} listen-port 5001")
            fill(namespaces, f"in {key} ip link set {name} up; in {key} ip link set {name} netns A")
            fill(namespaces, f"in a ip link set {name} up")
        found = blocking(cannot_travel(read(namespaces)["a"]))
        assert [(one.code, one.subject) for one in found] == [
            ("wireguard-carrier", "link wg1"),
            ("wireguard-carrier", "link wg2"),
        ]


def test_tunnel_that_is_routed_outside_of_the_group_cannot_travel(host: int) -> None:
    """Its IFLA_LINK is its own index, which some link of that namespace has too."""
    with made() as namespaces, fresh() as third:
        shell("ip link add vx0 index 78 type vxlan id 5 dstport 4789 remote 192.0.2.1", third)
        shell(f"ip link set vx0 netns {spaces.path(namespaces['b'])}; ip link add decoy index 78 type bridge", third)
        network = read(namespaces)["b"]
        link = network.link("vx0")
        assert link is not None and link.counterpart is not None
        assert (link.counterpart.place, link.counterpart.netns) == (Place.ELSEWHERE, "")
        found = blocking(cannot_travel(network))
        assert [one.subject for one in found] == ["link vx0"]
        assert "sends its packets there" in found[0].reason
