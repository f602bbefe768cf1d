"""What links keep in IFLA_INFO_DATA that stand for no wire: routing domains, monitors, CAN buses, WireGuard.

WireGuard's own settings are not there but with generic netlink (`wireguard`).
"""

from __future__ import annotations

from collections.abc import Mapping

from ckpt.kernel.rtnl_codecs import U16, U32, Table

_IPVLAN: Table = {
    1: ("mode", U16),
    2: ("flags", U16),
}

OPTIONS: Mapping[str, Table] = {
    "ipvlan": _IPVLAN,
    "ipvtap": _IPVLAN,
    "nlmon": {},
    "vcan": {},
    "vrf": {1: ("table", U32)},
    "vxcan": {},
    "wireguard": {},
}

BORROWED_MAC = frozenset({"ipvlan", "ipvtap"})
"""Kinds that have the address of the link they stand on, and take no other."""

LEAST: Mapping[str, Mapping[str, str]] = {"vrf": {"table": "1"}}

PORT_OPTIONS: Mapping[str, Table] = {
    "vrf": {1: ("table", None)},  # its master's
}
