"""The numbers of rtnetlink's messages about links, for those who read such messages and those who write them."""

from __future__ import annotations

import struct

RTM_NEWLINK = 16

IFLA_ADDRESS = 1
IFLA_BROADCAST = 2
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_TXQLEN = 13
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_AF_SPEC = 26
IFLA_GROUP = 27
IFLA_NUM_TX_QUEUES = 31
IFLA_NUM_RX_QUEUES = 32
IFLA_PROP_LIST = 52
IFLA_ALT_IFNAME = 53

LIMITS = {
    40: "gso_max_segs",
    41: "gso_max_size",
    58: "gro_max_size",
    63: "gso_ipv4_max_size",
    64: "gro_ipv4_max_size",
}

INFO_KIND = 1
INFO_DATA = 2
INFO_SLAVE_KIND = 4
INFO_SLAVE_DATA = 5

AF_INET6 = 10
INET6_TOKEN = 7

FLAGS = {
    "up": 0x1,
    "debug": 0x4,
    "notrailers": 0x20,
    "noarp": 0x80,
    "promisc": 0x100,
    "allmulti": 0x200,
    "multicast": 0x1000,
    "dynamic": 0x8000,
}

HEADER = struct.Struct("=BxHiII")


def header(ifindex: int = 0) -> bytes:
    """What a message about the link of that index, or about none yet, begins with."""
    return HEADER.pack(0, 0, ifindex, 0, 0)
