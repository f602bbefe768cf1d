"""What each kind of link keeps in IFLA_INFO_DATA, and what each kind of master keeps of its ports.

One table per kind: the number of an attribute, its name in records, and the codec between the kernel's bytes and the
record's text. An attribute without a codec is one that the kernel works out (a timer, a counter, a state): it is read
over. An attribute that is in no table is told to the caller, who names it. A new kind is a new table, nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ckpt.kernel import netlink


@dataclass(frozen=True, slots=True)
class Codec:
    """The two directions of one attribute's value."""

    decode: Callable[[bytes], str]
    encode: Callable[[str], bytes]


Table = Mapping[int, tuple[str, Codec | None]]


def _integer(size: int, order: str = "host") -> Codec:
    layout = struct.Struct(("=" if order == "host" else ">") + {1: "B", 2: "H", 4: "I", 8: "Q"}[size])
    return Codec(lambda value: str(layout.unpack(value)[0]), lambda value: layout.pack(int(value)))


def _names(names: Mapping[int, str]) -> Codec:
    """A number of four bytes that is known by names; one without a name stays a number."""
    numbers = {name: value for value, name in names.items()}

    def decode(value: bytes) -> str:
        return names.get(netlink.number(value), str(netlink.number(value)))

    return Codec(decode, lambda text: netlink.u32(numbers[text] if text in numbers else int(text)))


# Those that can be set; a mask with any other is refused (vlan_dev_change_flags, net/8021q/vlan_dev.c).
_VLAN_FLAGS = 0x1F

ABSENT: Mapping[str, Mapping[str, str]] = {"vlan": {"flags": "0"}}
"""Options that the kernel does not show when they are 0, but that are not 0 in a link that is made without them."""


def _vlan_flags(value: bytes) -> str:
    return str(struct.unpack("=II", value)[0])


def _qos_map(value: bytes) -> str:
    """``from:to`` pairs, as iproute2 writes them."""
    found = [struct.unpack("=II", item) for _, item in netlink.pairs(value)]
    return " ".join(f"{source}:{target}" for source, target in found)


def _qos_map_bytes(value: str) -> bytes:
    mappings = [tuple(map(int, item.split(":"))) for item in value.split()]
    return b"".join(netlink.attribute(1, struct.pack("=II", *mapping)) for mapping in mappings)


def _mac_list(value: bytes) -> str:
    return " ".join(netlink.mac_text(item) for _, item in netlink.pairs(value))


def _mac_list_bytes(value: str) -> bytes:
    return b"".join(netlink.attribute(_IFLA_MACVLAN_MACADDR, netlink.mac_bytes(item)) for item in value.split())


def _boolopt(value: bytes) -> str:
    return str(struct.unpack("=II", value)[0])


_IFLA_MACVLAN_MACADDR = 4

U8 = _integer(1)
U16 = _integer(2)
U32 = _integer(4)
U64 = _integer(8)
BE16 = _integer(2, "be")
S32 = Codec(lambda value: str(struct.unpack("=i", value)[0]), lambda value: struct.pack("=i", int(value)))
MAC = Codec(netlink.mac_text, netlink.mac_bytes)

_BRIDGE: Table = {
    1: ("forward_delay", U32),
    2: ("hello_time", U32),
    3: ("max_age", U32),
    4: ("ageing_time", U32),
    5: ("stp_state", U32),
    6: ("priority", U16),
    7: ("vlan_filtering", U8),
    8: ("vlan_protocol", BE16),
    9: ("group_fwd_mask", U16),
    10: ("root_id", None),
    11: ("bridge_id", None),
    12: ("root_port", None),
    13: ("root_path_cost", None),
    14: ("topology_change", None),
    15: ("topology_change_detected", None),
    16: ("hello_timer", None),
    17: ("tcn_timer", None),
    18: ("topology_change_timer", None),
    19: ("gc_timer", None),
    20: ("group_addr", MAC),
    22: ("mcast_router", U8),
    23: ("mcast_snooping", U8),
    24: ("mcast_query_use_ifaddr", U8),
    25: ("mcast_querier", U8),
    26: ("mcast_hash_elasticity", None),  # a constant of 16 since Linux 5.1
    27: ("mcast_hash_max", U32),
    28: ("mcast_last_member_cnt", U32),
    29: ("mcast_startup_query_cnt", U32),
    30: ("mcast_last_member_intvl", U64),
    31: ("mcast_membership_intvl", U64),
    32: ("mcast_querier_intvl", U64),
    33: ("mcast_query_intvl", U64),
    34: ("mcast_query_response_intvl", U64),
    35: ("mcast_startup_query_intvl", U64),
    36: ("nf_call_iptables", U8),
    37: ("nf_call_ip6tables", U8),
    38: ("nf_call_arptables", U8),
    39: ("vlan_default_pvid", U16),
    40: ("pad", None),
    41: ("vlan_stats_enabled", U8),
    42: ("mcast_stats_enabled", U8),
    43: ("mcast_igmp_version", U8),
    44: ("mcast_mld_version", U8),
    45: ("vlan_stats_per_port", U8),
    46: (
        "multi_boolopt",
        Codec(_boolopt, lambda value: struct.pack("=II", int(value), _VLAN_FLAGS)),
    ),
    47: ("mcast_querier_state", None),
    48: ("fdb_n_learned", None),
    49: ("fdb_max_learned", U32),
}

_BRIDGE_PORT: Table = {
    1: ("state", None),
    2: ("priority", U16),
    3: ("cost", U32),
    4: ("mode", U8),
    5: ("guard", U8),
    6: ("protect", U8),
    7: ("fast_leave", U8),
    8: ("learning", U8),
    9: ("unicast_flood", U8),
    10: ("proxyarp", U8),
    11: ("learning_sync", U8),
    12: ("proxyarp_wifi", U8),
    13: ("root_id", None),
    14: ("bridge_id", None),
    15: ("designated_port", None),
    16: ("designated_cost", None),
    17: ("id", None),
    18: ("no", None),
    19: ("topology_change_ack", None),
    20: ("config_pending", None),
    21: ("message_age_timer", None),
    22: ("forward_delay_timer", None),
    23: ("hold_timer", None),
    25: ("multicast_router", U8),
    26: ("pad", None),
    27: ("mcast_flood", U8),
    28: ("mcast_to_ucast", U8),
    29: ("vlan_tunnel", U8),
    30: ("bcast_flood", U8),
    31: ("group_fwd_mask", U16),
    32: ("neigh_suppress", U8),
    33: ("isolated", U8),
    34: ("backup_port", U32),
    35: ("mrp_ring_open", None),
    36: ("mrp_in_open", None),
    37: ("mcast_eht_hosts_limit", U32),
    38: ("mcast_eht_hosts_cnt", None),
    39: ("locked", U8),
    40: ("mab", U8),
    41: ("mcast_n_groups", None),
    42: ("mcast_max_groups", U32),
    43: ("neigh_vlan_suppress", U8),
    44: ("backup_nhid", U32),
}

BRIDGE_PORT_NUMBER = 18

_VLAN: Table = {
    1: ("id", U16),
    2: ("flags", Codec(_vlan_flags, lambda value: struct.pack("=II", int(value), _VLAN_FLAGS))),
    3: ("egress_qos", Codec(_qos_map, _qos_map_bytes)),
    4: ("ingress_qos", Codec(_qos_map, _qos_map_bytes)),
    5: ("protocol", BE16),
}

_MACVLAN: Table = {
    1: ("mode", _names({1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"})),
    2: ("flags", U16),
    5: ("macaddr_data", Codec(_mac_list, _mac_list_bytes)),
    6: ("macaddr_count", None),
    7: ("bc_queue_len", U32),
    8: ("bc_queue_len_used", None),
    9: ("bc_cutoff", S32),
}

MACVLAN_MACADDR_MODE = 3
MACVLAN_MACADDR_SET = 3

_TUN: Table = {
    1: ("owner", U32),
    2: ("group", U32),
    3: ("type", U8),
    4: ("pi", U8),
    5: ("vnet_hdr", U8),
    6: ("persist", U8),
    7: ("multi_queue", U8),
    8: ("num_queues", None),
    9: ("num_disabled_queues", None),
}

OPTIONS: Mapping[str, Table] = {
    "bridge": _BRIDGE,
    "vlan": _VLAN,
    "macvlan": _MACVLAN,
    "macvtap": _MACVLAN,
    "tun": _TUN,
    "veth": {},
    "dummy": {},
    "ifb": {},
}
"""The kinds that travel, with their own attributes; lo is none of them, having no IFLA_INFO_KIND."""

PORT_OPTIONS: Mapping[str, Table] = {"bridge": _BRIDGE_PORT}
"""What a master of each kind keeps of a port."""


def decode(table: Table, data: bytes) -> tuple[dict[str, str], list[int]]:
    """The options in ``data``, and the numbers of the attributes that the table does not know."""
    options: dict[str, str] = {}
    unknown: list[int] = []
    for kind, value in netlink.pairs(data):
        if kind not in table:
            unknown.append(kind)
            continue
        name, codec = table[kind]
        if codec is not None:
            options[name] = codec.decode(value)
    return options, unknown


def encode(table: Table, options: Mapping[str, str]) -> bytes:
    """The attributes of ``options``; the mirror of ``decode``."""
    numbers = {name: (kind, codec) for kind, (name, codec) in table.items() if codec is not None}
    parts: list[bytes] = []
    for name, value in options.items():
        kind, codec = numbers[name]
        if name == "macaddr_data":
            parts.append(netlink.attribute(MACVLAN_MACADDR_MODE, netlink.u32(MACVLAN_MACADDR_SET)))
        parts.append(netlink.attribute(kind, codec.encode(value)))
    return b"".join(parts)
