"""What each kind of link keeps in IFLA_INFO_DATA, and what each kind of master keeps of its ports.

One table per kind, in the modules named for families of kinds; here they come together. An attribute that is in no
table is told to the caller, who names it. A new kind is a new table, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ckpt.kernel import rtnl_bond, rtnl_bridge_options, rtnl_stacked, rtnl_tunnels, rtnl_virtual
from ckpt.kernel.rtnl_codecs import U8, U32, Table

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
    "bond": rtnl_bond.BOND,
    "bridge": rtnl_bridge_options.BRIDGE,
    "vlan": rtnl_stacked.VLAN,
    "macvlan": rtnl_stacked.MACVLAN,
    "macvtap": rtnl_stacked.MACVLAN,
    "macsec": rtnl_stacked.MACSEC,
    "hsr": rtnl_stacked.HSR,
    "tun": _TUN,
    "veth": {},
    "dummy": {},
    "ifb": {},
    **rtnl_tunnels.OPTIONS,
    **rtnl_virtual.OPTIONS,
}
"""The kinds that travel, with their own attributes; lo is none of them, having no IFLA_INFO_KIND."""

PORT_OPTIONS: Mapping[str, Table] = {
    "bond": rtnl_bond.BOND_PORT,
    "bridge": rtnl_bridge_options.BRIDGE_PORT,
    **rtnl_virtual.PORT_OPTIONS,
}
"""What a master of each kind keeps of a port."""

ABSENT: Mapping[str, Mapping[str, str]] = {**rtnl_stacked.ABSENT}
"""Options that the kernel does not show when they are 0, but that are not 0 in a link that is made without them."""

LOWER: Mapping[str, int] = {**rtnl_tunnels.LOWER}
"""The attribute of IFLA_INFO_DATA by which a kind names the link below it, of kinds that do not use IFLA_LINK."""

LEAST: Mapping[str, Mapping[str, str]] = {**rtnl_tunnels.LEAST, **rtnl_virtual.LEAST}
"""The options without which a kind cannot be made."""

LACKED: Mapping[str, Mapping[str, str]] = {
    "bond": rtnl_bond.LACKED,
    "bridge": rtnl_bridge_options.LACKED,
    **rtnl_stacked.LACKED,
    **rtnl_tunnels.LACKED,
    **rtnl_virtual.LACKED,
}
"""What a kernel does that does not know an option, where that is not the same as 0."""

LACKED_BY_PORTS: Mapping[str, Mapping[str, str]] = {
    "bond": rtnl_bond.LACKED_BY_PORTS,
    "bridge": rtnl_bridge_options.LACKED_BY_PORTS,
}
"""The same of the options that a master of each kind keeps of its ports."""

MADE: Mapping[str, Callable[[Mapping[str, str]], dict[str, str]]] = {
    "bond": rtnl_bond.made,
    "bridge": lambda options: {},  # takes its options later, only those that differ: a kernel may lack some
    "hsr": rtnl_stacked.hsr_made,
    "macsec": rtnl_stacked.macsec_made,
    "netkit": rtnl_virtual.netkit_made,
}
"""The options with which a kind is made, of kinds that do not take them just as they are shown."""

NOT_SHOWN: Mapping[str, frozenset[str]] = {"hsr": frozenset({rtnl_stacked.HSR_VERSION})}
"""Options that are given when a link is made, and that the kernel then shows nobody."""

SET_LATER: Mapping[str, frozenset[str]] = {"bond": frozenset({rtnl_bond.ACTIVE})}
"""Options that a link does not have yet when all links are made and joined, or that the kernel may choose anew."""
