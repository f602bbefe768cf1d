"""Mappings from words and files: what they say, and what cannot be meant."""

from __future__ import annotations

import ipaddress

import pytest

from ckpt.errors import UsageError
from ckpt.mapping import AddressMap, LinkMap, MacMap, Mapping, PortMap, parse_mapping

FILE = """
[address]
"10.0.0.0/24" = "10.1.0.0/24"
"fd00::2" = "fd01::2"
[link]
br0 = "br1"
[port]
80 = 8080
53 = "5353/udp"
[mac]
"02:00:00:00:00:01" = "02:00:00:00:00:0A"
"""


def refusal(**words: list[str]) -> str:
    with pytest.raises(UsageError) as caught:
        parse_mapping(**words)
    return caught.value.code


def test_parse_takes_words_and_files_together() -> None:
    assert parse_mapping(["10.0.0.2=10.1.0.9"], ["a=b"], ["81=8081/tcp"], [FILE]) == Mapping(
        addresses=(
            AddressMap(old="10.0.0.2", new="10.1.0.9"),
            AddressMap(old="10.0.0.0/24", new="10.1.0.0/24"),
            AddressMap(old="fd00::2", new="fd01::2"),
        ),
        links=(LinkMap(old="a", new="b"), LinkMap(old="br0", new="br1")),
        ports=(
            PortMap(old=81, new=8081, protocol="tcp"),
            PortMap(old=80, new=8080),
            PortMap(old=53, new=5353, protocol="udp"),
        ),
        macs=(MacMap(old="02:00:00:00:00:01", new="02:00:00:00:00:0a"),),
    )


def test_empty_mapping_is_false_and_changes_nothing() -> None:
    mapping = parse_mapping()
    assert not mapping
    assert (mapping.link("br0"), mapping.port(80, "tcp")) == ("br0", 80)
    assert mapping.address(ipaddress.ip_address("10.0.0.1")) == (ipaddress.ip_address("10.0.0.1"), None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("10.0.0.2", "10.9.0.1"),  # the longest prefix that covers it
        ("10.0.0.3", "10.1.0.3"),
        ("10.0.1.3", "10.0.1.3"),
        ("fd00:0:0:1::5", "fd00:0:0:2::5"),
        ("::ffff:10.0.0.3", "::ffff:10.1.0.3"),
    ],
)
def test_address_goes_by_the_longest_prefix(given: str, expected: str) -> None:
    mapping = parse_mapping(["10.0.0.0/24=10.1.0.0/24", "10.0.0.2=10.9.0.1", "fd00:0:0:1::/64=fd00:0:0:2::/64"])
    assert mapping.address(ipaddress.ip_address(given))[0] == ipaddress.ip_address(expected)


def test_network_within_a_prefix_moves_and_around_it_stays() -> None:
    mapping = parse_mapping(["10.0.0.0/24=10.1.0.0/24"])
    assert str(mapping.network(ipaddress.ip_network("10.0.0.128/25"))[0]) == "10.1.0.128/25"
    assert str(mapping.network(ipaddress.ip_network("10.0.0.0/16"))[0]) == "10.0.0.0/16"


def test_two_can_be_exchanged() -> None:
    mapping = parse_mapping(["10.0.0.1=10.0.0.2", "10.0.0.2=10.0.0.1"])
    assert str(mapping.address(ipaddress.ip_address("10.0.0.1"))[0]) == "10.0.0.2"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("map-syntax", {"addresses": ["10.0.0.1"]}),
        ("map-syntax", {"links": ["=br0"]}),
        ("map-address", {"addresses": ["10.0.0.1=there"]}),
        ("map-address", {"addresses": ["10.0.0.1/24=10.1.0.0/24"]}),
        ("map-address", {"addresses": ["127.0.0.1=10.0.0.1"]}),
        ("map-family", {"addresses": ["10.0.0.1=fd00::1"]}),
        ("map-prefix", {"addresses": ["10.0.0.0/24=10.1.0.0/25"]}),
        ("map-prefix", {"addresses": ["10.0.0.0/24=10.1.0.1"]}),
        ("map-twice", {"addresses": ["10.0.0.1=10.0.0.2", "10.0.0.1=10.0.0.3"]}),
        ("map-taken", {"addresses": ["10.0.0.1=10.0.0.9", "10.0.0.2=10.0.0.9"]}),
        ("map-taken", {"addresses": ["10.0.0.0/24=10.2.0.0/24", "10.1.0.0/25=10.2.0.0/25"]}),
        ("map-link", {"links": ["br0=a/b"]}),
        ("map-link", {"links": ["br0=averyverylongname"]}),
        ("map-twice", {"links": ["br0=br1", "br0=br2"]}),
        ("map-port", {"ports": ["80=0"]}),
        ("map-port", {"ports": ["80=http"]}),
        ("map-port", {"ports": ["80=81/sctp"]}),
        ("map-twice", {"ports": ["80=81", "80=82/udp"]}),
        ("map-taken", {"ports": ["80=90/tcp", "81=90"]}),
        ("map-file", {"files": ["not toml"]}),
        ("map-file", {"files": ['[route]\n"a"="b"']}),
        ("map-file", {"files": ["[address]\n10 = 5"]}),
        ("map-twice", {"files": [FILE], "links": ["br0=br2"]}),
        ("map-mac", {"macs": ["eth0=02:00:00:00:00:01"]}),
        ("map-mac", {"macs": ["02:00:00:00:00:01=03:00:00:00:00:01"]}),
        ("map-mac", {"macs": ["02:00:00:00:00:01=00:00:00:00:00:00"]}),
        ("map-twice", {"macs": ["02:00:00:00:00:01=02:00:00:00:00:02", "02:00:00:00:00:01=02:00:00:00:00:03"]}),
        ("map-taken", {"macs": ["02:00:00:00:00:01=02:00:00:00:00:09", "02:00:00:00:00:02=02:00:00:00:00:09"]}),
    ],
)
def test_parse_refuses_what_cannot_be_meant(code: str, words: dict[str, list[str]]) -> None:
    assert refusal(**words) == code


def test_ports_of_two_protocols_do_not_meet() -> None:
    mapping = parse_mapping(ports=["53=5353/udp", "53=5454/tcp"])
    assert (mapping.port(53, "udp"), mapping.port(53, "tcp")) == (5353, 5454)
