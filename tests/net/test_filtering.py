"""ipset, iptables-legacy, IPVS and conntrack expectations: read, made again, equal to their own tools' eyes."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt.errors import NetworkError
from ckpt.kernel import apply, conntrack, expectations, filtering, ipset, ipvs, netlink, netns, nft, rtnl, xtables
from ckpt.kernel.netlink import Netlink
from ckpt.kernel.run import run
from ckpt.model.filtering import NO_FILTERING, Filtering, IpSet, LegacyTable, NamedObject
from ckpt.model.finding import Severity
from ckpt.model.network import ConntrackEntry, Expectation, FlowTuple, Network, Unread
from ckpt.model.travel import cannot_travel
from ckpt.plan import plan_network
from tests.conftest import require
from tests.net.spaces import comparable, differences, fresh, restored, shell

SETS = """
ipset create hosts hash:ip timeout 3000 counters comment skbinfo
ipset add hosts 1.2.3.4 timeout 1000 packets 5 bytes 6 comment 'hey $x' skbmark 0x5/0xff skbprio 1:2 skbqueue 3
ipset create gone hash:ip
ipset create all list:set
ipset create nets hash:net family inet6 hashsize 2048 maxelem 100 bucketsize 4
ipset add nets fd00::/64 nomatch
ipset create ports bitmap:port range 0-100
ipset add ports 5
ipset create links hash:net,iface
ipset add links 10.0.0.0/8,eth0
ipset create gone2 hash:ip
ipset create late hash:ip,port,net
ipset add late 1.1.1.1,tcp:80,10.0.0.0/8
ipset add all hosts
ipset add all late
ipset destroy gone
ipset destroy gone2
"""

LEGACY = """
iptables-legacy -A INPUT -p tcp -m multiport --dports 1,2 -m comment --comment 'a "b" $c' -c 5 7 -j ACCEPT
iptables-legacy -P FORWARD DROP; iptables-legacy -N mine; iptables-legacy -A FORWARD -j mine
iptables-legacy -t nat -A POSTROUTING -s 10.0.0.0/8 ! -o lo -j MASQUERADE --random
iptables-legacy -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
iptables-legacy -t raw -A PREROUTING -p udp -j NOTRACK
ip6tables-legacy -A INPUT -p icmpv6 -m icmp6 --icmpv6-type 128 -m limit --limit 3/min -j REJECT
"""

_TIME = re.compile(r"\btimeout \d+")


def need(*tools: str) -> None:
    """Go on only with these tools."""
    for tool in tools:
        require(shutil.which(tool) is not None, f"needs the tool {tool}")


def need_legacy() -> None:
    need("iptables-legacy")
    with fresh() as space, netns.entered(space):
        try:
            run(["iptables-legacy", "-t", "raw", "-L", "-n"])
        except NetworkError as error:
            pytest.skip(f"this kernel has no legacy tables: {error}")


def sets(space: int) -> str:
    return _TIME.sub("timeout", shell("ipset save", space))


def saved(space: int) -> list[str]:
    text = shell("iptables-legacy-save -c; ip6tables-legacy-save -c", space)
    return [line for line in text.splitlines() if not line.startswith("#")]


def filters(space: int) -> Filtering:
    found, unread = filtering.read_filtering(space)
    assert unread == ()
    return found


def test_ipset_sets_made_again_look_equal() -> None:
    need("ipset")
    with fresh() as space, fresh() as copy:
        shell(SETS, space)
        filtering.load_filtering(copy, filters(space))
        assert sets(copy).splitlines() == sets(space).splitlines()
        assert _indices(copy) == _indices(space)
        assert sorted(_indices(copy).values()) != list(range(len(_indices(copy))))
        assert re.search(r"1\.2\.3\.4 timeout 9\d\d", shell("ipset save", copy))


def _indices(space: int) -> dict[str, int]:
    return {one.name: one.index for one in filters(space).ip_sets}


def test_ipset_is_not_even_looked_for_where_there_are_no_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipset, "run", pytest.fail)
    with fresh() as space:
        assert ipset.read_sets(space) == ((), ())


def test_sets_without_the_tool_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    need("ipset")
    with fresh() as space:
        shell("ipset create one hash:ip", space)
        monkeypatch.setenv("PATH", "/nowhere")
        found, unread = ipset.read_sets(space)
    assert found == ()
    what = "1 are there, and cannot be read: ipset is not installed"
    assert unread == (Unread(code="ipset-unread", subject="ipset sets", what=what),)
    (finding,) = cannot_travel(Network(unread=unread))
    assert (finding.severity, finding.remedy) == (Severity.BLOCK, "install ipset, or destroy the sets")


def test_refused_set_is_named_with_the_tools_words() -> None:
    need("ipset")
    with fresh() as space, pytest.raises(NetworkError) as caught:
        ipset.load_sets(space, [IpSet(name="one", definition="hash:nothing")])
    assert caught.value.code == "ipset-load"
    assert caught.value.brief == "cannot make the ipset sets one"


_OCTETS = st.integers(1, 254)
_MEMBERS = st.lists(st.tuples(_OCTETS, _OCTETS).map(lambda pair: f"10.1.{pair[0]}.{pair[1]}"), max_size=9, unique=True)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(members=st.lists(_MEMBERS, max_size=6), gone=st.sets(st.integers(0, 5)))
def test_random_sets_made_again_are_equal(members: Sequence[Sequence[str]], gone: set[int]) -> None:
    need("ipset")
    script = [f"create s{number} hash:ip counters\n" for number in range(len(members))]
    script += [f"add s{number} {member}\n" for number, listed in enumerate(members) for member in listed]
    script += [f"destroy s{number}\n" for number in sorted(gone) if number < len(members)]
    with fresh() as space, fresh() as copy:
        run(["ipset", "restore"], input="".join(script).encode(), netns=space)
        wanted = filters(space)
        filtering.load_filtering(copy, wanted)
        again = filters(copy)
    for one, other in zip(again.ip_sets, wanted.ip_sets, strict=True):
        assert (one.name, one.definition, one.index) == (other.name, other.definition, other.index)
        assert sorted(one.members) == sorted(other.members)


def test_iptables_legacy_tables_loaded_again_look_equal() -> None:
    need_legacy()
    with fresh() as space, fresh() as copy:
        shell(LEGACY, space)
        filtering.load_filtering(copy, filters(space))
        assert differences(saved(copy), saved(space)) == []
        assert differences(filters(copy), filters(space)) == []


def test_reading_makes_no_iptables_legacy_table() -> None:
    need_legacy()
    with fresh() as space:
        assert filters(space) == NO_FILTERING
        assert shell("cat /proc/thread-self/net/ip_tables_names /proc/thread-self/net/ip6_tables_names", space) == ""


def test_iptables_legacy_tables_without_the_tool_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    need_legacy()
    with fresh() as space:
        shell("iptables-legacy -A INPUT -j ACCEPT", space)
        monkeypatch.setenv("PATH", "/nowhere")
        tables, unread = xtables.read_tables(space)
    assert tables == ()
    assert [(one.code, one.subject) for one in unread] == [("iptables-legacy", "iptables-legacy table filter")]
    assert [one.severity for one in cannot_travel(Network(unread=unread))] == [Severity.BLOCK]


def test_rules_that_name_sets_find_them_again() -> None:
    need_legacy()
    need("ipset", "iptables-nft")
    with fresh() as space:
        shell(SETS, space)
        shell("iptables-legacy -A INPUT -m set --match-set all src -j ACCEPT", space)
        shell("iptables-nft -A INPUT -m set --match-set late src,dst,dst -j DROP", space)
        network = rtnl.read_network(space)
        with restored(network) as copy:
            assert saved(copy) == saved(space)
            assert "--match-set late src,dst,dst -j DROP" in shell("iptables-nft-save", copy)
            assert differences(_timeless(rtnl.read_network(copy)), _timeless(network)) == []


def _timeless(network: Network) -> object:
    found = comparable(network)
    times = [_TIME.sub("timeout", repr(one)) for one in found.filtering.ip_sets]
    return times, found.filtering.legacy_tables, found.nftables, found.unread


def test_arptables_in_use_are_named() -> None:
    tool = shutil.which("arptables-legacy")
    if tool is None:
        pytest.skip("needs the package arptables")
    with fresh() as space:
        shell(f"{tool} -A INPUT -s 1.2.3.4 -j DROP", space)
        _, unread = xtables.read_tables(space)
    assert [(one.code, one.subject) for one in unread] == [("arptables", "arptables table filter")]


def test_what_a_match_remembers_is_named() -> None:
    need_legacy()
    with fresh() as space:
        shell(
            """ip link set lo up; iptables-legacy -A INPUT -m recent --name seen --set
            ping -c 1 -W 1 127.0.0.1""",
            space,
        )
        _, unread = xtables.read_tables(space)
    assert [(one.code, one.subject) for one in unread] == [("xt-memory", "list seen of the iptables match recent")]
    assert [one.severity for one in cannot_travel(Network(unread=unread))] == [Severity.WARN]


def _acct(name: bytes, packets: int, octets: int) -> bytes:
    counts = netlink.attribute(2, struct.pack(">Q", packets)) + netlink.attribute(3, struct.pack(">Q", octets))
    return struct.pack("=BBH", 0, 0, 0) + netlink.attribute(1, name) + counts


def _timeouts(name: bytes) -> bytes:
    udp = netlink.nested(4, *(netlink.attribute(kind, struct.pack(">I", 40 + kind)) for kind in (1, 2)))
    protocols = netlink.attribute(2, struct.pack(">H", 2)) + netlink.attribute(3, bytes([17]))
    return struct.pack("=BBH", 0, 0, 0) + netlink.attribute(1, name) + protocols + udp


def test_named_objects_made_again_are_equal() -> None:
    need_legacy()
    with fresh() as space, fresh() as copy:
        with Netlink(netlink.NETFILTER, netns=space) as connection:
            try:
                connection.request(7 << 8, _acct(b"mine\0", 5, 77), netlink.NLM_F_CREATE)
                connection.request(8 << 8, _timeouts(b"short\0"), netlink.NLM_F_CREATE)
            except netlink.KernelRefusal as error:
                pytest.skip(f"this kernel has no nfacct or no timeout policies: {error}")
        shell("iptables-legacy -A INPUT -m nfacct --nfacct-name mine -j ACCEPT", space)
        shell("iptables-legacy -t raw -A PREROUTING -p udp -j CT --timeout short", space)
        wanted = filters(space)
        assert [(one.kind, one.name) for one in wanted.named_objects] == [("nfacct", "mine"), ("timeout", "short")]
        filtering.load_filtering(copy, wanted)
        assert differences(filters(copy), wanted) == []


def test_timeout_policy_whose_name_is_not_clear_is_named() -> None:
    text = "*raw\n[0:0] -A PREROUTING -p udp -j CT --timeout shor\nCOMMIT\n"
    table = LegacyTable(family=4, name="raw", text=text)
    assert xtables.with_whole_names([table], ["short"])[0] == [replace(table, text=text.replace("shor", "short"))]
    tables, unread = xtables.with_whole_names([table], ["short", "shorter"])
    assert tables == [table]
    assert [(one.code, one.subject) for one in unread] == [("iptables-legacy", "iptables-legacy table raw")]


def test_cut_name_in_a_rule_of_iptables_nft_is_named() -> None:
    need("iptables-nft")
    with fresh() as space, Netlink(netlink.NETFILTER, netns=space) as connection:
        try:
            connection.request(8 << 8, _timeouts(b"short\0"), netlink.NLM_F_CREATE)
        except netlink.KernelRefusal as error:
            pytest.skip(f"this kernel has no timeout policies: {error}")
        shell("iptables-nft -t raw -A PREROUTING -p udp -j CT --timeout short", space)
        shell("iptables-nft -t raw -A PREROUTING -p tcp -j CT --notrack", space)
        _, unread = nft.read_tables(space)
    assert [(one.code, one.subject) for one in unread] == [("nft-xt", "nft table ip raw")]


def test_refused_named_object_is_named() -> None:
    with fresh() as space, pytest.raises(NetworkError) as caught:
        filtering.load_filtering(space, Filtering(named_objects=(NamedObject(kind="none", name="x", attributes=b""),)))
    assert caught.value.brief == "cannot make the none object x"


SERVICES = """ip link set lo up; ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up
ip addr add 10.0.0.1/24 dev v0; ip addr add fd00::1/64 dev v0 nodad
ipvsadm -A -t 10.0.0.1:80 -s wlc -p 300; ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2:81 -m -w 7
ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.3:80 -g -w 0 -x 99 -y 9; ipvsadm -A -u 10.0.0.1:53 -s rr -o
ipvsadm -A -f 7 -s sh -b sh-port; ipvsadm -a -f 7 -r 10.0.0.4 -i
ipvsadm -A -t [fd00::1]:80 -s rr; ipvsadm -a -t [fd00::1]:80 -r [fd00::2]:80 -m"""


def test_ipvs_services_made_again_look_equal() -> None:
    with fresh() as space, netns.entered(space):
        if not _has_ipvs():
            pytest.skip("this kernel has no IPVS: tested on the machines that have")
        require(shutil.which("ipvsadm") is not None, "needs the tool ipvsadm")
        shell(SERVICES, space)
        network = rtnl.read_network(space)
        assert len(network.filtering.virtual_services) == 8
        with restored(network) as copy:
            assert differences(comparable(rtnl.read_network(copy)).filtering, comparable(network).filtering) == []
            for listing in ("ipvsadm -S -n", "ipvsadm -L -n --thresholds", "ipvsadm -L -n"):
                assert shell(listing, copy) == shell(listing, space)


def test_thresholds_of_servers_are_those_of_the_list() -> None:
    """As ipvsadm 1.31 prints both."""
    saved = ["-A -t 10.0.0.1:80 -s wlc", "-a -t 10.0.0.1:80 -r 10.0.0.3:80 -g -w 0", "-a -f 7 -r 10.0.0.4:0 -i -w 1"]
    listed = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn
  -> RemoteAddress:Port
TCP  10.0.0.1:80 wlc
  -> 10.0.0.3:80                  99         9          0          0
FWM  7 sh (sh-port)
  -> 10.0.0.4:0                   0          0          0          0
"""
    assert ipvs.with_thresholds(saved, listed) == (saved[0], f"{saved[1]} -x 99 -y 9", saved[2])


def _has_ipvs() -> bool:
    try:
        with open("/proc/thread-self/net/ip_vs", encoding="ascii"):
            return True
    except OSError:
        return False


# ---- conntrack ----------------------------------------------------------------------------------------------------

CONTROL = FlowTuple(source="10.0.0.9", destination="10.0.0.2", source_port=5000, destination_port=21)
ANSWER = FlowTuple(source="10.0.0.2", destination="10.0.0.9", source_port=21, destination_port=5000)
MASTER = ConntrackEntry(
    original=CONTROL,
    reply=ANSWER,
    protocol=6,
    status=0xE,
    timeout=5000,
    mark=7,
    helper="ftp",
    protocol_state={"state": 3},
)
TRACKING = "nft 'add table ip x; add chain ip x y { type filter hook input priority 0; }; add rule ip x y ct state new'"


def flow(port: int, **changes: object) -> ConntrackEntry:
    """A UDP flow that nobody translates."""
    here = {"source": "10.0.0.9", "destination": "10.0.0.2", "source_port": port, "destination_port": 53}
    back = {"source": "10.0.0.2", "destination": "10.0.0.9", "source_port": 53, "destination_port": port}
    fields: dict[str, object] = {
        "original": FlowTuple(**here),  # type: ignore[arg-type]
        "reply": FlowTuple(**back),  # type: ignore[arg-type]
        "protocol": 17,
        "status": 0xA,
        "timeout": 3000,
    }
    return ConntrackEntry(**fields | changes)  # type: ignore[arg-type]


ENTRIES = {
    "zone": flow(1, zone=5),
    "zone-original": flow(2, zone=6, zone_direction="original"),
    "zone-reply": flow(3, zone=7, zone_direction="reply"),
    "labels": flow(4, labels=bytes([1]) + bytes(15)),
    "mark": flow(5, mark=0xDEAD),
    "helper": MASTER,
    "sctp": flow(6, protocol=132, protocol_state={"state": 4, "vtag_original": 5, "vtag_reply": 6}),
    "syn-proxy": flow(7, protocol=6, protocol_state={"state": 3}, syn_proxy={"isn": 1, "its": 2, "tsoff": 3}),
    "sequences": flow(
        8,
        protocol=6,
        protocol_state={"state": 3},
        sequence_adjust={"original_correction_pos": 9, "original_offset_before": 1, "original_offset_after": 2},
    ),
}


@pytest.mark.parametrize("which", ENTRIES)
def test_entry_created_again_is_equal(which: str) -> None:
    with fresh() as space, fresh() as copy:
        for one in (space, copy):
            shell(TRACKING, one)
        conntrack.create_entries(space, [ENTRIES[which]])
        (first,), unread = conntrack.read_entries(space)
        assert unread == ()
        for name in ("zone", "zone_direction", "labels", "mark", "helper", "syn_proxy"):
            assert differences(getattr(first, name), getattr(ENTRIES[which], name)) == []
        assert ENTRIES[which].sequence_adjust.items() <= first.sequence_adjust.items()
        assert ENTRIES[which].protocol_state.items() <= first.protocol_state.items()
        conntrack.create_entries(copy, [first])
        (again,), _ = conntrack.read_entries(copy)
        assert differences(again, first) in ([], [f"/timeout: {again.timeout} != {first.timeout}"])


def test_entry_that_the_kernel_tracks_already_is_made_as_it_was() -> None:
    with fresh() as space:
        shell(TRACKING, space)
        conntrack.create_entries(space, [replace(MASTER, mark=5)])
        conntrack.create_entries(space, [replace(MASTER, mark=7)])
        (entry,), _ = conntrack.read_entries(space)
    assert (entry.original, entry.mark) == (MASTER.original, 7)


def test_expected_entry_comes_after_the_one_that_expected_it() -> None:
    child = flow(20, protocol=6, protocol_state={"state": 3}, master=CONTROL, master_protocol=6, status=0xB)
    with fresh() as space:
        shell(TRACKING, space)
        conntrack.create_entries(space, [child, MASTER])
        entries, unread = conntrack.read_entries(space)
    assert unread == ()
    found = {one.original: one for one in entries}
    assert found[child.original].master == CONTROL
    assert found[child.original].status & 1


def test_expected_entry_whose_master_is_gone_stands_alone() -> None:
    child = flow(20, protocol=6, protocol_state={"state": 3}, master=CONTROL, master_protocol=6, status=0xB)
    with fresh() as space:
        shell(TRACKING, space)
        conntrack.create_entries(space, [child])
        (found,), _ = conntrack.read_entries(space)
    assert (found.original, found.master) == (child.original, None)


def test_expectation_created_again_is_equal() -> None:
    need("conntrack")
    wanted = Expectation(
        flow=FlowTuple(source="10.0.0.9", destination="10.0.0.2", destination_port=6000),
        mask=FlowTuple(source="255.255.255.255", destination="255.255.255.255", destination_port=0xFFFF),
        protocol=6,
        master=CONTROL,
        master_protocol=6,
        timeout=200,
    )
    with fresh() as space:
        shell(TRACKING, space)
        conntrack.create_entries(space, [MASTER])
        expectations.create_expectations(space, [wanted])
        shown = shell("conntrack -L expect", space)
        network = rtnl.read_network(space)
        (found,) = network.expectations
        assert (found.flow, found.protocol, found.master) == (wanted.flow, wanted.protocol, wanted.master)
        assert 0 < found.timeout <= 200
        with restored(network) as copy:
            (again,) = rtnl.read_network(copy).expectations
            assert differences(again, found) in ([], [f"/timeout: {again.timeout} != {found.timeout}"])
            assert shell("conntrack -L expect", copy).split()[1:] == shown.split()[1:]


def test_refused_expectation_is_named() -> None:
    wanted = Expectation(
        flow=FlowTuple(source="10.0.0.9", destination="10.0.0.2", destination_port=6000),
        mask=FlowTuple(source="255.255.255.255", destination="255.255.255.255"),
        protocol=6,
        master=CONTROL,
        master_protocol=6,
        timeout=200,
    )
    with fresh() as space, pytest.raises(NetworkError) as caught:
        expectations.create_expectations(space, [wanted])
    assert caught.value.brief == "cannot create the conntrack expectation of 10.0.0.2:6000, protocol 6"


# ---- the host -----------------------------------------------------------------------------------------------------

HOST = """nft list ruleset; conntrack -L; conntrack -L expect; ip -d xfrm state; ip -d xfrm policy; ip a
sysctl -a --pattern ^net"""


def test_nothing_of_the_host_is_read_or_changed(host: int) -> None:
    need_legacy()
    need("ipset", "conntrack")
    shell(SETS, host)
    shell(LEGACY, host)
    shell(TRACKING, host)
    shell("ip xfrm policy add dir in priority 5 src 10.9.0.0/16", host)
    conntrack.create_entries(host, [flow(9)])

    def everything() -> list[str]:
        passing = re.compile(r"\b(timeout|expires) \S+|^(udp +17) \d+|\d+ (?=s?ec)|(packets|bytes) \d+", re.MULTILINE)
        # The host's own multicast reports come when they come.
        fleeting = ("random", "count", "224.0.0.22")
        text = f"{shell(HOST, host)}\n{sets(host)}\n{saved(host)}"
        return [passing.sub("", line) for line in text.splitlines() if not any(word in line for word in fleeting)]

    with fresh() as space:
        shell("iptables-legacy -A INPUT -j DROP; ipset create mine hash:ip", space)
        shell("ip xfrm policy add dir out src 10.8.0.0/16; nft add table ip mine", space)
        before = everything()
        network = rtnl.read_network(space)
        with fresh() as copy, ExitStack() as undo:
            apply.apply(copy, plan_network(network, rtnl.read_network(copy)), undo)
            again = rtnl.read_network(copy)
        assert differences(everything(), before) == []
    for found in (network, again):
        assert [one.name for one in found.filtering.ip_sets] == ["mine"]
        assert [one.name for one in found.filtering.legacy_tables] == ["filter"]
        assert [one.name for one in found.nftables] == ["mine"]
        assert [one.selector.source for one in found.ipsec.policies] == ["10.8.0.0/16"]
        assert found.conntrack == ()
        assert "hosts" not in repr(found)


def test_module_that_is_not_loaded_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    dump = Netlink.dump

    def dump_noted(self: Netlink, kind: int, payload: bytes) -> list[tuple[int, bytes]]:
        asked.append(kind >> 8)
        return dump(self, kind, payload)

    monkeypatch.setattr(Netlink, "dump", dump_noted)
    monkeypatch.setattr(ipset, "unloaded", lambda name: name == "ip_set")
    with fresh() as space:
        assert ipset.read_sets(space) == ((), ())
    assert asked == []


def test_transaction_names_the_message_that_was_refused() -> None:
    header = struct.pack("=BBH", 2, 0, 0)
    table = (10 << 8, header + netlink.attribute(1, b"x\0"), netlink.NLM_F_CREATE)
    chain = netlink.attribute(1, b"nowhere\0") + netlink.attribute(3, b"y\0")
    with fresh() as space, Netlink(netlink.NETFILTER, netns=space) as connection:
        with pytest.raises(netlink.BatchRefusal) as caught:
            connection.transaction(10, [table, (10 << 8 | 3, header + chain, netlink.NLM_F_CREATE)])
        assert caught.value.position == 1
        assert shell("nft list ruleset", space) == ""
