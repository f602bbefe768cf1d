"""nftables: what the kernel lists of a ruleset is loaded again as it was, in the eyes of nft and of iptables."""

from __future__ import annotations

import re
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt.errors import NetworkError
from ckpt.kernel import netlink, nft
from ckpt.kernel.netlink import Netlink, attribute, nested
from ckpt.kernel.run import run
from ckpt.model.network import NftObject, NftTable
from tests.conftest import require
from tests.net.spaces import differences, fresh, shell

# Time runs on, and the kernel numbers anew.
_FLEETING = re.compile(r'"?(expires|handle)"?:? \w+')

RULESETS = {
    "sets": """table ip x {
        comment "tab q $le"
        set timed { type ipv4_addr; flags timeout,dynamic; timeout 2h; gc-interval 10s; size 4096; counter
            comment "its"
            elements = { 1.2.3.4 timeout 1h expires 30m comment "el", 1.2.3.5 timeout 10m } }
        set pairs { type ipv4_addr . inet_service; flags interval; auto-merge
            elements = { 10.0.0.0/8 . 80-90, 11.0.0.1-11.0.0.9 . 22 } }
        set ports { type inet_service; flags interval; elements = { 0-5, 6-9, 10, 20-65535 } }
        set any { type ipv4_addr; flags interval,timeout; counter
            elements = { 1.0.0.0/8 timeout 5m, 2.0.0.0-2.0.0.5, * counter packets 5 bytes 7 } }
        set volume { typeof ip saddr . tcp dport; flags dynamic; quota over 100 mbytes used 3 kbytes; }
        set counted { type ipv4_addr; flags dynamic; ct count over 20; elements = { 1.1.1.1 ct count over 20 } }
        set slow { type ipv4_addr; flags dynamic,timeout; timeout 1m
            elements = { 1.1.1.1 limit rate 5/second burst 5 packets } }
        set fixed { type ipv6_addr; flags constant; policy memory; elements = { fd00::1 } }
        chain y {
            type filter hook input priority filter + 10; policy drop
            update @slow { ip saddr limit rate 5/second burst 5 packets }
            add @volume { ip saddr . tcp dport quota over 100 mbytes }
            add @counted { ip saddr ct count over 20 }
            meter mm size 128 { ip saddr timeout 10s limit rate 5/second }
        }
    }""",
    "maps": """table inet x {
        counter c { packets 5 bytes 77; }
        map verdicts { type inet_service : verdict; flags interval; counter
            elements = { 80 : accept, 90-99 : goto other, * : jump more } }
        map ways { type ipv4_addr . inet_service : ipv4_addr . inet_service; flags timeout
            elements = { 1.2.3.4 . 80 timeout 1d : 10.0.0.1 . 8080 } }
        map ranges { type ipv4_addr : interval ipv4_addr; flags interval; elements = { 1.1.1.0/24 : 2.2.2.0/24 } }
        map counters { type ipv4_addr : counter; elements = { 1.1.1.1 : "c" } }
        chain other { comment "chain c"; counter; }
        chain more { tcp dport vmap @verdicts; counter name ip saddr map @counters; }
        chain last { ct state vmap { established : accept, invalid : drop, new : jump more }; }
        chain nat { type nat hook prerouting priority dstnat; dnat ip to ip saddr . tcp dport map @ways; }
    }""",
    "objects": """table ip x {
        counter c { comment "cc"
            packets 5 bytes 77 }
        quota qq { over 25 mbytes used 1000 bytes; }
        limit lim { rate over 400/minute burst 7 packets; }
        limit amount { rate 1024 kbytes/second burst 512 bytes; }
        ct helper std { type "ftp" protocol tcp; l3proto ip; }
        ct timeout agg { protocol tcp; l3proto ip; policy = { established: 100, close_wait: 4 }; }
        ct expectation e { protocol udp; dport 9876; timeout 2m; size 12; l3proto ip; }
        synproxy sy { mss 1460; wscale 7; timestamp sack-perm; }
        chain y {
            type filter hook input priority 0
            ct helper set "std"; ct timeout set "agg"; ct expectation set "e"; counter name c; quota name "qq"
            limit name "lim"; tcp dport 9 synproxy name "sy"
        }
    }""",
    "rules": """table inet x {
        flags dormant
        chain y {
            type filter hook input priority 0; policy drop
            ct state established,related counter packets 3 bytes 4 accept comment "rule c"
            quota over 1 mbytes used 500 bytes drop
            tcp flags syn / syn,rst log prefix "x y" group 3 snaplen 20 queue-threshold 3
            meta skuid 0 meta hour "10:00"-"12:00" meta day { "Monday", "Friday" } meta time < "2030-01-01 00:00:00"
            ct label 5 ct mark set 0x1 meta iifgroup 0 meta rtclassid 5
            meta mark set jhash ip saddr mod 5 seed 0xabcdef
            limit rate 5/second burst 7 packets
            ip dscp cs1 ip frag-off & 0x1fff != 0
            th dport { 1, 2, 3-7 } @th,0,16 5 @nh,8,3 2
            fib saddr . iif oif missing drop
            socket transparent 1
            ip saddr . tcp dport { 1.2.3.4 . 5, 2.3.4.5 . 6-9 }
            osf name "Linux"
            tcp option maxseg size set 1000
            reset tcp option sack-perm
            ip6 hoplimit set 5
            exthdr frag exists
            reject with icmpx admin-prohibited
        }
        chain r {
            type route hook output priority mangle
            socket mark 5 meta mark set ct mark
            meta mark set ip dscp map { cs1 : 3 }
            ct original ip saddr 1.1.1.1 ct bytes > 5000
            tcp flags syn tcp option maxseg size set rt mtu
        }
        chain n { type nat hook postrouting priority 100; masquerade random; tcp dport 5 snat ip to 1.1.1.1:5-6; }
    }""",
    "blocks": """table ip x {
        chain y {
            type filter hook input priority 0
            jump {
                tcp dport 5 counter
                udp dport 6 accept
            }
            udp dport 7 goto {
                drop
            }
            counter
        }
    }""",
    "devices": """table netdev n {
        set macs { type ether_addr; elements = { 02:00:00:00:00:01 } }
        chain in { type filter hook ingress devices = { v0, v1 } priority -500; policy accept
            ether saddr @macs drop
            ip saddr 1.1.1.1 fwd to "v1"
        }
        chain out { type filter hook egress device "v0" priority 0; }
    }
    table inet i { chain in { type filter hook ingress device "v1" priority 0; }; }
    table bridge b { chain x { type filter hook forward priority 0; ether type vlan vlan id 5 counter; }; }
    table arp a { chain x { type filter hook input priority 0; arp operation request counter packets 5 bytes 6; }; }""",
}

EXTENSIONS = """
iptables-nft -A INPUT -p tcp -m multiport --dports 1,2 -m comment --comment 'a "b" $c' -j ACCEPT -c 5 7
iptables-nft -A INPUT -p udp -m hashlimit --hashlimit-name x --hashlimit-above 5/sec -j DROP
iptables-nft -A INPUT ! -p tcp -m string --algo bm --string hello -j LOG --log-prefix "x: "
iptables-nft -A INPUT -m recent --name foo --set
iptables-nft -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
iptables-nft -t nat -A POSTROUTING -s 10.0.0.0/8 ! -o lo -j MASQUERADE --random
iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to 10.0.0.1:8080
iptables-nft -N foo; iptables-nft -A FORWARD -j foo; iptables-nft -A foo -p sctp -m sctp --dport 5
ip6tables-nft -A INPUT -p icmpv6 -m icmp6 --icmpv6-type 128 -m limit --limit 3/min -j REJECT
ip6tables-nft -A OUTPUT -p tcp -m owner --uid-owner 5 -m conntrack --ctstate NEW -j CONNMARK --set-mark 5
ebtables-nft -A FORWARD -p ARP -i lo -j DROP
arptables-nft -A INPUT -s 1.2.3.4 -j DROP
"""
SAVED = "iptables-nft-save -c; ip6tables-nft-save -c; ebtables-nft-save -c; arptables-nft-save -c"


def links(space: int) -> None:
    shell("ip link add v0 type veth peer name v1", space)


def ruleset(space: int) -> list[str]:
    """What nft shows of the namespace, as text and as JSON."""
    text = shell("nft list ruleset; nft -j list ruleset", space)
    return _FLEETING.sub(r"\1", text).splitlines()


@contextmanager
def copied(source: int) -> Iterator[int]:
    """A namespace with the same links and the ruleset that was read from ``source``."""
    tables, unread = nft.read_tables(source)
    assert unread == ()
    with fresh() as copy:
        links(copy)
        nft.load(copy, tables)
        yield copy


@pytest.mark.parametrize("which", RULESETS)
def test_ruleset_loaded_again_looks_equal(which: str) -> None:
    with fresh() as space:
        links(space)
        shell(f"nft -f - <<'END'\n{RULESETS[which]}\nEND", space)
        with copied(space) as copy:
            assert differences(ruleset(copy), ruleset(space)) == []


def test_iptables_extensions_loaded_again_look_equal() -> None:
    require(shutil.which("iptables-nft") is not None, "needs the package iptables")

    def saved(space: int) -> list[str]:
        return [line for line in shell(SAVED, space).splitlines() if not line.startswith("#")]

    with fresh() as space:
        shell(EXTENSIONS, space)
        with copied(space) as copy:
            assert '--comment "a \\"b\\" $c"' in "\n".join(saved(space))
            assert differences(saved(copy), saved(space)) == []


def test_remaining_time_of_elements_is_kept() -> None:
    with fresh() as space:
        shell("nft 'add table ip x; add set ip x s { type ipv4_addr; flags timeout; }'", space)
        shell("nft 'add element ip x s { 1.1.1.1 timeout 5h expires 1h, 1.1.1.2 timeout 5h }'", space)
        with copied(space) as copy:
            shown = shell("nft list set ip x s", copy)
    # What of it has passed meanwhile may be less than the second that nft shows.
    assert re.search(r"1\.1\.1\.1 timeout 5h expires (59m|1h)", shown)
    assert re.search(r"1\.1\.1\.2 timeout 5h expires (4h59m|5h)", shown)


def test_last_use_of_a_rule_is_kept() -> None:
    # nft learnt to say it later than the kernel: the rule is made as nft would.
    last = nested(1, attribute(1, b"last\0"), nested(2, attribute(1, struct.pack(">I", 1)), attribute(2, _ms(5_000))))
    with fresh() as space:
        shell("nft 'add table ip x; add chain ip x y'", space)
        rule = attribute(1, b"x\0") + attribute(2, b"y\0") + nested(4, last)
        message = (10 << 8 | 6, struct.pack("=BBH", 2, 0, 0) + rule, netlink.NLM_F_CREATE | netlink.NLM_F_APPEND)
        with Netlink(netlink.NETFILTER, netns=space) as connection:
            connection.transaction(10, [message])
        with copied(space) as copy:
            (table,), _ = nft.read_tables(copy)
    shown = netlink.parse(netlink.parse(table.objects[-1].attributes)[4])
    used = netlink.parse(netlink.parse(shown[1])[2])
    assert netlink.number(used[1], "be") == 1
    assert 5_000 <= netlink.number(used[2], "be") < 60_000


def _ms(value: int) -> bytes:
    return struct.pack(">Q", value)


def test_set_of_4096_elements_loaded_again_is_equal() -> None:
    elements = ", ".join(f"10.{number >> 8}.{number & 255}.1" for number in range(4096))
    with fresh() as space:
        shell(
            f"""nft -f - <<'END'
table ip x {{
    set plain {{ type ipv4_addr; counter; elements = {{ {elements} }}; }}
    set spans {{ type ipv4_addr; flags interval; elements = {{ {elements} }}; }}
}}
END""",
            space,
        )
        with copied(space) as copy:
            assert sorted(_elements(copy)) == sorted(_elements(space))
            assert len(_elements(copy)) == 3 * 4096


def _elements(space: int) -> list[str]:
    return re.findall(r"10\.\d+\.\d+\.1|packets \d+ bytes \d+", shell("nft list ruleset", space))


_PORTS = st.lists(st.integers(0, 65535), min_size=2, max_size=16, unique=True).map(sorted)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(ports=_PORTS, adjacent=st.booleans(), word=st.text("abc \\$'{};#é", min_size=1, max_size=9))
def test_random_intervals_loaded_again_are_equal(ports: list[int], adjacent: bool, word: str) -> None:
    spans = [f"{first}-{last}" for first, last in zip(ports[::2], ports[1::2], strict=False)]
    if adjacent and ports[-1] < 65000:
        last = max(ports) + 1
        spans += [f"{last}-{last + 9}", f"{last + 10}"]
    script = f"""table ip x {{
        set s {{ type inet_service; flags interval; comment "{word}"; elements = {{ {", ".join(spans)} }}; }}
    }}
    """
    with fresh() as space:
        # Not through a shell's text: the comment is any.
        run(["nft", "-f", "-"], input=script.encode(), netns=space)
        with copied(space) as copy:
            assert differences(ruleset(copy), ruleset(space)) == []


def test_read_of_loaded_tables_is_equal_to_what_was_loaded() -> None:
    with fresh() as space:
        shell(f"nft -f - <<'END'\n{RULESETS['rules']}\nEND", space)
        first, _ = nft.read_tables(space)
        with fresh() as copy:
            nft.load(copy, first)
            assert differences(nft.read_tables(copy)[0], first) == []


def test_table_without_objects_is_loaded_from_its_text() -> None:
    text = "table ip x {\n\tchain y {\n\t\tcounter packets 5 bytes 7\n\t}\n}\n"
    with fresh() as space:
        nft.load(space, [NftTable(family="ip", name="x", text=text)])
        assert shell("nft list ruleset", space) == text


def test_refused_ruleset_names_the_object_and_leaves_nothing() -> None:
    chain = attribute(1, b"x\0") + attribute(3, b"y\0")
    lookup = nested(1, attribute(1, b"lookup\0"), nested(2, attribute(1, b"nowhere\0"), attribute(2, b"\0\0\0\1")))
    rule = attribute(1, b"x\0") + attribute(2, b"y\0") + nested(4, lookup)
    objects = (
        NftObject(kind="table", attributes=attribute(1, b"x\0")),
        NftObject(kind="chain", attributes=chain),
        NftObject(kind="rule", attributes=rule),
    )
    with fresh() as space, pytest.raises(NetworkError) as caught:
        nft.load(space, [NftTable(family="ip", name="x", text="", objects=objects)])
    assert caught.value.code == "nft-load"
    assert caught.value.brief == "cannot load the nftables rule (lookup) in the chain y of the table ip x"
    with fresh() as space:
        with pytest.raises(NetworkError):
            nft.load(space, [NftTable(family="ip", name="x", text="", objects=objects)])
        assert shell("nft list ruleset", space) == ""


@pytest.mark.parametrize(("family", "kind"), [("decnet", "table"), ("ip", "hook")])
def test_object_of_no_known_kind_is_refused(family: str, kind: str) -> None:
    one = NftObject(kind=kind, attributes=attribute(1, b"x\0"))
    with fresh() as space, pytest.raises(NetworkError) as caught:
        nft.load(space, [NftTable(family=family, name="x", text="", objects=(one,))])
    assert caught.value.code == "nft-load"


def test_owned_table_travels_without_its_owner() -> None:
    with fresh() as space, Netlink(netlink.NETFILTER, netns=space) as owner:
        table = attribute(1, b"x\0") + attribute(2, struct.pack(">I", 2))
        owner.transaction(10, [(10 << 8, struct.pack("=BBH", socket.AF_INET, 0, 0) + table, netlink.NLM_F_CREATE)])
        tables, unread = nft.read_tables(space)
        assert [one.code for one in unread] == ["nft-owner"]
        with fresh() as copy:
            nft.load(copy, tables)
            assert shell("nft list ruleset", copy) == "table ip x {\n}\n"
