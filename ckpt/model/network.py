"""A network namespace as records.

``kernel/rtnl`` reads these from the kernel and ``plan`` turns them into the steps that make a fresh namespace equal to
them, so every field says something that the kernel keeps and that can be given to it again. What the kernel works out
by itself (operational states, counters, routing caches, entries learnt from the wire) is not here. Defaults are what
the kernel would choose, so that a record can be written by hand with no more than it needs.

Names, values and option keys are netlink's, in lower case and without their prefix (``IFLA_BR_AGEING_TIME`` is
``ageing_time``). Addresses and prefixes are text in the kernel's canonical form; durations are in seconds unless the
kernel's own unit is named by its option. A thing that was seen but cannot be carried is never left out in silence: it
is an ``Unread``, from which ``cannot_travel`` makes findings.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field

from ckpt.model.bridging import NO_BRIDGING, Bridging
from ckpt.model.encapsulation import FouPort, IsatapRouter
from ckpt.model.filtering import NO_FILTERING, Filtering
from ckpt.model.forwarding import LabelRoute, NexthopObject
from ckpt.model.ipsec import NO_IPSEC, Ipsec
from ckpt.model.teaming import Team
from ckpt.model.traffic import NO_TRAFFIC, Traffic
from ckpt.model.wireguard import WireguardDevice
from ckpt.records import dataclass

FALLBACK_DEVICES: Mapping[str, str] = {
    "tunl0": "ipip",
    "gre0": "gre",
    "gretap0": "gretap",
    "erspan0": "erspan",
    "sit0": "sit",
    "ip6tnl0": "ip6tnl",
    "ip6gre0": "ip6gre",
    "ip_vti0": "vti",
    "ip6_vti0": "vti6",
}
"""The links that tunnel drivers make by themselves in every namespace, and their kinds."""

_NO_END = ("", "0.0.0.0", "::")

PAIRED = frozenset({"veth", "vxcan", "netkit"})
"""The kinds of link that are made as two, each the other's counterpart."""

MAIN_TABLE = 254
LOCAL_TABLE = 255


class Place(enum.StrEnum):
    """Where the other link is: in the namespace itself, in the caller's (the host's), or in some other one."""

    INSIDE = "inside"
    CALLER = "caller"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One address of a link; ``address`` is the local one with its prefix length (``10.0.0.2/24``).

    ``peer`` is the other end of a point-to-point address, with its prefix length, or empty. ``flags`` are netlink's
    (``deprecated``, ``noprefixroute`` …) without ``permanent``, ``tentative`` and ``secondary``, which the kernel works
    out. Lifetimes are seconds that remain; None is for ever. ``metric`` is that of the prefix route, 0 the default.
    """

    ifname: str
    address: str
    peer: str = ""
    broadcast: str = ""
    scope: str = "global"
    label: str = ""
    flags: tuple[str, ...] = ()
    valid_lifetime: int | None = None
    preferred_lifetime: int | None = None
    metric: int = 0
    protocol: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterpart:
    """What a link's IFLA_LINK names: the other of a pair (a veth's peer), or the lower link of a vlan or macvlan.

    For one in the namespace itself only the name and index matter. For one in the caller's namespace the rest says
    how it stood there; ``master`` is the bridge it was a port of. One elsewhere is in the group's network namespace
    with the key ``netns``, or in none of the group's, and then only ``ifindex`` is known.
    """

    place: Place = Place.CALLER
    ifname: str = ""
    ifindex: int = 0
    kind: str = ""
    mac: str | None = None
    mtu: int = 0
    master: str = ""
    up: bool = True
    addresses: tuple[Address, ...] = ()
    netns: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One link. ``kind`` is netlink's, ``loopback`` for lo, and empty for a physical one.

    ``ifindex`` 0, ``mac`` None, ``mtu`` 0 and ``txqlen`` -1 let the kernel choose. ``flags`` are those that can be set:
    ``up``, ``multicast``, ``noarp``, ``promisc``, ``allmulti``, ``debug``, ``dynamic``, ``notrailers``.
    ``options`` are the kind's own (IFLA_INFO_DATA) and ``port_options`` those of a port of ``master``
    (IFLA_INFO_SLAVE_DATA), each value as text; ``port_number`` keeps the order of a bridge's ports.
    ``limits`` are GSO and GRO limits that were changed; ``token`` is the IPv6 interface identifier for autoconf.
    ``features`` are the offloads that are not as on an untouched link of the kind, by ethtool's names; ``channels``
    are the numbers of queues in use (``rx``, ``tx``, ``combined``) of a link that has more; ``coalescing`` is how many
    packets or microseconds it waits (``rx_frames``, ``rx_usecs``, ``tx_frames``, ``tx_usecs``), where it does.
    """

    ifname: str
    kind: str
    ifindex: int = 0
    mac: str | None = None
    broadcast: str | None = None
    mtu: int = 0
    txqlen: int = -1
    group: int = 0
    flags: tuple[str, ...] = ("multicast", "up")
    alias: str = ""
    altnames: tuple[str, ...] = ()
    master: str = ""
    port_number: int = 0
    counterpart: Counterpart | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    port_options: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    tx_queues: int = 0
    rx_queues: int = 0
    token: str = ""
    features: Mapping[str, bool] = field(default_factory=dict)
    channels: Mapping[str, int] = field(default_factory=dict)
    coalescing: Mapping[str, int] = field(default_factory=dict)

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return "up" in self.flags

    @property
    def fallback(self) -> bool:
        """Whether a driver made it by itself, or might as well have: it is of that name and kind, and has no ends."""
        ends = (self.options.get(name, "") for name in ("local", "remote"))
        return FALLBACK_DEVICES.get(self.ifname) == self.kind and all(end in _NO_END for end in ends)


LOOPBACK = Link(ifname="lo", kind="loopback", ifindex=1, flags=("up",))
"""The link that every namespace has, brought up: what a record that is written by hand begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nexthop:
    """One of several next hops of a route."""

    ifname: str = ""
    gateway: str = ""
    weight: int = 1
    flags: tuple[str, ...] = ()
    realms: int = 0
    encapsulation: str = ""
    encapsulation_data: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route; ``destination`` is always a prefix (``0.0.0.0/0`` is the default route) and gives the family.

    ``gateway`` may be of the other family (RTA_VIA). ``expires`` is the seconds that remain, None never.
    ``protocol`` is a number as in /etc/iproute2/rt_protos (2 kernel, 3 boot, 4 static).
    One with ``nexthop_id`` takes its next hops from that object and has none of its own. ``encapsulation`` names what
    is put around its packets (``mpls``, ``ip``, ``seg6`` …), of which the data are the kernel's own bytes.
    """

    destination: str
    type: str = "unicast"
    table: int = MAIN_TABLE
    ifname: str = ""
    gateway: str = ""
    source: str = ""
    preferred_source: str = ""
    scope: str = "global"
    protocol: int = 4
    priority: int = 0
    tos: int = 0
    flags: tuple[str, ...] = ()
    nexthops: tuple[Nexthop, ...] = ()
    metrics: Mapping[str, int] = field(default_factory=dict)
    congestion_control: str = ""
    preference: int = 0
    realms: int = 0
    expires: int | None = None
    nexthop_id: int = 0
    encapsulation: str = ""
    encapsulation_data: bytes = b""

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.destination else 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One routing rule. ``selectors`` and ``values`` are the attributes that are numbers and those that are text.

    Keys are netlink's (``fwmark``, ``fwmask``, ``iifname``, ``src`` as a prefix, ``sport_range`` as ``first-last`` …).
    """

    family: int
    priority: int
    action: str = "to_table"
    table: int = MAIN_TABLE
    tos: int = 0
    invert: bool = False
    selectors: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A neighbour that was set, or with ``proxy`` an address that is answered for on ``ifname`` (``mac`` is empty).

    ``state`` is ``permanent``, ``noarp``, ``reachable`` (learnt by somebody outside of the kernel, who says so), or
    empty for one that the kernel keeps alive by itself (``managed``).
    """

    ifname: str
    address: str
    mac: str = ""
    proxy: bool = False
    flags: tuple[str, ...] = ()
    protocol: int = 0
    state: str = "permanent"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMulticast:
    """A link-layer group that somebody joined on a link (``ip maddr add``)."""

    ifname: str
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NftObject:
    """One object of an nftables table: its ``kind`` (``table``, ``chain``, ``set``, ``elements``, ``object``,
    ``flowtable`` or ``rule``) and its netlink attributes without what the kernel gives anew, such as handles.
    """

    kind: str
    attributes: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class NftTable:
    """One nftables table: ``text`` is what ``nft list`` shows of it, counters and elements included.

    ``objects`` are what the kernel lists of it, in the order in which they are made again. They say all, and count;
    the text is for people, and for a table that was written by hand and has no objects.
    """

    family: str
    name: str
    text: str
    objects: tuple[NftObject, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowTuple:
    """One direction of a tracked flow. Ports are 0 where the protocol has none; the ICMP ones are -1 where absent."""

    source: str
    destination: str
    source_port: int = 0
    destination_port: int = 0
    icmp_id: int = -1
    icmp_type: int = -1
    icmp_code: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConntrackEntry:
    """One tracked flow. ``status`` is the kernel's IPS_* bits; ``timeout`` the seconds that remain.

    ``protocol`` is the number of the transport protocol; ``protocol_state`` holds its attributes (for TCP: ``state``,
    ``wscale_original``, ``wscale_reply``, ``flags_original``, ``flags_reply``).
    A ``zone`` of only one direction has ``zone_direction`` ``original`` or ``reply``. ``master`` is the original
    direction of the flow that this one was expected by, of the protocol ``master_protocol``.
    """

    original: FlowTuple
    reply: FlowTuple
    protocol: int
    status: int
    timeout: int
    mark: int = 0
    zone: int = 0
    helper: str = ""
    labels: bytes = b""
    protocol_state: Mapping[str, int] = field(default_factory=dict)
    sequence_adjust: Mapping[str, int] = field(default_factory=dict)
    zone_direction: str = ""
    master: FlowTuple | None = None
    master_protocol: int = 0
    syn_proxy: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """A flow that the helper of a tracked one (``master``) has announced: what matches ``flow`` under ``mask``.

    ``flags`` and ``policy`` (the class of the helper's limits) are the kernel's numbers, ``function`` the name of what
    the kernel does with the flow when it comes. With ``nat`` it will be translated, in ``nat_direction``.
    """

    flow: FlowTuple
    mask: FlowTuple
    protocol: int
    master: FlowTuple
    master_protocol: int
    timeout: int
    helper: str = ""
    zone: int = 0
    flags: int = 0
    policy: int = 0
    function: str = ""
    nat: FlowTuple | None = None
    nat_direction: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """Something the kernel showed that these records cannot carry: ``code`` names the class of it."""

    code: str
    subject: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A whole namespace. ``sysctls`` are paths below /proc/sys (``net/ipv4/ip_forward``) and their text.

    They hold what differs from an untouched namespace of the kernel that was read, what a namespace inherits from the
    host's (of it everything of ``conf/all`` and ``conf/default``), and for each link what differs from its
    ``conf/default``.

    One that was read is ``complete``: it lists also what the kernel makes by itself (its rules, the routes and the
    link-local addresses that come with a link), and what it does not list must not be there. One that was written by
    hand adds to what the kernel makes.
    """

    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    nftables: tuple[NftTable, ...] = ()
    conntrack: tuple[ConntrackEntry, ...] = ()
    unread: tuple[Unread, ...] = ()
    complete: bool = False
    nexthops: tuple[NexthopObject, ...] = ()
    label_routes: tuple[LabelRoute, ...] = ()
    link_multicast: tuple[LinkMulticast, ...] = ()
    bridging: Bridging = NO_BRIDGING
    expectations: tuple[Expectation, ...] = ()
    filtering: Filtering = NO_FILTERING
    ipsec: Ipsec = NO_IPSEC
    traffic: Traffic = NO_TRAFFIC
    wireguard: tuple[WireguardDevice, ...] = ()
    teams: tuple[Team, ...] = ()
    fou: tuple[FouPort, ...] = ()
    isatap: tuple[IsatapRouter, ...] = ()

    def link(self, ifname: str) -> Link | None:
        """The link of that name."""
        return next((link for link in self.links if link.ifname == ifname), None)
