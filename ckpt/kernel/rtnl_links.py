"""Links, read: from rtnetlink to records.

Reading never looks at a driver: what IFLA_INFO_KIND says decides which table of ``rtnl_kinds`` decodes the rest. The
mirror, which makes and changes links, is ``rtnl_link_changes``.
"""

from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Iterable, Mapping

from ckpt.kernel import netlink, rtnl_bridge_options, rtnl_codecs, rtnl_kinds
from ckpt.kernel.layouts import Layouts
from ckpt.kernel.netlink import Attributes, KernelRefusal, Netlink, attribute, number, parse, string, text, u32
from ckpt.kernel.rtnl_link_numbers import (
    AF_INET6,
    FLAGS,
    HEADER,
    IFLA_ADDRESS,
    IFLA_AF_SPEC,
    IFLA_ALT_IFNAME,
    IFLA_BROADCAST,
    IFLA_GROUP,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_NUM_RX_QUEUES,
    IFLA_NUM_TX_QUEUES,
    IFLA_PROP_LIST,
    IFLA_TXQLEN,
    INET6_TOKEN,
    INFO_DATA,
    INFO_KIND,
    INFO_SLAVE_DATA,
    INFO_SLAVE_KIND,
    LIMITS,
    RTM_NEWLINK,
    header,
)
from ckpt.model.network import Counterpart, Link, Place, Unread
from ckpt.model.plenty import in_plenty
from ckpt.model.travel import TUNNELS
from ckpt.records import dataclass

_RTM_GETLINK = 18
_RTM_GETNSID = 90
_IFLA_EXT_MASK = 29
_IFLA_LINK_NETNSID = 37
_IFLA_XDP = 43
_READ = {1, 2, 3, 4, 5, 6, 10, 13, 18, 20, 26, 27, 31, 32, 37, 43, 52, *LIMITS}
# What the kernel works out or counts: statistics, states, identities of hardware, bounds of the driver.
_WORKED_OUT = {7, 12, 14, 16, 17, 21, 23, 24, 30, 33, 34, 35, 36, 38, 39, 42, 44, 45, 46, 47, 48, 50, 51, 54, 56, 57}
_WORKED_OUT |= {59, 60, 61, 62, 65, 66, 67, 68, 69}
_KNOWN = frozenset(_READ | _WORKED_OUT)
_XDP_ATTACHED = 2
_NETNSA_NSID = 1
_NETNSA_FD = 3
_RTEXT_FILTER_SKIP_STATS = 8
_ARPHRD_LOOPBACK = 772
_IFF_RUNNING = 0x40
_IFF_LOWER_UP = 0x10000


_NAMED_FLAGS = sum(FLAGS.values())


@dataclass(frozen=True, slots=True)
class RawLink:
    """One RTM_NEWLINK, taken apart as far as every use of it needs."""

    index: int
    type: int
    flags: int
    attributes: Attributes
    info: Attributes

    @property
    def ifname(self) -> str:
        """The name."""
        return text(self.attributes[IFLA_IFNAME])

    @property
    def kind(self) -> str:
        """IFLA_INFO_KIND, ``loopback`` for lo, empty for hardware."""
        return "loopback" if self.type == _ARPHRD_LOOPBACK else text(self.info.get(INFO_KIND, b""))

    @property
    def link(self) -> int:
        """The index of its counterpart, in whichever namespace that is; 0 for a tunnel that has none."""
        named = rtnl_kinds.LOWER.get(self.kind)
        if named is None:
            return self.integer(IFLA_LINK)
        return number(parse(self.info.get(INFO_DATA, b"")).get(named, b""))

    @property
    def master(self) -> int:
        """The index of its master, 0 for none."""
        return self.integer(IFLA_MASTER)

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & FLAGS["up"])

    @property
    def mtu(self) -> int:
        """The MTU."""
        return self.integer(IFLA_MTU)

    @property
    def tx_queues(self) -> int:
        """How many queues it has to send."""
        return self.integer(IFLA_NUM_TX_QUEUES)

    @property
    def rx_queues(self) -> int:
        """How many queues it has to receive, 0 where the kernel does not say."""
        return self.integer(IFLA_NUM_RX_QUEUES)

    @property
    def port_data(self) -> bytes:
        """What its master keeps of it."""
        return self.info.get(INFO_SLAVE_DATA, b"")

    @property
    def mac(self) -> str | None:
        """The link-layer address, None where there is none."""
        value = self.attributes.get(IFLA_ADDRESS, b"")
        return netlink.mac_text(value) if value else None

    def integer(self, kind: int, default: int = 0) -> int:
        """An attribute that is a number."""
        value = self.attributes.get(kind)
        return default if value is None else number(value)


def read_raw(connection: Netlink) -> dict[int, RawLink]:
    """Every link of the socket's namespace by its index, in the kernel's order."""
    request = header() + attribute(_IFLA_EXT_MASK, u32(_RTEXT_FILTER_SKIP_STATS))
    layouts = Layouts(HEADER.size)
    found = (decode(body, layouts) for kind, body in connection.dump(_RTM_GETLINK, request) if kind == RTM_NEWLINK)
    return {link.index: link for link in found}


def unpropagated(connection: Netlink) -> list[int]:
    """The links that are up and whose carrier has changed, but whose operational state has not yet followed."""
    found = _raised(connection)
    return [index for index, flags in found if bool(flags & _IFF_LOWER_UP) != bool(flags & _IFF_RUNNING)]


def without_carrier(connection: Netlink) -> list[int]:
    """The links that are up and have no carrier."""
    return [index for index, flags in _raised(connection) if not flags & _IFF_LOWER_UP]


def _raised(connection: Netlink) -> list[tuple[int, int]]:
    """Index and flags of the links that are up."""
    request = header() + attribute(_IFLA_EXT_MASK, u32(_RTEXT_FILTER_SKIP_STATS))
    bodies = (body for kind, body in connection.dump(_RTM_GETLINK, request) if kind == RTM_NEWLINK)
    return [(index, flags) for _, _, index, flags, _ in map(HEADER.unpack_from, bodies) if flags & FLAGS["up"]]


def read_one(connection: Netlink, *, ifindex: int = 0, ifname: str = "") -> RawLink | None:
    """The link of that index or name, None when there is none."""
    request = header(ifindex) + (attribute(IFLA_IFNAME, string(ifname)) if ifname else b"")
    try:
        replies = connection.request(_RTM_GETLINK, request)
    except KernelRefusal as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return next((decode(body) for kind, body in replies if kind == RTM_NEWLINK), None)


def decode(body: bytes, layouts: Layouts | None = None) -> RawLink:
    """One message about a link, taken apart; one of many by the ``layouts`` of all."""
    _, hardware, index, flags, _ = HEADER.unpack_from(body)
    attributes = layouts.parse(body) if layouts else parse(body, HEADER.size)
    return RawLink(index, hardware, flags, attributes, parse(attributes.get(IFLA_LINKINFO, b"")))


@functools.cache
def _flag_names(bits: int) -> tuple[str, ...]:
    return tuple(sorted(name for name, bit in FLAGS.items() if bits & bit))


def named(link: Link) -> RawLink:
    """As much of a message about ``link`` as others need that refer to it."""
    return RawLink(link.ifindex, 0, 0, {IFLA_IFNAME: string(link.ifname)}, {})


class LinkReader:
    """Turns raw links into records; collects in ``unread`` what they cannot hold."""

    def __init__(self, raw: Mapping[int, RawLink], *, caller: Mapping[int, Counterpart], caller_nsid: int) -> None:
        self._raw = raw
        self._caller = caller
        self._caller_nsid = caller_nsid
        self.unread: list[Unread] = []

    def links(self) -> tuple[Link, ...]:
        """All of them."""
        return tuple(self.link(raw) for raw in self._raw.values())

    def link(self, raw: RawLink) -> Link:
        """One of them."""
        found = raw.attributes
        master = self._raw.get(raw.integer(IFLA_MASTER))
        options, port_options, port_number = self._options(raw)
        self._note_unread(raw)
        token = parse(parse(found.get(IFLA_AF_SPEC, b"")).get(AF_INET6, b"")).get(INET6_TOKEN, b"")
        broadcast = found.get(IFLA_BROADCAST, b"")
        return in_plenty(Link)(
            ifname=raw.ifname,
            kind=raw.kind,
            ifindex=raw.index,
            mac=raw.mac,
            broadcast=netlink.mac_text(broadcast) if broadcast else None,
            mtu=raw.integer(IFLA_MTU),
            txqlen=raw.integer(IFLA_TXQLEN),
            group=raw.integer(IFLA_GROUP),
            flags=_flag_names(raw.flags & _NAMED_FLAGS),
            alias=text(found.get(IFLA_IFALIAS, b"")),
            altnames=tuple(
                text(value) for kind, value in netlink.pairs(found.get(IFLA_PROP_LIST, b"")) if kind == IFLA_ALT_IFNAME
            ),
            master=master.ifname if master else "",
            port_number=port_number,
            counterpart=self._counterpart(raw),
            options=options,
            port_options=port_options,
            limits={name: number(found[kind]) for kind, name in LIMITS.items() if kind in found},
            tx_queues=raw.tx_queues,
            rx_queues=raw.rx_queues,
            token=netlink.ip_text(token) if any(token) else "",
        )

    def _options(self, raw: RawLink) -> tuple[dict[str, str], dict[str, str], int]:
        options: dict[str, str] = {}
        port_options: dict[str, str] = {}
        port_number = 0
        if (data := raw.info.get(INFO_DATA)) is not None and raw.kind in rtnl_kinds.OPTIONS:
            options, unknown = rtnl_codecs.decode(rtnl_kinds.OPTIONS[raw.kind], data)
            options = {**rtnl_kinds.ABSENT.get(raw.kind, {}), **options}
            self._note_attributes(raw, raw.kind, unknown)
        slave_kind = text(raw.info.get(INFO_SLAVE_KIND, b""))
        if slave_kind and slave_kind not in rtnl_kinds.PORT_OPTIONS:
            self._note(raw, "link-master-kind", f"is a port of a {slave_kind}")
        elif slave_kind:
            data = raw.info.get(INFO_SLAVE_DATA, b"")
            port_options, unknown = rtnl_codecs.decode(rtnl_kinds.PORT_OPTIONS[slave_kind], data)
            self._note_attributes(raw, f"{slave_kind} port", unknown)
            port_number = number(parse(data).get(rtnl_bridge_options.PORT_NUMBER, b""))
        return options, port_options, port_number

    def _counterpart(self, raw: RawLink) -> Counterpart | None:
        index, tunnel = raw.link, raw.kind in TUNNELS
        if _IFLA_LINK_NETNSID not in raw.attributes:
            other = self._raw.get(index)
            # Of an ipvtap nobody says that the one it stands on is in another namespace; but it has that one's address.
            if raw.kind == "ipvtap" and other is not None and other.mac != raw.mac:
                return None
            if other is not None and index != raw.index:
                return in_plenty(Counterpart)(place=Place.INSIDE, ifname=other.ifname, ifindex=index)
            # A tunnel keeps the number of a link that has gone.
            return in_plenty(Counterpart)(place=Place.INSIDE, ifindex=index) if tunnel and index else None
        if raw.integer(_IFLA_LINK_NETNSID) == self._caller_nsid and index in self._caller and not tunnel:
            return self._caller[index]
        return in_plenty(Counterpart)(place=Place.ELSEWHERE, ifindex=index)

    def _note_unread(self, raw: RawLink) -> None:
        if not _KNOWN.issuperset(raw.attributes):
            self._note_attributes(raw, "link", sorted(raw.attributes.keys() - _KNOWN))
        if any(parse(raw.attributes.get(_IFLA_XDP, b"")).get(_XDP_ATTACHED, b"")):
            self._note(raw, "link-xdp", "has an XDP program attached")

    def _note_attributes(self, raw: RawLink, what: str, numbers: Iterable[int]) -> None:
        for kind in numbers:
            self._note(raw, "link-attribute", f"has the unknown {what} attribute {kind}")

    def _note(self, raw: RawLink, code: str, what: str) -> None:
        self.unread.append(Unread(code=code, subject=f"link {raw.ifname}", what=what))


def nsid_of(connection: Netlink, netns: int) -> int:
    """The number by which the socket's namespace knows ``netns``, -1 when it has none."""
    request = struct.pack("=B3x", 0) + attribute(_NETNSA_FD, u32(netns))
    for _, body in connection.request(_RTM_GETNSID, request):
        value = parse(body, 4).get(_NETNSA_NSID)
        if value is not None:
            return int(struct.unpack("=i", value)[0])
    return -1
