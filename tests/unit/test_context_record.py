"""The record of a context: its sockets as they are on the host, its addresses on another host, and other names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckpt.errors import ImageError
from ckpt.image import schema
from ckpt.image.defect import Place
from ckpt.mapping import parse_mapping
from ckpt.model.checkpoint import Booking, ContextRecord, PlacedAddress
from ckpt.model.confined import as_bound, as_on_host, claiming, inwards, outwards
from ckpt.model.context import parse_set
from ckpt.model.host import LinkFacts
from ckpt.model.network import Address
from ckpt.model.socket import IPPROTO_TCP, IPPROTO_UDP, Endpoint, Socket, SocketOptions
from ckpt.remap_context import remap_context
from ckpt.remap_translator import Translator
from ckpt.revalidate.context import place

RECORD = ContextRecord(
    members=parse_set(("10.0.0.5/24", "10.0.0.6/24:80/tcp", "fd00::5/64")),
    loopback4="127.64.7.1",
    loopback6="fd63:6b70:7400::7",
    places=(
        PlacedAddress(address="10.0.0.5/24", ifname="eth0", given=True),
        PlacedAddress(address="10.0.0.6/24", ifname="eth0"),
        PlacedAddress(address="fd00::5/64", ifname="eth1"),
    ),
    bookings=(Booking(address="10.0.0.6", port=80, protocol=IPPROTO_TCP, primary="10.0.0.5", wild=1),),
)
LINKS = (LinkFacts(ifname="eth0", ifindex=2), LinkFacts(ifname="eth1", ifindex=3), LinkFacts(ifname="lo", ifindex=1))


def listener(address: str, port: int = 80, *, udp: bool = False, v6only: bool = False) -> Socket:
    return Socket(
        inode=1,
        netns=1,
        family="inet6" if ":" in address else "inet",
        type="dgram" if udp else "stream",
        protocol=IPPROTO_UDP if udp else IPPROTO_TCP,
        state="close" if udp else "listen",
        local=Endpoint(address=address, port=port),
        options=SocketOptions(v6only=v6only),
    )


@pytest.mark.parametrize(
    ("address", "wild", "expected"),
    [
        ("10.0.0.5", 1, "0.0.0.0"),
        ("::ffff:10.0.0.5", 1, "::ffff:0.0.0.0"),
        ("::ffff:10.0.0.5", 3, "::"),
        ("fd00::5", 2, "::"),
        ("10.0.0.5", 0, "10.0.0.5"),
        ("10.0.0.6", 1, "10.0.0.6"),  # bound there, where another socket on `*` has no entry as its first
    ],
)
def test_connected_datagram_socket_is_bound_to_what_the_books_say(address: str, wild: int, expected: str) -> None:
    first = "fd00::5" if address.startswith("fd") else "10.0.0.5"
    booking = Booking(address=first, port=53, protocol=IPPROTO_UDP, primary=first, wild=wild)
    record = replace(RECORD, bookings=(*RECORD.bookings, booking))
    one = replace(listener(address, 53, udp=True), remote=Endpoint(address="10.0.0.9", port=9))
    assert as_bound(record, one) == replace(one, local=Endpoint(address=expected, port=53))
    alone = replace(one, remote=None)
    assert as_bound(record, alone) == alone
    stream = replace(one, protocol=IPPROTO_TCP)
    assert (as_bound(record, stream), claiming(record, [stream])) == (stream, ())
    assert claiming(record, [one]) == as_on_host(record, [as_bound(record, one)])


@pytest.mark.parametrize(
    ("socket", "expected"),
    [
        (listener("0.0.0.0"), ["10.0.0.5", "10.0.0.6"]),
        (listener("0.0.0.0", 81), ["10.0.0.5"]),
        (listener("0.0.0.0", udp=True), ["10.0.0.5"]),
        (listener("::", v6only=True), ["fd00::5"]),
        (listener("::"), ["::ffff:10.0.0.5", "::ffff:10.0.0.6", "fd00::5"]),
        (listener("::ffff:0.0.0.0", 81), ["::ffff:10.0.0.5"]),
        (listener("10.0.0.6"), ["10.0.0.6"]),
        (listener("127.0.0.9"), ["127.64.7.9"]),
        (listener("::1"), ["fd63:6b70:7400::7"]),
    ],
)
def test_as_on_host_socket_answers_on_the_addresses_of_its_set(socket: Socket, expected: list[str]) -> None:
    assert [one.local.address for one in as_on_host(RECORD, [socket]) if one.local] == expected


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.200", "::ffff:127.0.0.1", "::1", "10.0.0.5", "fd00::5"])
def test_outwards_is_the_mirror_of_inwards(address: str) -> None:
    assert outwards(RECORD, inwards(RECORD, address)) == address


def test_place_puts_what_is_missing_where_the_source_had_it() -> None:
    placing = place(RECORD, LINKS, [Address(ifname="br0", address="10.0.0.6/24")])
    assert [(one.address, one.ifname) for one in placing.places] == [("10.0.0.5/24", "eth0"), ("fd00::5/64", "eth1")]
    assert {one.severity.value for one in placing.findings} == {"ok"}
    assert [(one.address, one.ifname) for one in placing.probes] == [("10.0.0.5", "eth0"), ("fd00::5", "eth1")]


def test_place_without_that_link_takes_the_one_that_has_the_subnet() -> None:
    links = (LinkFacts(ifname="wan", ifindex=2), LinkFacts(ifname="eth1", ifindex=3))
    placing = place(RECORD, links, [Address(ifname="wan", address="10.0.0.1/24")])
    assert [one.ifname for one in placing.places] == ["wan", "wan", "eth1"]


def test_place_without_a_link_blocks_and_says_how_to_name_one() -> None:
    (found,) = [one for one in place(RECORD, LINKS[:1], []).findings if one.code == "context-link"]
    assert (found.subject, found.remedy) == (
        "fd00::5",
        "name one with --map-link eth1=NEW, or put the address on a link yourself",
    )


def test_place_on_a_link_that_is_down_blocks() -> None:
    down = replace(LINKS[0], up=False)
    assert {one.code for one in place(RECORD, (down, *LINKS[1:]), []).findings} == {"link-down", "context-address"}


def test_remap_moves_addresses_links_ports_and_books() -> None:
    mapping = parse_mapping(["10.0.0.0/24=10.9.0.0/24"], ["eth0=wan"], ["80=8080/tcp"])
    found = remap_context(RECORD, Translator(mapping))
    assert [str(one) for one in found.members] == ["10.9.0.5/24", "10.9.0.6/24:8080/tcp", "fd00::5/64"]
    assert [(one.address, one.ifname) for one in found.places] == [
        ("10.9.0.5/24", "wan"),
        ("10.9.0.6/24", "wan"),
        ("fd00::5/64", "eth1"),
    ]
    assert found.bookings == (replace(RECORD.bookings[0], address="10.9.0.6", primary="10.9.0.5", port=8080),)


def test_two_addresses_that_become_one_are_refused() -> None:
    found = remap_context(RECORD, Translator(parse_mapping(["10.0.0.6=10.0.0.5"])))
    assert "map-address-taken" in {one.code for one in place(found, LINKS, []).findings}


def test_record_comes_back_from_an_image() -> None:
    assert schema.decode(ContextRecord, schema.encode(RECORD), "context", Place("x")) == RECORD


@pytest.mark.parametrize(
    "change",
    [
        {"members": []},
        {"members": [{"address": "10.0.0.x"}]},
        {"members": [{"address": "10.0.0.5", "prefix": 33}]},
        {"members": [{"address": "10.0.0.5", "ports": [{"low": 9, "high": 8}]}]},
        {"members": [{"address": "10.0.0.5", "ports": [{"low": 9, "high": 9, "protocol": "sctp"}]}]},
        {"loopback4": "::1"},
        {"places": [{"address": "eth0", "ifname": "eth0"}]},
        {"bookings": [{"address": "", "port": 1, "protocol": 6, "primary": "10.0.0.5"}]},
    ],
    ids=str,
)
def test_record_of_no_set_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ImageError, match="context"):
        schema.decode(ContextRecord, schema.encode(RECORD) | change, "context", Place("x"))
