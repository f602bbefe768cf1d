"""What VLANs and macvlans keep in IFLA_INFO_DATA: links that stand on another and share its wire."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ckpt.kernel import netlink
from ckpt.kernel.rtnl_codecs import BE16, S32, U16, U32, Codec, Table, bits, named

# Those that can be set; a mask with any other is refused (vlan_dev_change_flags, net/8021q/vlan_dev.c).
_VLAN_FLAGS = 0x1F

ABSENT: Mapping[str, Mapping[str, str]] = {"vlan": {"flags": "0"}}
"""Options that the kernel does not show when they are 0, but that are not 0 in a link that is made without them."""

_MACADDR_MODE = 3
_MACADDR_SET = 3
_MACADDR = 4


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
    return b"".join(netlink.attribute(_MACADDR, netlink.mac_bytes(item)) for item in value.split())


VLAN: Table = {
    1: ("id", U16),
    2: ("flags", bits(_VLAN_FLAGS)),
    3: ("egress_qos", Codec(_qos_map, _qos_map_bytes)),
    4: ("ingress_qos", Codec(_qos_map, _qos_map_bytes)),
    5: ("protocol", BE16),
}

MACVLAN: Table = {
    1: ("mode", named({1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"})),
    2: ("flags", U16),
    5: (
        "macaddr_data",
        Codec(_mac_list, _mac_list_bytes, before=netlink.attribute(_MACADDR_MODE, netlink.u32(_MACADDR_SET))),
    ),
    6: ("macaddr_count", None),
    7: ("bc_queue_len", U32),
    8: ("bc_queue_len_used", None),
    9: ("bc_cutoff", S32),
}

LACKED: Mapping[str, Mapping[str, str]] = {
    "macvlan": {"bc_queue_len": "1000", "bc_cutoff": "1"},
    "macvtap": {"bc_queue_len": "1000", "bc_cutoff": "1"},
}
"""What a kernel does that does not know an option, where that is not the same as 0."""
