"""Bonds: what one keeps of itself and of its ports, and the order of the ports.

A port has the bond's address while it is one and its own again when it leaves, so it is made with its own. The mode is
given to a bond when it is made; the rest before it has ports, for some of it cannot be set any more then
(``BOND_OPTFLAG_NOSLAVES``, ``BOND_OPTFLAG_IFDOWN``), and only what differs, for the kernel refuses some options in some
modes even with their default. The port in use is chosen last: it must be up. The order of the ports, in which they are
tried, is told by /proc alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckpt.kernel import netlink
from ckpt.kernel.netns import entered
from ckpt.kernel.rtnl_codecs import MAC, S32, U8, U16, U32, Codec, Table
from ckpt.model.network import Link

KIND = "bond"
ACTIVE = "active_slave"
PERMANENT_MAC = "perm_hwaddr"

_MII_STATUS = 2
_ORDER = "/proc/thread-self/net/bonding"
_PORT = "Slave Interface: "


def _targets(value: bytes) -> str:
    return " ".join(netlink.ip_text(item) for _, item in netlink.pairs(value))


def _target_bytes(value: str) -> bytes:
    addresses = map(netlink.ip_bytes, value.split())
    return b"".join(netlink.attribute(number, address) for number, address in enumerate(addresses))


_TARGETS = Codec(_targets, _target_bytes)

BOND: Table = {
    1: ("mode", U8),
    2: (ACTIVE, U32),
    3: ("miimon", U32),
    4: ("updelay", U32),
    5: ("downdelay", U32),
    6: ("use_carrier", U8),
    7: ("arp_interval", U32),
    8: ("arp_ip_target", _TARGETS),
    9: ("arp_validate", U32),
    10: ("arp_all_targets", U32),
    11: ("primary", U32),
    12: ("primary_reselect", U8),
    13: ("fail_over_mac", U8),
    14: ("xmit_hash_policy", U8),
    15: ("resend_igmp", U32),
    16: ("num_peer_notif", U8),
    17: ("all_slaves_active", U8),
    18: ("min_links", U32),
    19: ("lp_interval", U32),
    20: ("packets_per_slave", U32),
    21: ("ad_lacp_rate", U8),
    22: ("ad_select", U8),
    23: ("ad_info", None),
    24: ("ad_actor_sys_prio", U16),
    25: ("ad_user_port_key", U16),
    26: ("ad_actor_system", MAC),
    27: ("tlb_dynamic_lb", U8),
    28: ("peer_notif_delay", U32),
    29: ("ad_lacp_active", U8),
    30: ("missed_max", U8),
    31: ("ns_ip6_target", _TARGETS),
    32: ("coupled_control", U8),
    33: ("broadcast_neigh", U8),
}

BOND_PORT: Table = {
    1: ("state", None),
    _MII_STATUS: ("mii_status", None),
    3: ("link_failure_count", None),
    4: (PERMANENT_MAC, MAC),
    5: ("queue_id", U16),
    6: ("ad_aggregator_id", None),
    7: ("ad_actor_oper_port_state", None),
    8: ("ad_partner_oper_port_state", None),
    9: ("prio", S32),
    10: ("actor_port_prio", U16),
    11: ("ad_churn_actor_state", None),
    12: ("ad_churn_partner_state", None),
}

LACKED: Mapping[str, str] = {
    "ad_lacp_active": "1",
    "coupled_control": "1",
    "missed_max": "2",
    "use_carrier": "1",
}
"""What a bond does in a kernel that does not know an option, where that is not the same as 0."""

LACKED_BY_PORTS: Mapping[str, str] = {"actor_port_prio": "255"}
"""The same of its ports."""


def is_usable(port_data: bytes) -> bool:
    """Whether the bond takes a port, of which that is kept, for one that works (BOND_LINK_UP)."""
    return netlink.parse(port_data).get(_MII_STATUS) == b"\0"


def made(options: Mapping[str, str]) -> dict[str, str]:
    """The options with which a bond is made: see the module."""
    return {name: value for name, value in options.items() if name == "mode"}


def settable(options: Mapping[str, str]) -> dict[str, str]:
    """``options`` without those that are not set with the others: see the module."""
    unset = {"ad_actor_system": "00:00:00:00:00:00"}
    return {name: value for name, value in options.items() if name != ACTIVE and unset.get(name) != value}


def with_orders(netns: int, links: Sequence[Link]) -> tuple[Link, ...]:
    """``links`` of ``netns``, in which the ports of bonds have the numbers by which their bond has them."""
    numbers: dict[str, int] = {}
    with entered(netns):
        for link in links:
            if link.kind == KIND:
                numbers |= _order(link.ifname)
    return tuple(replace(link, port_number=numbers[link.ifname]) if link.ifname in numbers else link for link in links)


def _order(bond: str) -> dict[str, int]:
    try:
        with open(f"{_ORDER}/{bond}", encoding="utf-8", errors="surrogateescape") as shown:
            ports = [line.removeprefix(_PORT).rstrip("\n") for line in shown if line.startswith(_PORT)]
    except OSError:
        return {}  # a kernel without it, or the bond has gone: then what is read is read again
    return {port: number for number, port in enumerate(ports, 1)}
