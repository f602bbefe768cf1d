"""Tunnels as kernels show them: the bytes of IFLA_INFO_DATA from Linux 6.1 and 6.18, as options and back."""

from __future__ import annotations

import pytest

from ckpt.kernel import netlink, rtnl_codecs, rtnl_kinds
from ckpt.kernel.rtnl_tunnels import vxlan_reserved_bits
from ckpt.model.travel import KINDS, TUNNELS

# By kind: the attributes by number, in the kernel's order, and some of the options that they mean.
SHOWN = {
    "vxlan": (
        (
            "1:06000000 2:ef010101 3:03000000 5:05 28:00 6:08 29:00 26:00000000 32:00000000 7:00 11:01 12:01 "
            "13:01 14:01 25:00 8:4d000000 9:09000000 15:12b6 18:01 19:00 20:00 21:00 22:00 31:01 10:0bb80fa0 23:- "
            "33:77000000000000ff"
        ),
        {"id": "6", "group": "239.1.1.1", "ttl": "5", "port": "4790", "port_range": "3000-4000", "gbp": "1"},
    ),
    "geneve": (
        "1:05000000 2:0a000002 8:01 3:03 4:04 11:00000000 13:02 5:17c2 10:01 12:00",
        {"id": "5", "remote": "10.0.0.2", "ttl": "3", "port": "6082", "df": "2", "ttl_inherit": "0"},
    ),
    "gre": (
        (
            "1:03000000 2:b000 3:b000 4:01020304 5:0000004d 6:0a000001 7:0a000002 8:40 9:04 10:01 20:07000000 "
            "14:0000 16:0000 17:0000 15:0000 19:00"
        ),
        {"iflags": "45056", "ikey": "16909060", "okey": "77", "local": "10.0.0.1", "ttl": "64", "fwmark": "7"},
    ),
    "erspan": (
        (
            "22:02 23:01 24:1100 1:00000000 2:3000 3:3000 4:0000001f 5:0000001f 6:0a000001 7:0a000004 8:00 9:00 "
            "10:01 20:00000000 14:0000 16:0000 17:0000 15:0000 19:00"
        ),
        {"erspan_ver": "2", "erspan_dir": "1", "erspan_hwid": "17", "ikey": "31", "remote": "10.0.0.4"},
    ),
    "ip6gre": (
        (
            "1:03000000 2:b000 3:b000 4:00000005 5:00000006 6:fd000000000000000000000000000001 "
            "7:fd000000000000000000000000000002 8:21 11:03 12:00300012 13:00000300 20:00000000 14:0000 16:0000 "
            "17:0000 15:0200"
        ),
        {"local": "fd00::1", "ttl": "33", "encap_limit": "3", "flowinfo": str(0x300012), "flags": "0"},
    ),
    "sit": (
        "1:00000000 2:0a000006 3:00000000 4:00 5:00 10:01 9:00 8:0100 20:00000000 15:0000 17:0000 18:0000 16:0000",
        {"local": "10.0.0.6", "remote": "0.0.0.0", "flags": "1"},
    ),
    "ip6tnl": (
        (
            "1:03000000 2:fd000000000000000000000000000001 3:fd000000000000000000000000000002 4:09 6:04 "
            "7:01000055 8:11000300 9:04 20:00000000 15:0000 17:0000 18:0000 16:0200"
        ),
        {"proto": "4", "flowinfo": str(0x01000055), "flags": "17", "ttl": "9"},
    ),
    "vti": (
        "1:03000000 2:00000005 3:00000006 4:0a000001 5:0a000002 6:09000000",
        {"ikey": "5", "okey": "6", "local": "10.0.0.1", "remote": "10.0.0.2", "fwmark": "9"},
    ),
}


def data_of(shown: str) -> bytes:
    pairs = (one.split(":") for one in shown.split())
    return b"".join(netlink.attribute(int(kind), bytes.fromhex(value.strip("-"))) for kind, value in pairs)


@pytest.mark.parametrize("kind", SHOWN)
def test_options_are_read_and_read_again_from_what_is_given(kind: str) -> None:
    shown, some = SHOWN[kind]
    table = rtnl_kinds.OPTIONS[kind]
    options, unknown = rtnl_codecs.decode(table, data_of(shown))
    assert unknown == []
    assert {name: options[name] for name in some} == some
    again, _ = rtnl_codecs.decode(table, rtnl_codecs.encode(table, options))
    # What is not said is 0, or not there, in a new link.
    assert {name: value for name, value in options.items() if name not in again and value not in ("0", "0.0.0.0")} == {}
    assert {name: options[name] for name in again} == again


@pytest.mark.parametrize("kind", sorted(set(SHOWN) & set(rtnl_kinds.LOWER)))
def test_link_below_is_no_option(kind: str) -> None:
    options, _ = rtnl_codecs.decode(rtnl_kinds.OPTIONS[kind], data_of(SHOWN[kind][0]))
    assert "link" not in options


@pytest.mark.parametrize(
    ("kind", "options", "given"),
    [
        # vxlan_nl2flag, drivers/net/vxlan: a flag is set by being there, and its policy allows it no value.
        ("vxlan", {"ttl_inherit": "1"}, {28: b""}),
        ("vxlan", {"ttl_inherit": "0"}, {}),
        ("vxlan", {"gbp": "1"}, {23: b""}),
        # vxlan_nl2conf: being told of it at all takes a bit of the header.
        ("vxlan", {"remcsum_rx": "0"}, {}),
        # geneve_nl2info: told of the inheritance it passes over the TTL.
        ("geneve", {"ttl_inherit": "0", "ttl": "3"}, {3: b"\3"}),
        ("geneve", {"ttl_inherit": "1"}, {12: b"\1"}),
        # ipgre_tap_validate: an end that is 0.0.0.0 is refused.
        ("gretap", {"remote": "0.0.0.0", "local": "10.0.0.1"}, {6: b"\x0a\0\0\1"}),
        ("ip6gretap", {"remote": "::"}, {}),
    ],
)
def test_options_are_given_as_the_kernel_takes_them(
    kind: str, options: dict[str, str], given: dict[int, bytes]
) -> None:
    assert netlink.parse(rtnl_codecs.encode(rtnl_kinds.OPTIONS[kind], options)) == given


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, "f7ffffff000000ff"),
        ({"gbp": "1"}, "77000000000000ff"),
        ({"gpe": "1"}, "c2ffff00000000ff"),
        ({"remcsum_tx": "1", "remcsum_rx": "1"}, "f7dfffff00000000"),
    ],
)
def test_reserved_bits_that_nobody_chose_are_those_that_linux_6_18_shows(options: dict[str, str], bits: str) -> None:
    assert vxlan_reserved_bits(options) == bits


def test_every_tunnel_that_travels_has_a_table() -> None:
    assert set(rtnl_kinds.OPTIONS) >= TUNNELS
    assert set(rtnl_kinds.OPTIONS) | {"loopback"} >= KINDS
