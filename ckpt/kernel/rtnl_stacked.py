"""What links keep in IFLA_INFO_DATA that stand on others and share their wire: VLANs, macvlans, MACsec, HSR."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ckpt.kernel import netlink
from ckpt.kernel.rtnl_codecs import BE16, MAC, S32, U8, U16, U32, U64, Codec, Table, bits, named

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

_BYTES = Codec(bytes.hex, bytes.fromhex)

_SCI, _PORT, _SENDS_SCI = "sci", "port", "inc_sci"

MACSEC: Table = {
    1: (_SCI, _BYTES),
    2: (_PORT, _BYTES),
    3: ("icv_len", U8),
    4: ("cipher_suite", U64),
    5: ("window", U32),
    6: ("encoding_sa", U8),
    7: ("encrypt", U8),
    8: ("protect", U8),
    9: (_SENDS_SCI, U8),
    10: ("es", U8),
    11: ("scb", U8),
    12: ("replay_protect", U8),
    13: ("validation", U8),
    14: ("pad", None),
    15: ("offload", U8),
}


def macsec_made(options: Mapping[str, str]) -> dict[str, str]:
    """The options with which a macsec is made: one that does not send its SCI may not be told it, only the port in it.

    The rest of an SCI is the link's address then (macsec_newlink, drivers/net/macsec.c).
    """
    if options.get(_SENDS_SCI) != "0" or _SCI not in options:
        return dict(options)
    return {name: value for name, value in options.items() if name != _SCI} | {_PORT: options[_SCI][12:]}


HSR_VERSION = "version"
"""Which protocol the frames of an HSR ring follow: it is given, and never shown (`hsr` listens for it)."""

RING_PORTS = ("slave1", "slave2", "interlink")
"""The options by which an HSR or PRP names the links below it."""

_SUPERVISION = "supervision_addr"
_GROUP = "multicast_spec"

HSR: Table = {
    1: ("slave1", U32),
    2: ("slave2", U32),
    3: (_GROUP, U8),
    4: (_SUPERVISION, MAC),
    5: ("seq_nr", None),
    6: (HSR_VERSION, U8),
    7: ("protocol", U8),
    8: ("interlink", U32),
}


def hsr_made(options: Mapping[str, str]) -> dict[str, str]:
    """The options with which an hsr is made: of its group's address only the last byte can be chosen."""
    made = dict(options)
    if address := made.pop(_SUPERVISION, ""):
        made[_GROUP] = str(int(address[-2:], 16))
    return made


LACKED: Mapping[str, Mapping[str, str]] = {
    "macvlan": {"bc_queue_len": "1000", "bc_cutoff": "1"},
    "macvtap": {"bc_queue_len": "1000", "bc_cutoff": "1"},
}
"""What a kernel does that does not know an option, where that is not the same as 0."""
