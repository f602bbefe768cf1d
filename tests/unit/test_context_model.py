"""Sets of addresses: what is written, what the kernel's maps hold of it, and what cannot be one."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from ckpt.errors import UsageError
from ckpt.kernel import context_maps
from ckpt.kernel.context_maps import Surroundings
from ckpt.model.context import MOST_ADDRESSES, Context, Member, PortRange, parse_member, parse_set

SURROUNDINGS = Surroundings(low=32768, high=60999, v6only=False)


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ("10.0.0.5", Member(address="10.0.0.5")),
        ("10.0.0.5/24", Member(address="10.0.0.5", prefix=24)),
        ("10.0.0.5:80", Member(address="10.0.0.5", ports=(PortRange(low=80, high=80),))),
        (
            "10.0.0.5/8:80-89/tcp",
            Member(address="10.0.0.5", prefix=8, ports=(PortRange(low=80, high=89, protocol="tcp"),)),
        ),
        ("fd00::5", Member(address="fd00::5")),
        ("fd00:0::5/64", Member(address="fd00::5", prefix=64)),
        ("[fd00::5]/64", Member(address="fd00::5", prefix=64)),
        ("[fd00::5]:53/udp", Member(address="fd00::5", ports=(PortRange(low=53, high=53, protocol="udp"),))),
    ],
)
def test_member_is_read_as_it_is_written(text: str, member: Member) -> None:
    assert parse_member(text) == member
    assert parse_member(str(member)) == member


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "10.0.0",
        "10.0.0.5/33",
        "10.0.0.5:0",
        "10.0.0.5:90-80",
        "10.0.0.5:65536",
        "10.0.0.5:80/icmp",
        "[10.0.0.5]:80",
        "fd00::5/129",
        "::",
        "::1",
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "ff02::1",
        "fe80::1",
        "::ffff:10.0.0.5",
        "10.0.0.5 ",
        "10.0.0.5%eth0",
        "١٠.0.0.5",
    ],
)
def test_what_is_no_member_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_member(text)
    assert (caught.value.code, repr(text) in caught.value.brief) == ("address-invalid", True)


def test_set_keeps_its_order_and_joins_the_ports_of_one_address() -> None:
    members = parse_set(["10.0.0.6", "10.0.0.5:80/tcp", "fd00::5", "10.0.0.5/24:53/udp"])
    assert [one.address for one in members] == ["10.0.0.6", "10.0.0.5", "fd00::5"]
    assert (members[1].prefix, [str(one) for one in members[1].ports]) == (24, ["80/tcp", "53/udp"])
    assert str(members[1]) == "10.0.0.5/24:80/tcp 10.0.0.5/24:53/udp"


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        (["10.0.0.5", "10.0.0.5"], "address-doubled"),
        (["10.0.0.5", "10.0.0.5:80"], "address-doubled"),
        (["10.0.0.5:80", "10.0.0.5:80"], "address-doubled"),
        (["10.0.0.5/24:80", "10.0.0.5/16:81"], "address-doubled"),
        (["fd00::5", "fd00:0:0::5"], "address-doubled"),
        ([f"10.0.0.5:{port}" for port in range(80, 85)], "set-too-large"),
        ([f"10.0.1.{number}" for number in range(MOST_ADDRESSES + 1)], "set-too-large"),
    ],
)
def test_set_that_does_not_fit_together_is_refused(texts: list[str], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_set(texts)
    assert caught.value.code == code


def sample(*texts: str) -> Context:
    members = tuple(
        one if one.prefix is not None else replace(one, prefix=one.ip.max_prefixlen) for one in parse_set(texts)
    )
    return Context(
        name="one",
        cgroup="/sys/fs/cgroup/ckpt-5-one",
        number=300,
        netns=5,
        members=members,
        loopback4="127.65.44.1",
        loopback6="fd63:6b70:7400::12c",
    )


@pytest.mark.parametrize(
    "texts",
    [
        ["10.0.0.5/24"],
        ["fd00::5/64"],
        ["10.0.0.5/24:80-89/tcp", "10.0.0.6/0", "[fd00::5]/64:53", "fd00::6/1"],
        [f"10.0.1.{number}/24" for number in range(MOST_ADDRESSES)],
    ],
)
def test_context_survives_the_maps(texts: list[str]) -> None:
    context = sample(*texts)
    raw = context_maps.encode_config(context, SURROUNDINGS)
    assert len(raw) == context_maps.CONFIG_SIZE
    # Each family keeps its order; IPv4 comes first.
    ordered = sorted(context.members, key=lambda one: one.ip.version)
    assert context_maps.decode_config(raw, context.name, context.cgroup) == replace(context, members=tuple(ordered))


def test_members_are_the_set_and_both_loopback_addresses() -> None:
    found = context_maps.encode_members(sample("10.0.0.5:80/tcp", "fd00::5"))
    names = {context_maps.address_text(key): value for key, value in found.items()}
    assert set(names) == {"10.0.0.5", "fd00::5", "127.65.44.1", "fd63:6b70:7400::12c"}
    assert all(len(value) == context_maps.MEMBER_SIZE for value in names.values())
    assert struct.unpack_from("=HHHH", names["10.0.0.5"]) == (0, 80, 0, 1)
    assert struct.unpack_from("=HHHH", names["fd00::5"]) == (0, 0, 65535, 3)
    assert struct.unpack_from("=HHHH", names["127.65.44.1"]) == (1, 0, 65535, 3)


def test_claim_is_read_from_the_books() -> None:
    key = context_maps.KEY.pack(context_maps.address_bytes("10.0.0.6"), 80, 6, 0)
    value = context_maps.CLAIM.pack(7 << 16 | 2, 300, 1 | 4, context_maps.address_bytes("10.0.0.5"))
    claim = context_maps.decode_claim(key, value)
    assert (claim.address, claim.port, claim.protocol, claim.number) == ("10.0.0.6", 80, 6, 300)
    assert (claim.sockets, claim.wild, claim.primary) == (2, 1, "10.0.0.5")
