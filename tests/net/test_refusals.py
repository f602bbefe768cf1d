"""A restore that the kernel refuses in the middle: of whatever class the object is, the error names it and has the
kernel's own words, and of all that was made before nothing is left outside of the namespace.

Each class has a namespace that can be copied, and one record in it that no kernel takes. The namespace is attached to
the host's bridge, so that a link is made outside before the object's turn comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ckpt.errors import NetworkError
from ckpt.kernel import rtnl
from ckpt.kernel.netlink import attribute, nested
from ckpt.model.bridging import BridgeVlan, ForwardingEntry, MulticastEntry
from ckpt.model.encapsulation import FouPort
from ckpt.model.filtering import IpSet, LegacyTable, NamedObject
from ckpt.model.forwarding import GroupMember, LabelHop, LabelRoute, NexthopObject
from ckpt.model.ipsec import XfrmPolicy, XfrmSelector
from ckpt.model.network import (
    Address,
    ConntrackEntry,
    Counterpart,
    Expectation,
    FlowTuple,
    Link,
    LinkMulticast,
    Neighbour,
    Network,
    NftObject,
    NftTable,
    Place,
    Route,
    Rule,
)
from ckpt.model.secret import Secret
from ckpt.model.traffic import Action, Chain, Filter, Qdisc, TrafficClass
from ckpt.model.wireguard import WireguardDevice
from tests.net.oracle import need
from tests.net.spaces import assert_equal, restored, settle, shell, shown

Spoil = Callable[[Network], Network]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What is added to or changed in a network, and what is said of it; ``needs`` is what a kernel may not have."""

    spoil: Spoil
    code: str
    brief: str
    words: str
    scene: str = "true"
    needs: str = ""


def more(field: str, *records: Any) -> Spoil:
    """These records too; ``field`` may be one of a part of the network (``bridging.vlans``)."""

    part, _, inner = field.rpartition(".")

    def spoil(network: Network) -> Network:
        holder: Any = getattr(network, part) if part else network
        changes: Any = {inner: (*getattr(holder, inner), *records)}
        if part:
            changes = {part: replace(holder, **changes)}
        return replace(network, **changes)

    return spoil


def link(ifname: str, **changes: Any) -> Spoil:
    """The link otherwise."""
    return lambda network: replace(
        network, links=tuple(replace(one, **changes) if one.ifname == ifname else one for one in network.links)
    )


def options(**changes: str) -> Spoil:
    """The link t0 with these options otherwise."""

    def spoil(network: Network) -> Network:
        found = network.link("t0")
        assert found is not None
        return link("t0", options={**found.options, **changes})(network)

    return spoil


FLOW = FlowTuple(source="10.0.0.9", destination="10.0.0.2", source_port=5000, destination_port=21)
BACK = FlowTuple(source="10.0.0.2", destination="10.0.0.9", source_port=21, destination_port=5000)
MASK = FlowTuple(source="255.255.255.255", destination="255.255.255.255")
TRACKED = ConntrackEntry(original=FLOW, reply=BACK, protocol=6, status=14, timeout=500, protocol_state={"state": 3})
POLICY = XfrmPolicy(direction=1, selector=XfrmSelector(family=4, source="10.0.0.0/8", destination="0.0.0.0/0"))
LOOKUP = nested(1, attribute(1, b"lookup\0"), nested(2, attribute(1, b"nowhere\0"), attribute(2, b"\0\0\0\1")))
TABLE = NftTable(
    family="ip",
    name="x",
    text="",
    objects=(
        NftObject(kind="table", attributes=attribute(1, b"x\0")),
        NftObject(kind="chain", attributes=attribute(1, b"x\0") + attribute(3, b"y\0")),
        NftObject(kind="rule", attributes=attribute(1, b"x\0") + attribute(2, b"y\0") + nested(4, LOOKUP)),
    ),
)
WHITE = "02:00:00:00:00:77"
ADDRESSES = "ip addr add 10.0.0.2/24 dev eth0; ip -6 addr add fd00::2/64 dev eth0 nodad"

REFUSED = {
    "link": Refused(
        scene="ip link add t0 type vxlan id 5 dstport 4789 local 127.0.0.1",
        needs="vxlan",
        spoil=options(id="16777216"),
        code="link-refused",
        brief="cannot make the link t0 of kind vxlan",
        words="Numerical result out of range",
    ),
    "link on a link": Refused(
        spoil=more(
            "links",
            Link(ifname="m0", kind="macvlan", counterpart=Counterpart(place=Place.INSIDE, ifname="lo", ifindex=1)),
        ),
        code="link-refused",
        brief="cannot make the link m0 of kind macvlan",
        words="Invalid argument",
    ),
    "index": Refused(
        spoil=more("links", Link(ifname="d0", kind="ifb", ifindex=1)),
        code="link-refused",
        brief="cannot make the link d0 of kind ifb",
        words="exists",
    ),
    "port": Refused(
        scene="ip link add br5 type bridge",
        spoil=link("lo", master="br5"),
        code="link-master",
        brief="cannot make the link lo a port of br5",
        words="Invalid argument",
    ),
    "attribute": Refused(
        spoil=link("eth0", mac="01:00:00:00:00:01"),
        code="link-refused",
        brief="cannot make the link eth0 of kind veth with veth0 outside",
        words="Cannot assign requested address",
    ),
    "token": Refused(
        spoil=link("lo", token="::5"),
        code="link-refused",
        brief="cannot set the token of lo",
        words="Device is loopback (Invalid argument)",
    ),
    "address": Refused(
        spoil=more("addresses", Address(ifname="eth0", address="10.7.0.1/24", valid_lifetime=5, preferred_lifetime=10)),
        code="address-refused",
        brief="cannot add the address 10.7.0.1/24 of eth0",
        words="Invalid argument",
    ),
    "address of IPv6": Refused(
        spoil=more("addresses", Address(ifname="eth0", address="ff02::7/64")),
        code="address-refused",
        brief="cannot add the address ff02::7/64 of eth0",
        words="Cannot assign requested address",
    ),
    "route": Refused(
        spoil=more("routes", Route(destination="10.9.0.0/16", ifname="eth0", congestion_control="no-such")),
        code="route-refused",
        brief="cannot add the route to 10.9.0.0/16 in table 254",
        words="Unknown tcp congestion algorithm (Invalid argument)",
    ),
    "route of IPv6": Refused(
        scene=ADDRESSES,
        spoil=more("routes", Route(destination="fd09::/64", ifname="eth0", gateway="fd00::2")),
        code="route-refused",
        brief="cannot add the route to fd09::/64 in table 254",
        words="Gateway can not be a local address (Invalid argument)",
    ),
    "rule": Refused(
        spoil=more("rules", Rule(family=4, priority=77, values={"sport_range": "20-10"})),
        code="rule-refused",
        brief="cannot add the IPv4 rule 77",
        words="Invalid sport range (Invalid argument)",
    ),
    "neighbour": Refused(
        spoil=more("neighbours", Neighbour(ifname="eth0", address="10.0.0.9", mac="02:00")),
        code="neighbour-refused",
        brief="cannot add the neighbour 10.0.0.9 on eth0",
        words="Invalid link address (Invalid argument)",
    ),
    "next hop": Refused(
        spoil=more("nexthops", NexthopObject(id=7, group=(GroupMember(id=99),))),
        code="nexthop-refused",
        brief="cannot make the nexthop object 7",
        words="Invalid nexthop id (Invalid argument)",
    ),
    "label route": Refused(
        scene=f"{ADDRESSES}; sysctl -qw net.mpls.platform_labels=100",
        needs="label switching",
        spoil=more("label_routes", LabelRoute(label=100, hops=(LabelHop(ifname="eth0", via="10.0.0.9"),))),
        code="route-refused",
        brief="cannot add the route of label 100",
        words="platform_labels (Invalid argument)",
    ),
    "group of a link": Refused(
        spoil=more("link_multicast", LinkMulticast(ifname="gone", mac="01:00:5e:00:00:01")),
        code="multicast-refused",
        brief="cannot join the group 01:00:5e:00:00:01 of gone",
        words="No such device",
    ),
    "discipline": Refused(
        spoil=more("traffic.qdiscs", Qdisc(ifname="eth0", kind="tbf", handle="1:", parent="root")),
        code="tc-refused",
        brief="cannot make the qdisc 1: of eth0",
        words="Invalid argument",
    ),
    "class": Refused(
        scene="tc qdisc add dev eth0 root handle 1: htb",
        needs="htb",
        spoil=more("traffic.classes", TrafficClass(ifname="eth0", kind="htb", handle="1:1", parent="1:")),
        code="tc-refused",
        brief="cannot make the class 1:1 of eth0",
        words="Invalid argument",
    ),
    "filter": Refused(
        scene="tc qdisc add dev eth0 clsact",
        needs="clsact",
        spoil=more(
            "traffic.filters",
            Filter(kind="no-such", priority=5, protocol=0x800, handle=1, ifname="eth0", parent="ffff:fff2"),
        ),
        code="tc-refused",
        brief="cannot make the filter 1 of priority 5 at ffff:fff2 of eth0",
        words="TC classifier not found (No such file or directory)",
    ),
    "chain": Refused(
        spoil=more("traffic.chains", Chain(parent="ffff:fff2", number=5, ifname="eth0")),
        code="tc-refused",
        brief="cannot make the chain 5 at ffff:fff2 of eth0",
        words="Parent Qdisc doesn't exists (Invalid argument)",
    ),
    "action": Refused(
        spoil=more("traffic.actions", Action(kind="mirred", index=5, attributes=attribute(1, b"mirred\0"))),
        code="tc-refused",
        brief="cannot make the action 5 of kind mirred",
        words="Invalid argument",
    ),
    "VLAN of a port": Refused(
        spoil=more("bridging.vlans", BridgeVlan(ifname="eth0", vid=7)),
        code="bridge-refused",
        brief="cannot set the VLAN 7 of eth0",
        words="Operation not supported",
    ),
    "forwarding entry": Refused(
        spoil=more("bridging.forwarding", ForwardingEntry(ifname="eth0", mac=WHITE, owner="master")),
        code="bridge-refused",
        brief=f"cannot set the forwarding entry {WHITE} of eth0",
        words="Operation not supported",
    ),
    "group of a bridge": Refused(
        scene="ip link add br5 type bridge; ip link set br5 up",
        spoil=more("bridging.multicast", MulticastEntry(bridge="br5", ifname="eth0", group="239.1.1.1")),
        code="bridge-refused",
        brief="cannot set the group 239.1.1.1 on eth0",
        words="not a bridge port (Invalid argument)",
    ),
    "ruleset": Refused(
        spoil=more("nftables", TABLE),
        code="nft-load",
        brief="cannot load the nftables rule (lookup) in the chain y of the table ip x",
        words="No such file or directory",
    ),
    "set": Refused(
        needs="ipset",
        spoil=more("filtering.ip_sets", IpSet(name="one", definition="hash:nothing")),
        code="ipset-load",
        brief="cannot make the ipset sets one",
        words="Syntax error",
    ),
    "legacy table": Refused(
        needs="iptables-legacy",
        spoil=more(
            "filtering.legacy_tables",
            LegacyTable(family=4, name="filter", text="*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j nowhere\nCOMMIT\n"),
        ),
        code="iptables-load",
        brief="cannot load the iptables-legacy tables filter",
        words="nowhere",
    ),
    "balanced service": Refused(
        needs="IPVS",
        spoil=more("filtering.virtual_services", "-A -t 10.0.0.1:80 -s nothing"),
        code="ipvs-load",
        brief="cannot make the IPVS services",
        words="Scheduler or persistence engine not found",
    ),
    "named object": Refused(
        spoil=more("filtering.named_objects", NamedObject(kind="nfacct", name="x", attributes=b"")),
        code="netfilter-object",
        brief="cannot make the nfacct object x",
        words="Invalid argument",
    ),
    "tracked flow": Refused(
        spoil=more("conntrack", replace(TRACKED, helper="no-such-helper")),
        code="conntrack-refused",
        brief="cannot create the conntrack entry 10.0.0.9:5000 to 10.0.0.2:21, protocol 6",
        words="Operation not supported",
    ),
    "expectation": Refused(
        spoil=more(
            "expectations",
            Expectation(flow=BACK, mask=MASK, protocol=6, master=FLOW, master_protocol=6, timeout=200),
        ),
        code="conntrack-refused",
        brief="cannot create the conntrack expectation of 10.0.0.9:5000, protocol 6",
        words="No such file or directory",
    ),
    "IPsec policy": Refused(
        spoil=more("ipsec.policies", POLICY, POLICY),
        code="xfrm-refused",
        brief="cannot make the IPsec policy out 10.0.0.0/8 to 0.0.0.0/0",
        words="File exists",
    ),
    "WireGuard": Refused(
        scene="ip link add t0 type wireguard",
        needs="wireguard",
        spoil=lambda network: replace(
            network, wireguard=(WireguardDevice(ifname="t0", private_key=Secret(value=b"short")),)
        ),
        code="wireguard-refused",
        brief="cannot set up the WireGuard interface t0",
        words="Numerical result out of range",
    ),
    "port for tunnels": Refused(
        scene="ip fou add port 5555 ipproto 4",
        needs="fou",
        spoil=more("fou", FouPort(port=5555, family=4, protocol=4)),
        code="fou-refused",
        brief="cannot open the tunnels' UDP port 5555",
        words="Address already in use",
    ),
    "sysctl": Refused(
        spoil=lambda network: replace(network, sysctls={**network.sysctls, "net/ipv4/tcp_ecn": "much"}),
        code="sysctl-refused",
        brief="cannot set the sysctl net/ipv4/tcp_ecn to 'much'",
        words="Invalid argument",
    ),
    "sysctl of a link": Refused(
        spoil=lambda network: replace(network, sysctls={**network.sysctls, "net/ipv4/conf/eth0/no_such": "1"}),
        code="sysctl-missing",
        brief="cannot set the sysctl net/ipv4/conf/eth0/no_such to '1'",
        words="No such file or directory",
    ),
}
NEEDS = {
    "vxlan": "ip link add x0 type vxlan id 5 dstport 4789 local 127.0.0.1",
    "htb": "tc qdisc add dev v0 root htb",
    "clsact": "tc qdisc add dev v0 clsact",
    "label switching": "sysctl net.mpls.platform_labels",
    "ipset": "ipset create one hash:ip",
    "iptables-legacy": "iptables-legacy -A INPUT -j ACCEPT",
    "IPVS": "ipvsadm -A -t 10.0.0.1:80 -s rr",
    "wireguard": "ip link add x0 type wireguard",
    "fou": "ip fou add port 5555 ipproto 4",
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_object_is_named_and_all_is_undone(host: int, group: int, what: str) -> None:
    case = REFUSED[what]
    if case.needs:
        need(NEEDS[case.needs], case.needs)
    shell(case.scene, group)
    settle(group)
    network = case.spoil(rtnl.read_network(group))
    shell("ip link del veth0")
    settle(host)
    before = shown(host)
    with pytest.raises(NetworkError) as caught, restored(network):
        pass
    assert (caught.value.code, caught.value.brief) == (case.code, case.brief)
    assert case.words in (caught.value.details or "")
    settle(host)
    assert_equal(shown(host), before)
