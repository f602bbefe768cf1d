"""Addresses in rulesets: what is loaded after they were moved is what nft makes of the other text."""

from __future__ import annotations

import re

import pytest

from ckpt.kernel import nft, nft_addresses
from ckpt.mapping import parse_mapping
from ckpt.model.network import NftTable
from ckpt.remap_translator import Translator
from tests.net.spaces import differences, fresh, shell

MAPPED = ("10.0.0.0/24=10.1.0.0/24", "192.0.2.7=192.0.2.8", "fd00:0:0:1::/64=fd00:0:0:2::/64")

# Each with OLD and SIX, of which the same text with NEW and SEVEN is what it has to become.
RULESETS = {
    "sets": """table inet x {
        set plain { type ipv4_addr; elements = { OLD.2 comment "one", 10.9.9.9, 192.0.2.SINGLE } }
        set six { type ipv6_addr; elements = { SIX::2, fd09::1 } }
        set pairs { type ipv4_addr . inet_service; elements = { OLD.2 . 80, 10.9.9.9 . 81 } }
        set ranges { type ipv4_addr . inet_service; flags interval
            elements = { OLD.0/25 . 80-90, OLD.130-OLD.139 . 22 } }
        set nets { type ipv4_addr; flags interval; elements = { 10.0.2.0/24, OLD.0/28, OLD.32-OLD.35, 9.0.0.0/8 } }
        set timed { type ipv4_addr; flags timeout; elements = { OLD.2 timeout 100d } }
        set ports { type inet_service; elements = { 80 } }
        set names { typeof meta iifname . ip saddr; elements = { "eth0" . OLD.4 } }
    }""",
    "macs": """table inet x {
        set plain { type ether_addr; elements = { MAC, 02:00:00:00:00:07 } }
        set pairs { type ipv4_addr . ether_addr; elements = { OLD.2 . MAC, 10.9.9.9 . 02:00:00:00:00:09 } }
        set ranges { type ether_addr; flags interval; elements = { MAC, 02:00:00:00:00:10-02:00:00:00:00:20 } }
        map to { type ether_addr : ipv4_addr; elements = { MAC : OLD.2 } }
        chain y { type filter hook input priority 0
            ether saddr MAC accept
            ether daddr != MAC accept
            ether saddr { MAC, 02:00:00:00:00:08 } accept
            ether saddr MAC ip saddr OLD.2 accept
            ether daddr MAC ether saddr 02:00:00:00:00:04 ip daddr OLD.0/25 accept
            ether saddr & ff:ff:ff:00:00:00 == 02:00:00:00:00:00 accept
        }
    }
    table arp a { chain y { arp saddr ether MAC accept; arp daddr ether MAC arp saddr ip 9.9.9.9 accept; }; }
    table bridge b { chain y { ether saddr MAC accept; }; }""",
    "maps": """table ip x {
        map ways { type ipv4_addr . inet_service : ipv4_addr . inet_service
            elements = { OLD.2 . 80 : OLD.3 . 8080 } }
        map to { type inet_service : ipv4_addr; elements = { 80 : OLD.2 } }
        map verdicts { type ipv4_addr : verdict; elements = { OLD.2 : accept } }
    }""",
    "rules": """table inet x {
        chain y { type filter hook input priority 0
            ip saddr OLD.2 accept
            ip saddr OLD.0/24 accept
            ip daddr != OLD.16/28 accept
            ip saddr OLD.5-OLD.9 accept
            ip saddr OLD.2 ip daddr OLD.3 accept
            ip saddr 10.9.9.9 ip daddr OLD.3 ip protocol tcp accept
            ip saddr { OLD.3, OLD.4 } accept
            ip saddr . tcp dport { OLD.2 . 5, 2.3.4.5 . 6-9 } accept
            ip saddr 10.0.0.0/16 accept
            ip6 saddr SIX::2 accept
            ip6 daddr SIX::/64 accept
            ip6 daddr SIX:8000::/65 accept
            ct original ip saddr OLD.2 accept
            mark 0x0a000002 accept
            tcp dport 80 accept
        }
        chain n { type nat hook prerouting priority -100
            tcp dport 80 dnat ip to OLD.2:8080
            tcp dport 81 dnat ip to OLD.2-OLD.5
            tcp dport 82 dnat ip6 to SIX::2
            ip daddr OLD.2 tcp dport 83 redirect to :84
        }
        chain s { type nat hook postrouting priority 100; ip saddr OLD.0/24 snat ip to 192.0.2.SINGLE; }
    }
    table ip6 six { chain y { ip6 saddr SIX::/56 accept; ip6 saddr SIX::/72 accept; }; }
    table ip four { chain y { ip saddr OLD.0/26 accept; ip protocol tcp accept; ip ttl 5 accept; }; }""",
}


def text(ruleset: str, *, moved: bool) -> str:
    old, six, single = ("10.1.0", "fd00:0:0:2", "8") if moved else ("10.0.0", "fd00:0:0:1", "7")
    mac = f"02:00:00:00:00:0{2 if moved else 1}"
    return ruleset.replace("OLD", old).replace("SIX", six).replace("SINGLE", single).replace("MAC", mac)


def moved(table: NftTable) -> tuple[NftTable, tuple[str, ...]]:
    translator = Translator(parse_mapping(MAPPED, macs=["02:00:00:00:00:01=02:00:00:00:00:02"]))
    moves = nft_addresses.Moves(
        address=translator.address, network=translator.network, hardware=translator.hardware, macs=translator.macs
    )
    objects, left = nft_addresses.translated(table.family, table.objects, moves)
    return NftTable(family=table.family, name=table.name, text="", objects=objects), left


def listed(space: int) -> list[str]:
    return re.sub(r" expires \w+", "", shell("nft -n list ruleset", space)).splitlines()


@pytest.mark.parametrize("which", RULESETS)
def test_moved_ruleset_is_that_of_the_other_addresses(which: str) -> None:
    with fresh() as source, fresh() as copy, fresh() as wanted:
        shell(f"nft -f - <<'END'\n{text(RULESETS[which], moved=False)}\nEND", source)
        shell(f"nft -f - <<'END'\n{text(RULESETS[which], moved=True)}\nEND", wanted)
        done = [moved(table) for table in nft.read_tables(source)[0]]
        nft.load(copy, [table for table, _ in done])
        assert differences(listed(copy), listed(wanted)) == []
        assert [one for _, left in done for one in left] == []


@pytest.mark.parametrize(
    ("rule", "where"),
    [
        ("ip saddr 10.0.0.200-10.0.1.5 accept", "a rule of the chain y"),
        ("ip saddr <= 10.0.0.9 accept", "a rule of the chain y"),
        ("ip saddr > 10.0.0.9 accept", "a rule of the chain y"),
        ("ip saddr & 255.0.255.0 == 10.0.0.0 accept", ""),
        ("ether saddr 02:00:00:00:00:00-02:00:00:00:00:05 accept", "a rule of the chain y"),
        ("ether saddr 02:00:00:00:00:02-02:00:00:00:00:05 accept", ""),
    ],
)
def test_what_cannot_be_moved_is_left_and_named(rule: str, where: str) -> None:
    with fresh() as source:
        shell(f"nft 'add table inet x; add chain inet x y; add rule inet x y {rule}'", source)
        (table,) = nft.read_tables(source)[0]
        result, left = moved(table)
        assert result.objects == table.objects
        assert left == ((where,) if where else ())


def test_ruleset_without_mapped_addresses_stays_byte_for_byte() -> None:
    with fresh() as source:
        ruleset = (
            "table inet x { set s { type ipv4_addr; elements = { 1.2.3.4 } }; chain y { ip saddr 5.6.7.8 drop; }; }"
        )
        shell(f"nft '{ruleset}'", source)
        (table,) = nft.read_tables(source)[0]
        assert moved(table)[0].objects == table.objects
