"""What links keep in IFLA_INFO_DATA that stand for no wire: routing domains, monitors, CAN buses, WireGuard.

The settings of WireGuard and of teams are not there but with generic netlink (`wireguard`, `team`).
"""

from __future__ import annotations

from collections.abc import Mapping

from ckpt.kernel.rtnl_codecs import U8, U16, U32, Table

PRIMARY = "primary"
"""Of a netkit pair, the end by which both are set. Whether one is it cannot be set, but comes of how they are made."""

_IPVLAN: Table = {
    1: ("mode", U16),
    2: ("flags", U16),
}

OPTIONS: Mapping[str, Table] = {
    "ipvlan": _IPVLAN,
    "ipvtap": _IPVLAN,
    "netkit": {
        1: ("peer_info", None),
        2: (PRIMARY, U8),
        3: ("policy", U32),
        4: ("peer_policy", U32),
        5: ("mode", U32),
        6: ("scrub", U32),
        7: ("peer_scrub", U32),
        8: ("headroom", U16),
        9: ("tailroom", U16),
    },
    "nlmon": {},
    "team": {},
    "vcan": {},
    "vrf": {1: ("table", U32)},
    "vsockmon": {},
    "vxcan": {},
    "wireguard": {},
}


def netkit_made(options: Mapping[str, str]) -> dict[str, str]:
    """The options with which a netkit is made."""
    return {name: value for name, value in options.items() if name != PRIMARY}


def seen_from_peer(options: Mapping[str, str]) -> dict[str, str]:
    """The options of a netkit's other end, with those of both exchanged."""
    pairs = {"policy": "peer_policy", "scrub": "peer_scrub"}
    names = {PRIMARY: PRIMARY, **pairs, **{other: name for name, other in pairs.items()}}
    return {names.get(name, name): value for name, value in options.items()} | {PRIMARY: "1"}


BORROWED_MAC = frozenset({"ipvlan", "ipvtap"})
"""Kinds that have the address of the link they stand on, and take no other."""

LEAST: Mapping[str, Mapping[str, str]] = {"vrf": {"table": "1"}}

LACKED: Mapping[str, Mapping[str, str]] = {"netkit": {"scrub": "1", "peer_scrub": "1"}}
"""What a kernel does that does not know an option, where that is not the same as 0."""

PORT_OPTIONS: Mapping[str, Table] = {
    "team": {},
    "vrf": {1: ("table", None)},  # its master's
}
