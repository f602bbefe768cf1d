"""What tunnels keep in IFLA_INFO_DATA, each kind in the order of its numbers in the kernel's headers.

A tunnel names the link below it here, and not in IFLA_LINK, which for some kinds says nothing and for others repeats
it; that attribute is in ``LOWER`` and becomes the link's counterpart.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ckpt.kernel import netlink
from ckpt.kernel.rtnl_codecs import BE16, BE32, FLAG, IP, U8, U16, U32, Codec, Table

# Which packets an IPv6 tunnel can send and receive, as its addresses say: IP6_TNL_F_CAP_* of the kernel
_WORKED_OUT_FLAGS = 0x70000


def _port_range(value: bytes) -> str:
    low, high = struct.unpack(">HH", value)
    return f"{low}-{high}"


def _port_range_bytes(value: str) -> bytes:
    low, _, high = value.partition("-")
    return struct.pack(">HH", int(low), int(high))


def _end_bytes(value: str) -> bytes | None:
    data = netlink.ip_bytes(value)
    return data if any(data) else None


_END = Codec(netlink.ip_text, _end_bytes)
"""One of the two ends. A tunnel without one is shown to have none, and some kinds are refused when they are told so."""

_PORTS = Codec(_port_range, _port_range_bytes)
_BITS = Codec(bytes.hex, bytes.fromhex)
# Shown as numbers, and not always taken as such: vxlan inherits the TTL when it is told anything of it, geneve then
# passes over the TTL itself, and a vxlan that is told of remote checksums needs their bits in its header.
_VXLAN_TTL_INHERIT = Codec(U8.decode, FLAG.encode)
_U8_IF_SET = Codec(U8.decode, lambda value: b"\x01" if value == "1" else None)
_IP6_FLAGS = Codec(lambda value: str(netlink.number(value) & ~_WORKED_OUT_FLAGS), U32.encode)

_VXLAN: Table = {
    1: ("id", U32),
    2: ("group", _END),
    3: ("link", None),
    4: ("local", _END),
    5: ("ttl", U8),
    6: ("tos", U8),
    7: ("learning", U8),
    8: ("ageing", U32),
    9: ("limit", U32),
    10: ("port_range", _PORTS),
    11: ("proxy", U8),
    12: ("rsc", U8),
    13: ("l2miss", U8),
    14: ("l3miss", U8),
    15: ("port", BE16),
    16: ("group6", _END),
    17: ("local6", _END),
    18: ("udp_csum", U8),
    19: ("udp_zero_csum6_tx", U8),
    20: ("udp_zero_csum6_rx", U8),
    21: ("remcsum_tx", _U8_IF_SET),
    22: ("remcsum_rx", _U8_IF_SET),
    23: ("gbp", FLAG),
    24: ("remcsum_nopartial", FLAG),
    25: ("collect_metadata", U8),
    26: ("label", BE32),
    27: ("gpe", FLAG),
    28: ("ttl_inherit", _VXLAN_TTL_INHERIT),
    29: ("df", U8),
    30: ("vnifilter", U8),
    31: ("localbypass", U8),
    32: ("label_policy", U32),
    33: ("reserved_bits", _BITS),
    34: ("mc_route", U8),
}

_GENEVE: Table = {
    1: ("id", U32),
    2: ("remote", _END),
    3: ("ttl", U8),
    4: ("tos", U8),
    5: ("port", BE16),
    6: ("collect_metadata", FLAG),
    7: ("remote6", _END),
    8: ("udp_csum", U8),
    9: ("udp_zero_csum6_tx", U8),
    10: ("udp_zero_csum6_rx", U8),
    11: ("label", BE32),
    12: ("ttl_inherit", _U8_IF_SET),
    13: ("df", U8),
    14: ("inner_proto_inherit", FLAG),
    15: ("port_range", _PORTS),
}

_GRE: Table = {
    1: ("link", None),
    2: ("iflags", BE16),
    3: ("oflags", BE16),
    4: ("ikey", BE32),
    5: ("okey", BE32),
    6: ("local", _END),
    7: ("remote", _END),
    8: ("ttl", U8),
    9: ("tos", U8),
    10: ("pmtudisc", U8),
    11: ("encap_limit", U8),
    12: ("flowinfo", BE32),
    13: ("flags", _IP6_FLAGS),
    14: ("encap_type", U16),
    15: ("encap_flags", U16),
    16: ("encap_sport", BE16),
    17: ("encap_dport", BE16),
    18: ("collect_metadata", FLAG),
    19: ("ignore_df", U8),
    20: ("fwmark", U32),
    21: ("erspan_index", U32),
    22: ("erspan_ver", U8),
    23: ("erspan_dir", U8),
    24: ("erspan_hwid", U16),
}

_IPTUN: Table = {
    1: ("link", None),
    2: ("local", _END),
    3: ("remote", _END),
    4: ("ttl", U8),
    5: ("tos", U8),
    6: ("encap_limit", U8),
    7: ("flowinfo", BE32),
    8: ("flags", U16),
    9: ("proto", U8),
    10: ("pmtudisc", U8),
    11: ("6rd_prefix", IP),
    12: ("6rd_relay_prefix", IP),
    13: ("6rd_prefixlen", U16),
    14: ("6rd_relay_prefixlen", U16),
    15: ("encap_type", U16),
    16: ("encap_flags", U16),
    17: ("encap_sport", BE16),
    18: ("encap_dport", BE16),
    19: ("collect_metadata", FLAG),
    20: ("fwmark", U32),
}

_VTI: Table = {
    1: ("link", None),
    2: ("ikey", BE32),
    3: ("okey", BE32),
    4: ("local", _END),
    5: ("remote", _END),
    6: ("fwmark", U32),
}

_XFRM: Table = {
    1: ("link", None),
    2: ("if_id", U32),
    3: ("collect_metadata", FLAG),
}

_BAREUDP: Table = {
    1: ("port", BE16),
    2: ("ethertype", BE16),
    3: ("srcport_min", U16),
    4: ("multiproto_mode", FLAG),
}

_AMT: Table = {
    1: ("mode", U32),
    2: ("relay_port", BE16),
    3: ("gateway_port", BE16),
    4: ("link", None),
    5: ("local", IP),
    6: ("remote", None),  # the relay that a gateway has found
    7: ("discovery", IP),
    8: ("max_tunnels", U32),
}

OPTIONS: Mapping[str, Table] = {
    "vxlan": _VXLAN,
    "geneve": _GENEVE,
    "gre": _GRE,
    "gretap": _GRE,
    "erspan": _GRE,
    "ip6gre": _GRE,
    "ip6gretap": _GRE,
    "ip6erspan": _GRE,
    "ipip": _IPTUN,
    "sit": _IPTUN,
    "ip6tnl": {**_IPTUN, 8: ("flags", _IP6_FLAGS)},
    "vti": _VTI,
    "vti6": _VTI,
    "xfrm": _XFRM,
    "bareudp": _BAREUDP,
    "amt": _AMT,
}
"""The kinds of tunnel that travel."""

LOWER: Mapping[str, int] = {
    kind: number for kind, table in OPTIONS.items() for number, (name, _) in table.items() if name == "link"
}
"""The attribute of each kind that names the link below it; 0, or none, leaves that to the routes."""

LEAST: Mapping[str, Mapping[str, str]] = {
    "vxlan": {"id": "1"},
    "geneve": {"id": "1", "remote": "192.0.2.1"},
    "erspan": {"iflags": "12288", "oflags": "12288", "local": "192.0.2.2", "remote": "192.0.2.1"},
    "ip6erspan": {"iflags": "12288", "oflags": "12288"},
    "xfrm": {"if_id": "1"},
    "bareudp": {"port": "6635", "ethertype": "34887"},
    "amt": {"mode": "1", "local": "192.0.2.2"},
}
"""The options without which a kind cannot be made."""

_6TO4 = {"6rd_prefix": "2002::", "6rd_prefixlen": "16", "6rd_relay_prefix": "0.0.0.0", "6rd_relay_prefixlen": "0"}

LACKED: Mapping[str, Mapping[str, str]] = {
    "vxlan": {"localbypass": "1"},
    "geneve": {"port_range": "1-65535"},
    "sit": _6TO4,
}
"""What a kernel does that does not know an option, where that is not the same as 0."""

_VXLAN_USED_BITS = {
    "": (0x08000000, 0xFFFFFF00),
    "gbp": (0x80FFFFFF, 0),
    "gpe": (0x350000FF, 0),
    "remcsum_rx": (0x00200000, 0xFF),
}


def vxlan_reserved_bits(options: Mapping[str, str]) -> str:
    """The bits of a vxlan header that have to be 0 where nobody chose them; kernels before 6.14 let nobody choose."""
    flags, vni = 0, 0
    for name, used in _VXLAN_USED_BITS.items():
        if not name or options.get(name) == "1":
            flags, vni = flags | used[0], vni | used[1]
    return struct.pack(">II", ~flags & 0xFFFFFFFF, ~vni & 0xFFFFFFFF).hex()
