"""An image's records under other names: what follows, what is left, and what cannot be."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from ckpt import sections
from ckpt.image import Reader
from ckpt.kernel.netlink import ip_bytes
from ckpt.mapping import Mapping, parse_mapping
from ckpt.model.bridging import Bridging, ForwardingEntry
from ckpt.model.checkpoint import Checkpoint, CriuNotes, Group
from ckpt.model.filtering import Filtering, IpSet, LegacyTable
from ckpt.model.finding import Finding, Severity
from ckpt.model.forwarding import NexthopObject
from ckpt.model.host import HostFacts
from ckpt.model.ipsec import Ipsec, XfrmPolicy, XfrmSelector, XfrmState
from ckpt.model.network import (
    LOCAL_TABLE,
    LOOPBACK,
    Address,
    ConntrackEntry,
    Counterpart,
    FlowTuple,
    Link,
    Neighbour,
    Network,
    Nexthop,
    NftTable,
    Place,
    Route,
    Rule,
)
from ckpt.model.process import Isolation
from ckpt.model.socket import IPPROTO_TCP, IPPROTO_UDP, Endpoint, Socket
from ckpt.model.traffic import Filter, Traffic
from ckpt.model.wireguard import WireguardDevice, WireguardPeer
from ckpt.remap import Remapped, remap
from tests.unit.broken_images import IMAGES

WHOLE = ("10.0.0.0/24=10.1.0.0/24", "fd00::/64=fd01::/64")
ONE = ("10.0.0.2=10.1.0.9",)


def kernels(destination: str, table: int = 254, type: str = "unicast", **values: str) -> Route:
    scope = {"local": "host"}.get(type, "link")
    return Route(destination=destination, ifname="eth0", protocol=2, table=table, type=type, scope=scope, **values)  # type: ignore[arg-type]


NETWORK = Network(
    links=(
        LOOPBACK,
        Link(ifname="eth0", kind="veth", counterpart=Counterpart(place=Place.CALLER, ifname="ckptaaaa", master="br0")),
        Link(ifname="vx0", kind="vxlan", options={"local": "10.0.0.2", "remote": "10.9.9.9", "id": "5"}),
        Link(ifname="bond0", kind="bond", options={"arp_ip_target": "10.0.0.1 10.9.9.9"}),
    ),
    addresses=(
        Address(ifname="lo", address="127.0.0.1/8", scope="host"),
        Address(ifname="eth0", address="10.0.0.2/24", broadcast="10.0.0.255", label="eth0:1"),
        Address(ifname="eth0", address="fd00::2/64"),
    ),
    routes=(
        kernels("10.0.0.0/24", preferred_source="10.0.0.2"),
        kernels("10.0.0.2/32", LOCAL_TABLE, "local", preferred_source="10.0.0.2"),
        kernels("10.0.0.255/32", LOCAL_TABLE, "broadcast", preferred_source="10.0.0.2"),
        kernels("fd00::/64"),
        kernels("fd00::2/128", LOCAL_TABLE, "local"),
    ),
    complete=True,
)


def tcp(local: str, port: int, peer: str = "", peer_port: int = 0, inode: int = 0, **values: object) -> Socket:
    base = Socket(
        inode=inode or port,
        netns=1,
        family="inet6" if ":" in local else "inet",
        type="stream",
        protocol=IPPROTO_TCP,
        state="established" if peer else "listen",
        local=Endpoint(address=local, port=port),
        remote=Endpoint(address=peer, port=peer_port) if peer else None,
    )
    return replace(base, **values)  # type: ignore[arg-type]


def udp(local: str, port: int, peer: str = "", peer_port: int = 0, inode: int = 0) -> Socket:
    state = "established" if peer else "close"
    return replace(tcp(local, port, peer, peer_port, inode), type="dgram", protocol=IPPROTO_UDP, state=state)


def checkpoint(network: Network | None = NETWORK, *sockets: Socket) -> Checkpoint:
    isolation = Isolation.NONE if network is None else Isolation.NETNS
    return Checkpoint(
        group=Group(name="web", isolation=isolation, root_pid=71, pid_namespace=True, bridge_made=True, connections=9),
        source=HostFacts(hostname="a", machine="x86_64", kernel="6.12"),
        processes=(),
        sockets=sockets,
        network=network,
        criu=CriuNotes(),
    )


def mapped(network: Network, *addresses: str, **values: list[str]) -> Network:
    result = remap(checkpoint(network), parse_mapping(addresses, **values)).checkpoint.network
    assert result is not None
    return result


def with_(**values: object) -> Network:
    return replace(NETWORK, **values)  # type: ignore[arg-type]


def codes(result: Remapped, severity: Severity | None = None) -> list[str]:
    return [one.code for one in result.findings if severity in (None, one.severity)]


def named(result: Remapped, code: str) -> Finding:
    (found,) = [one for one in result.findings if one.code == code]
    return found


def test_remap_without_mapping_changes_nothing() -> None:
    before = checkpoint(NETWORK, tcp("10.0.0.2", 80), tcp("10.0.0.2", 80, "10.0.0.1", 40000, 5))
    assert remap(before, Mapping()) == Remapped(checkpoint=before)


@pytest.mark.parametrize("words", [WHOLE[:1], ("10.0.0.2=10.1.0.2",)])
def test_what_the_kernel_derives_follows_the_address(words: tuple[str, ...]) -> None:
    result = mapped(NETWORK, *words)
    assert result.addresses[1] == Address(ifname="eth0", address="10.1.0.2/24", broadcast="10.1.0.255", label="eth0:1")
    assert result.addresses[2] == NETWORK.addresses[2]
    assert [route.destination for route in result.routes] == [
        "10.1.0.0/24",
        "10.1.0.2/32",
        "10.1.0.255/32",
        "fd00::/64",
        "fd00::2/128",
    ]
    assert {route.preferred_source for route in result.routes} == {"10.1.0.2", ""}


def test_ipv6_prefix_follows() -> None:
    result = mapped(NETWORK, "fd00::2=fd01::5")
    assert [one.address for one in result.addresses[2:]] == ["fd01::5/64"]
    assert [route.destination for route in result.routes[3:]] == ["fd01::/64", "fd01::5/128"]


def test_tunnels_and_bonds_follow_by_their_options() -> None:
    result = mapped(NETWORK, *WHOLE)
    assert result.links[2].options == {"local": "10.1.0.2", "remote": "10.9.9.9", "id": "5"}
    assert result.links[3].options == {"arp_ip_target": "10.1.0.1 10.9.9.9"}


@pytest.mark.parametrize(
    ("field", "before", "after"),
    [
        (
            "routes",
            (Route(destination="0.0.0.0/0", gateway="10.0.0.1", ifname="eth0"),),
            (Route(destination="0.0.0.0/0", gateway="10.1.0.1", ifname="eth0"),),
        ),
        (
            "routes",
            (Route(destination="10.7.0.0/16", nexthops=(Nexthop(gateway="10.0.0.1"), Nexthop(gateway="fd00::1"))),),
            (Route(destination="10.7.0.0/16", nexthops=(Nexthop(gateway="10.1.0.1"), Nexthop(gateway="fd01::1"))),),
        ),
        (
            "routes",
            (Route(destination="10.0.0.64/26", source="10.0.0.0/25", preferred_source="10.0.0.2"),),
            (Route(destination="10.1.0.64/26", source="10.1.0.0/25", preferred_source="10.1.0.2"),),
        ),
        (
            "rules",
            (Rule(family=4, priority=5, values={"src": "10.0.0.0/24", "iifname": "eth0"}),),
            (Rule(family=4, priority=5, values={"src": "10.1.0.0/24", "iifname": "eth0"}),),
        ),
        (
            "neighbours",
            (Neighbour(ifname="eth0", address="10.0.0.1", mac="02:00:00:00:00:01"),),
            (Neighbour(ifname="eth0", address="10.1.0.1", mac="02:00:00:00:00:01"),),
        ),
        ("nexthops", (NexthopObject(id=1, gateway="10.0.0.1"),), (NexthopObject(id=1, gateway="10.1.0.1"),)),
        (
            "bridging",
            Bridging(forwarding=(ForwardingEntry(ifname="vx0", mac="02::", owner="self", destination="10.0.0.9"),)),
            Bridging(forwarding=(ForwardingEntry(ifname="vx0", mac="02::", owner="self", destination="10.1.0.9"),)),
        ),
        (
            "wireguard",
            (
                WireguardDevice(
                    ifname="wg0",
                    peers=(
                        WireguardPeer(
                            public_key="k", endpoint=Endpoint(address="10.0.0.7", port=5), allowed_ips=("fd00::/65",)
                        ),
                    ),
                ),
            ),
            (
                WireguardDevice(
                    ifname="wg0",
                    peers=(
                        WireguardPeer(
                            public_key="k", endpoint=Endpoint(address="10.1.0.7", port=5), allowed_ips=("fd01::/65",)
                        ),
                    ),
                ),
            ),
        ),
        (
            "filtering",
            Filtering(
                legacy_tables=(LegacyTable(family=4, name="nat", text="-A x -s 10.0.0.0/25 -j DNAT --to 10.0.0.2:80"),),
                ip_sets=(
                    IpSet(name="a", definition="hash:net", members=("10.0.0.0/28 timeout 5", "10.9.0.0/16")),
                    IpSet(name="b", definition="hash:ip,port", members=("10.0.0.2,tcp:80", "fd00::2,udp:53")),
                    IpSet(name="c", definition="hash:mac", members=("02:00:00:00:00:01",)),
                ),
                virtual_services=("-A -t 10.0.0.2:80 -s rr", "-a -t [fd00::2]:80 -r 10.0.0.3:8080 -m -w 1"),
            ),
            Filtering(
                legacy_tables=(LegacyTable(family=4, name="nat", text="-A x -s 10.1.0.0/25 -j DNAT --to 10.1.0.2:80"),),
                ip_sets=(
                    IpSet(name="a", definition="hash:net", members=("10.1.0.0/28 timeout 5", "10.9.0.0/16")),
                    IpSet(name="b", definition="hash:ip,port", members=("10.1.0.2,tcp:80", "fd01::2,udp:53")),
                    IpSet(name="c", definition="hash:mac", members=("02:00:00:00:00:01",)),
                ),
                virtual_services=("-A -t 10.1.0.2:80 -s rr", "-a -t [fd01::2]:80 -r 10.1.0.3:8080 -m -w 1"),
            ),
        ),
        (
            "nftables",
            (NftTable(family="ip", name="x", text="table ip x { chain y { ip saddr 10.0.0.5-10.0.0.9; }; }"),),
            (NftTable(family="ip", name="x", text="table ip x { chain y { ip saddr 10.1.0.5-10.1.0.9; }; }"),),
        ),
        (
            "sysctls",  # a secret in the form of an address, and the only one there is
            {"net/ipv6/conf/eth0/stable_secret": "fd00::2"},
            {"net/ipv6/conf/eth0/stable_secret": "fd00::2"},
        ),
    ],
)
def test_records_that_name_an_address_follow(field: str, before: object, after: object) -> None:
    assert getattr(mapped(with_(**{field: before}), *WHOLE), field) == after


def test_ipsec_follows_with_its_selectors_and_templates_and_says_so() -> None:
    template = ip_bytes("10.0.0.2").ljust(16, b"\0") + bytes(8) + b"\x02\0\0\0" + ip_bytes("10.9.9.9").ljust(16, b"\0")
    before = Ipsec(
        states=(XfrmState(family=4, source="10.0.0.2", destination="10.9.9.9", spi=1, protocol=50, mode=0),),
        policies=(
            XfrmPolicy(
                direction=1,
                selector=XfrmSelector(family=4, source="10.0.0.2/32", destination="0.0.0.0/0"),
                attributes={"tmpl": template + bytes(20)},
            ),
        ),
    )
    result = remap(checkpoint(with_(ipsec=before)), parse_mapping(ONE))
    assert result.checkpoint.network is not None
    after = result.checkpoint.network.ipsec
    assert (after.states[0].source, after.policies[0].selector.source) == ("10.1.0.9", "10.1.0.9/32")
    assert after.policies[0].attributes["tmpl"][:4] == ip_bytes("10.1.0.9")
    assert after.policies[0].attributes["tmpl"][28:32] == ip_bytes("10.9.9.9")
    assert "map-ipsec" in codes(result, Severity.WARN)


def test_conntrack_entries_within_the_group_move_and_others_go() -> None:
    def flow(source: str, destination: str) -> ConntrackEntry:
        way = FlowTuple(source=source, destination=destination)
        back = FlowTuple(source=destination, destination=source)
        return ConntrackEntry(original=way, reply=back, protocol=6, status=0, timeout=9)

    entries = (flow("10.0.0.2", "10.0.0.2"), flow("10.0.0.2", "10.0.0.1"), flow("10.8.0.1", "10.8.0.2"))
    result = remap(checkpoint(with_(conntrack=entries)), parse_mapping(ONE))
    assert result.checkpoint.network is not None
    assert result.checkpoint.network.conntrack == (flow("10.1.0.9", "10.1.0.9"), entries[2])
    assert "map-conntrack" in codes(result, Severity.OK)


def test_bytes_that_hold_an_address_are_named() -> None:
    filters = (Filter(kind="u32", priority=1, protocol=8, handle=1, ifname="eth0", options=b"..\x0a\0\0\x02.."),)
    result = remap(checkpoint(with_(traffic=Traffic(filters=filters))), parse_mapping(ONE))
    assert named(result, "map-left").subject == "traffic control of eth0 (u32)"
    other = replace(filters[0], options=b"..\x0a\0\0\x03..")
    assert "map-left" not in codes(remap(checkpoint(with_(traffic=Traffic(filters=(other,)))), parse_mapping(ONE)))


def test_links_outside_are_called_otherwise_and_those_inside_are_not() -> None:
    result = remap(checkpoint(), parse_mapping(links=["br0=br7", "ckptaaaa=out0", "eth0=eth7"]))
    assert result.checkpoint.network is not None
    assert result.checkpoint.network.links[1].ifname == "eth0"
    assert result.checkpoint.network.links[1].counterpart == Counterpart(
        place=Place.CALLER, ifname="out0", master="br7"
    )
    assert not result.checkpoint.group.bridge_made
    assert codes(result) == ["map-follows", "map-follows", "map-unused"]


MAC, NEW = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def hardware(mac: str) -> Network:
    """A network in which ``mac`` is named by everything that can name one."""
    eth0 = replace(NETWORK.links[1], mac=mac)
    vlan = Link(ifname="eth0.5", kind="vlan", mac=mac, counterpart=Counterpart(place=Place.INSIDE, ifname="eth0"))
    macvlan = Link(ifname="m0", kind="macvlan", mac="02::1", options={"macaddr_data": f"02:00:00:00:00:01 {mac}"})
    return with_(
        links=(LOOPBACK, eth0, vlan, macvlan),
        neighbours=(Neighbour(ifname="eth0", address="10.0.0.9", mac=mac),),
        bridging=Bridging(forwarding=(ForwardingEntry(ifname="eth0", mac=mac, owner="self", state="permanent"),)),
        filtering=Filtering(
            legacy_tables=(LegacyTable(family=4, name="filter", text=f"-A x -m mac --mac-source {mac} -j DROP"),),
            ip_sets=(IpSet(name="c", definition="hash:ip,mac", members=(f"10.0.0.9,{mac}",)),),
        ),
        nftables=(NftTable(family="inet", name="x", text=f"table inet x {{ chain y {{ ether saddr {mac}; }}; }}"),),
    )


def test_records_that_name_a_mac_follow() -> None:
    mapping = parse_mapping(macs=[f"{MAC.upper()}={NEW}"])
    result = remap(checkpoint(hardware(MAC)), mapping)
    assert result.checkpoint.network == hardware(NEW)
    assert "followed by links (3)" in named(result, "map-follows").reason
    assert codes(result, Severity.WARN) == codes(result, Severity.BLOCK) == []


def test_address_made_of_a_mapped_mac_stays_and_is_named() -> None:
    addresses = (
        Address(ifname="eth0", address="fe80::ff:fe00:a/64", scope="link"),
        Address(ifname="eth0", address="fd00::ff:fe00:a/64"),
        Address(ifname="eth0", address="fd00::7/64"),
    )
    mapping = parse_mapping(["fd00::ff:fe00:a=fd00::9"], macs=[f"{MAC}={NEW}"])
    result = remap(checkpoint(replace(hardware(MAC), addresses=addresses)), mapping)
    found = named(result, "map-left")
    assert (found.subject, found.severity) == ("fe80::ff:fe00:a of eth0", Severity.WARN)
    assert "fe80::ff:fe00:a=fe80::ff:fe00:b" in found.remedy


def test_bytes_that_hold_a_mac_are_named() -> None:
    filters = (Filter(kind="flower", priority=1, protocol=8, handle=1, ifname="eth0", options=b"..\2\0\0\0\0\x0a.."),)
    before = checkpoint(replace(hardware(MAC), traffic=Traffic(filters=filters)))
    result = remap(before, parse_mapping(macs=[f"{MAC}={NEW}"]))
    assert named(result, "map-left").subject == "traffic control of eth0 (flower)"


def test_two_links_that_would_have_one_mac_block() -> None:
    network = replace(hardware(MAC), links=(*hardware(MAC).links, Link(ifname="e", kind="dummy", mac=NEW)))
    result = remap(checkpoint(network), parse_mapping(macs=[f"{MAC}={NEW}"]))
    assert codes(result, Severity.BLOCK) == ["map-mac-taken"]


def test_mac_that_nothing_has_is_told() -> None:
    assert codes(remap(checkpoint(), parse_mapping(macs=[f"{MAC}={NEW}"])), Severity.WARN) == ["map-unused"]


def test_device_of_a_socket_in_the_hosts_network_follows_its_link() -> None:
    result = remap(checkpoint(None, tcp("0.0.0.0", 80, device="host0")), parse_mapping(links=["host0=host1"]))
    assert result.checkpoint.sockets[0].device == "host1"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (tcp("10.0.0.2", 80), tcp("10.1.0.9", 8080)),
        (tcp("0.0.0.0", 80), tcp("0.0.0.0", 8080)),
        (tcp("::ffff:10.0.0.2", 80), tcp("::ffff:10.1.0.9", 8080)),
        (tcp("10.0.0.3", 81), tcp("10.0.0.3", 81)),
        (udp("10.0.0.2", 53), udp("10.1.0.9", 5353)),
        (udp("10.0.0.2", 99, "10.9.9.9", 53), udp("10.1.0.9", 99, "10.9.9.9", 53)),
        (udp("127.0.0.1", 99, "127.0.0.1", 53), udp("127.0.0.1", 99, "127.0.0.1", 5353)),
    ],
)
def test_sockets_follow(before: Socket, after: Socket) -> None:
    after = replace(after, inode=before.inode)
    mapping = parse_mapping(ONE, ports=["80=8080/tcp", "53=5353/udp"])
    server = udp("127.0.0.1", 53, inode=7)
    result = remap(checkpoint(NETWORK, before, server), mapping)
    assert result.checkpoint.sockets[0] == after


def test_established_connection_of_a_mapped_address_blocks() -> None:
    result = remap(checkpoint(NETWORK, tcp("10.0.0.2", 80, "10.0.0.1", 40000)), parse_mapping(ONE))
    assert codes(result, Severity.BLOCK) == ["map-connection"]
    assert "10.0.0.2:80 – 10.0.0.1:40000" in named(result, "map-connection").reason


def test_established_connection_of_another_address_goes_on() -> None:
    before = tcp("10.0.0.3", 80, "10.0.0.1", 40000)
    result = remap(checkpoint(NETWORK, before), parse_mapping(ONE, ports=["80=8080"]))
    assert result.checkpoint.sockets == (before,)
    assert codes(result) == ["map-follows", "map-unused", "map-port-kept"]


def test_connection_within_the_group_moves_with_both_ends() -> None:
    ends = (tcp("10.0.0.2", 80, "10.0.0.2", 40000, 1), tcp("10.0.0.2", 40000, "10.0.0.2", 80, 2))
    result = remap(checkpoint(NETWORK, *ends), parse_mapping(ONE), tcp_close=True)
    assert [str(one.local) for one in result.checkpoint.sockets] == ["10.1.0.9:80", "10.1.0.9:40000"]
    assert (result.closed, codes(result, Severity.BLOCK), result.connections) == (frozenset(), [], 2)


def test_tcp_close_closes_connections_with_others_and_names_them() -> None:
    sockets = (
        tcp("10.0.0.2", 80),
        tcp("10.0.0.2", 80, "10.0.0.1", 40000, 1),
        tcp("127.0.0.1", 5, "127.0.0.1", 6, 2),
        tcp("127.0.0.1", 6, "127.0.0.1", 5, 3),
    )
    result = remap(checkpoint(NETWORK, *sockets), parse_mapping(ONE), tcp_close=True)
    assert result.closed == {1}
    closed = result.checkpoint.sockets[1]
    assert (closed.state, str(closed.local), closed.remote) == ("close", "0.0.0.0:0", None)
    assert "10.0.0.2:80 – 10.0.0.1:40000" in named(result, "tcp-closed").reason
    assert named(result, "tcp-kept").subject == "2 TCP sockets"


def test_tcp_close_closes_what_the_image_does_not_hold() -> None:
    sockets = (tcp("127.0.0.1", 5, "127.0.0.1", 6, 2), tcp("127.0.0.1", 6, "127.0.0.1", 5, 3))
    before = checkpoint(NETWORK, *sockets)
    before = replace(before, group=replace(before.group, connections=0))
    assert remap(before, Mapping(), tcp_close=True).closed == {2, 3}


def test_one_address_of_two_in_a_prefix_blocks() -> None:
    addresses = (*NETWORK.addresses, Address(ifname="eth0", address="10.0.0.3/24"))
    result = remap(checkpoint(with_(addresses=addresses)), parse_mapping(ONE))
    assert codes(result, Severity.BLOCK) == ["map-prefix-split"]
    assert codes(remap(checkpoint(with_(addresses=addresses)), parse_mapping(WHOLE)), Severity.BLOCK) == []


def test_two_addresses_that_become_one_block() -> None:
    addresses = (*NETWORK.addresses, Address(ifname="eth0", address="10.1.0.9/24"))
    result = remap(checkpoint(with_(addresses=addresses)), parse_mapping(ONE))
    assert codes(result, Severity.BLOCK) == ["map-address-taken"]


def test_gateway_that_is_left_behind_blocks_and_one_that_comes_along_does_not() -> None:
    routes = (*NETWORK.routes, Route(destination="0.0.0.0/0", gateway="10.0.0.1", ifname="eth0"))
    network = with_(routes=routes)
    assert codes(remap(checkpoint(network), parse_mapping(ONE)), Severity.BLOCK) == ["map-gateway"]
    for words in (WHOLE, (*ONE, "10.0.0.1=10.1.0.1"), ("10.0.0.2=10.0.0.9",)):
        assert codes(remap(checkpoint(network), parse_mapping(words)), Severity.BLOCK) == []


def test_two_ports_that_become_one_block() -> None:
    result = remap(checkpoint(NETWORK, tcp("0.0.0.0", 80), tcp("0.0.0.0", 81)), parse_mapping(ports=["80=81"]))
    assert codes(result, Severity.BLOCK) == ["map-port-taken"]


def test_rule_that_names_a_mapped_port_is_named() -> None:
    table = NftTable(family="ip", name="x", text="table ip x {\n tcp dport { 80, 443 } accept\n}\n")
    network = with_(nftables=(table,))
    result = remap(checkpoint(network, tcp("0.0.0.0", 80)), parse_mapping(ports=["80=81"]))
    assert named(result, "map-port-left").subject == "nft table ip x"
    assert "map-port-left" not in codes(remap(checkpoint(network, tcp("0.0.0.0", 8)), parse_mapping(ports=["8=81"])))


THERE = parse_mapping(["10.9.0.0/24=10.8.0.0/24", "fd00::/64=fd08::/64"], links=["br0=br8"], ports=["6379=6380"])
BACK = parse_mapping(["10.8.0.0/24=10.9.0.0/24", "fd08::/64=fd00::/64"], links=["br8=br0"], ports=["6380=6379"])


def test_real_image_there_and_back_is_as_it_was() -> None:
    with Reader(IMAGES / "golden" / "v1" / "redis.ckpt") as reader:
        before = sections.read(reader)
    assert before.network is not None
    # Flows with others do not come along, and rules are written without the flags of nesting.
    network = replace(before.network, conntrack=())
    before = replace(before, network=network)

    def round_trip(one: Checkpoint) -> Checkpoint:
        there = remap(one, THERE).checkpoint
        assert there.network is not None
        assert not re.search(r"10\.9\.0\.|fd00::|br0\b", repr((there.network, there.sockets)))
        return remap(there, BACK).checkpoint

    after = round_trip(before)
    assert after.network is not None
    assert replace(after.network, nftables=()) == replace(network, nftables=())
    assert [one.text for one in after.network.nftables] == [one.text for one in network.nftables]
    assert (after.sockets, after.processes) == (before.sockets, before.processes)
    assert round_trip(after) == after


def test_every_connection_that_blocks_is_named_for_programs_and_some_for_people() -> None:
    sockets = [tcp("10.0.0.2", 80, "10.0.0.1", 40000 + number, number + 1) for number in range(20)]
    found = named(remap(checkpoint(NETWORK, *sockets), parse_mapping(ONE)), "map-connection")
    assert found.there.count(" – ") == 20
    assert found.reason.count(" – ") == 8 and found.reason.endswith("and 12 more")
