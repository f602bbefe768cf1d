"""One link of every kind that travels: what a kernel has of them is copied, and what it lacks is skipped by name.

The other files of the oracle try the options of each kind. This one says which kinds there are, on whichever machine it
runs; at the end of a session `tally` counts them.
"""

from __future__ import annotations

import pytest

from ckpt.model.travel import KINDS, cannot_travel
from tests.net.oracle import assert_copy_equal, need
from tests.net.spaces import fresh, shell

FOUR, SIX = "local 10.0.0.1 remote 10.0.0.2", "local fd00::1 remote fd00::2"

# What follows "ip link add"; v0 and v1 are a pair of veths with addresses, v2 and v3 another.
MADE = {
    "amt": "x0 type amt mode relay local 10.0.0.1 dev v0 relay_port 2269",
    "bareudp": "x0 type bareudp dstport 6635 ethertype mpls_uc",
    "bond": "x0 type bond mode active-backup miimon 50",
    "bridge": "x0 address 02:00:00:00:00:07 type bridge",
    "dummy": "x0 type dummy",
    "erspan": f"x0 type erspan {FOUR} key 30 seq erspan_ver 1 erspan 123",
    "geneve": "x0 type geneve id 5 remote 10.0.0.2",
    "gre": f"x0 type gre {FOUR} key 5",
    "gretap": f"x0 type gretap {FOUR}",
    "hsr": "x0 type hsr slave1 v2 slave2 v0 proto 1",
    "ifb": "x0 type ifb",
    "ip6erspan": f"x0 type ip6erspan {SIX} key 30 seq erspan_ver 1 erspan 5",
    "ip6gre": f"x0 type ip6gre {SIX}",
    "ip6gretap": f"x0 type ip6gretap {SIX}",
    "ip6tnl": f"x0 type ip6tnl {SIX} mode ip6ip6",
    "ipip": f"x0 type ipip {FOUR}",
    "ipvlan": "link v0 name x0 type ipvlan mode l2",
    "ipvtap": "link v0 name x0 type ipvtap mode l2",
    "macsec": "link v0 name x0 type macsec",
    "macvlan": "link v0 name x0 type macvlan mode bridge",
    "macvtap": "link v0 name x0 type macvtap mode vepa",
    "netkit": "x0 type netkit mode l2 forward peer blackhole name x1",
    "nlmon": "x0 type nlmon",
    "sit": f"x0 type sit {FOUR}",
    "team": "x0 type team",
    "vcan": "x0 type vcan",
    "veth": "x0 type veth peer name x1",
    "vlan": "link v0 name x0 type vlan id 5",
    "vrf": "x0 type vrf table 100",
    "vsockmon": "x0 type vsockmon",
    "vti": f"x0 type vti {FOUR} key 5",
    "vti6": f"x0 type vti6 {SIX} key 5",
    "vxcan": "x0 type vxcan peer name x1",
    "vxlan": f"x0 type vxlan id 5 dstport 4789 {FOUR}",
    "wireguard": "x0 type wireguard",
    "xfrm": "x0 type xfrm if_id 5 dev v0",
}
SCRIPTS = {kind: f"ip link add {line}" for kind, line in MADE.items()}
SCRIPTS |= {"loopback": "ip link set lo name x0", "tun": "ip tuntap add x0 mode tap user 7 multi_queue"}

PLACE = """sysctl -qw net.ipv6.conf.default.accept_dad=0; ip link add v2 type veth peer name v3
    for one in v0 v1 v2 v3; do ip link set $one up; done
    ip addr add 10.0.0.1/24 dev v0; ip addr add fd00::1/64 dev v0 nodad"""
# Some kinds would make an IPv6 address with a flag that nobody can give.
UP = "ip link set x0 addrgenmode none 2>/dev/null || true; ip link set x0 alias mine; ip link set x0 up"


def test_there_is_a_script_for_every_kind_that_travels() -> None:
    assert SCRIPTS.keys() == KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_copy_of_a_link_of_each_kind_is_equal(kind: str) -> None:
    script = f"{PLACE}\n{SCRIPTS[kind]}\n{UP}"
    need(script, f"links of kind {kind}")
    with fresh() as space:
        shell(f"ip link set lo up; ip link add v0 type veth peer name v1; {script}", space)
        network = assert_copy_equal(space, ("ip -j -d link",))
    found = network.link("x0")
    assert found is not None and (found.kind, found.alias, found.up) == (kind, "mine", True)
    assert cannot_travel(network) == ()
