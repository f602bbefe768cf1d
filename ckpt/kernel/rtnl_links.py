"""Links: from rtnetlink to records, and from records to the messages that make and change them.

Reading never looks at a driver: what IFLA_INFO_KIND says decides which table of ``rtnl_kinds`` decodes the rest.
Writing mirrors it. Which link is made when, and in which namespace a message is sent, is not decided here.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ckpt.kernel import netlink, rtnl_bond, rtnl_bridge_options, rtnl_codecs, rtnl_kinds, rtnl_virtual
from ckpt.kernel.netlink import Attributes, KernelRefusal, Netlink, attribute, nested, number, parse, string, text, u32
from ckpt.model.network import Counterpart, Link, Place, Unread
from ckpt.model.travel import TUNNELS

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
_RTM_NEWNSID = 88
_RTM_GETNSID = 90
_RTM_NEWLINKPROP = 108

_IFLA_ADDRESS = 1
_IFLA_BROADCAST = 2
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_QDISC = 6
_IFLA_MASTER = 10
_IFLA_TXQLEN = 13
_IFLA_LINKINFO = 18
_IFLA_IFALIAS = 20
_IFLA_AF_SPEC = 26
_IFLA_GROUP = 27
_IFLA_NET_NS_FD = 28
_IFLA_EXT_MASK = 29
_IFLA_NUM_TX_QUEUES = 31
_IFLA_NUM_RX_QUEUES = 32
_IFLA_LINK_NETNSID = 37
_IFLA_NEW_IFINDEX = 49
_IFLA_XDP = 43
_IFLA_PROP_LIST = 52
_IFLA_ALT_IFNAME = 53

_LIMITS = {
    40: "gso_max_segs",
    41: "gso_max_size",
    58: "gro_max_size",
    63: "gso_ipv4_max_size",
    64: "gro_ipv4_max_size",
}

_READ = {1, 2, 3, 4, 5, 6, 10, 13, 18, 20, 26, 27, 31, 32, 37, 43, 52, *_LIMITS}
# What the kernel works out or counts: statistics, states, identities of hardware, bounds of the driver.
_WORKED_OUT = {7, 12, 14, 16, 17, 21, 23, 24, 30, 33, 34, 35, 36, 38, 39, 42, 44, 45, 46, 47, 48, 50, 51, 54, 56, 57}
_WORKED_OUT |= {59, 60, 61, 62, 65, 66, 67, 68, 69}

_INFO_KIND = 1
_INFO_DATA = 2
_INFO_SLAVE_KIND = 4
_INFO_SLAVE_DATA = 5
_VETH_INFO_PEER = 1
_XDP_ATTACHED = 2
_AF_INET6 = 10
_INET6_TOKEN = 7
_INET6_ADDR_GEN_MODE = 8
_NETNSA_NSID = 1
_NETNSA_FD = 3
_ANY_NSID = struct.pack("=i", -1)
_RTEXT_FILTER_SKIP_STATS = 8
_ARPHRD_LOOPBACK = 772

_FLAGS = {
    "up": 0x1,
    "debug": 0x4,
    "notrailers": 0x20,
    "noarp": 0x80,
    "promisc": 0x100,
    "allmulti": 0x200,
    "multicast": 0x1000,
    "dynamic": 0x8000,
}
_IFF_RUNNING = 0x40
_IFF_LOWER_UP = 0x10000
_SETTABLE = sum(_FLAGS.values())

# What a link has that has none, though its kind could.
_NO_MAC = "00:00:00:00:00:00"

_HEADER = struct.Struct("=BxHiII")


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
        return text(self.attributes[_IFLA_IFNAME])

    @property
    def kind(self) -> str:
        """IFLA_INFO_KIND, ``loopback`` for lo, empty for hardware."""
        return "loopback" if self.type == _ARPHRD_LOOPBACK else text(self.info.get(_INFO_KIND, b""))

    @property
    def link(self) -> int:
        """The index of its counterpart, in whichever namespace that is; 0 for a tunnel that has none."""
        named = rtnl_kinds.LOWER.get(self.kind)
        if named is None:
            return self.integer(_IFLA_LINK)
        return number(parse(self.info.get(_INFO_DATA, b"")).get(named, b""))

    @property
    def master(self) -> int:
        """The index of its master, 0 for none."""
        return self.integer(_IFLA_MASTER)

    @property
    def up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & _FLAGS["up"])

    @property
    def mtu(self) -> int:
        """The MTU."""
        return self.integer(_IFLA_MTU)

    @property
    def tx_queues(self) -> int:
        """How many queues it has to send."""
        return self.integer(_IFLA_NUM_TX_QUEUES)

    @property
    def rx_queues(self) -> int:
        """How many queues it has to receive, 0 where the kernel does not say."""
        return self.integer(_IFLA_NUM_RX_QUEUES)

    @property
    def mac(self) -> str | None:
        """The link-layer address, None where there is none."""
        value = self.attributes.get(_IFLA_ADDRESS, b"")
        return netlink.mac_text(value) if value else None

    def integer(self, kind: int, default: int = 0) -> int:
        """An attribute that is a number."""
        value = self.attributes.get(kind)
        return default if value is None else number(value)


def read_raw(connection: Netlink) -> dict[int, RawLink]:
    """Every link of the socket's namespace by its index, in the kernel's order."""
    request = _header() + attribute(_IFLA_EXT_MASK, u32(_RTEXT_FILTER_SKIP_STATS))
    found = (decode(body) for kind, body in connection.dump(RTM_GETLINK, request) if kind == RTM_NEWLINK)
    return {link.index: link for link in found}


def has_unpropagated(connection: Netlink) -> bool:
    """Whether a link is up and its carrier has changed, but its operational state has not yet followed."""
    request = _header() + attribute(_IFLA_EXT_MASK, u32(_RTEXT_FILTER_SKIP_STATS))
    flags = (
        _HEADER.unpack_from(body)[3] for kind, body in connection.dump(RTM_GETLINK, request) if kind == RTM_NEWLINK
    )
    return any(one & _FLAGS["up"] and bool(one & _IFF_LOWER_UP) != bool(one & _IFF_RUNNING) for one in flags)


def read_one(connection: Netlink, *, ifindex: int = 0, ifname: str = "") -> RawLink | None:
    """The link of that index or name, None when there is none."""
    request = _header(ifindex) + (attribute(_IFLA_IFNAME, string(ifname)) if ifname else b"")
    try:
        replies = connection.request(RTM_GETLINK, request)
    except KernelRefusal as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return next((decode(body) for kind, body in replies if kind == RTM_NEWLINK), None)


def decode(body: bytes) -> RawLink:
    """One message about a link, taken apart."""
    _, hardware, index, flags, _ = _HEADER.unpack_from(body)
    attributes = parse(body, _HEADER.size)
    return RawLink(index, hardware, flags, attributes, parse(attributes.get(_IFLA_LINKINFO, b"")))


def named(link: Link) -> RawLink:
    """As much of a message about ``link`` as others need that refer to it."""
    return RawLink(link.ifindex, 0, 0, {_IFLA_IFNAME: string(link.ifname)}, {})


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
        master = self._raw.get(raw.integer(_IFLA_MASTER))
        options, port_options, port_number = self._options(raw)
        self._note_unread(raw)
        token = parse(parse(found.get(_IFLA_AF_SPEC, b"")).get(_AF_INET6, b"")).get(_INET6_TOKEN, b"")
        broadcast = found.get(_IFLA_BROADCAST, b"")
        return Link(
            ifname=raw.ifname,
            kind=raw.kind,
            ifindex=raw.index,
            mac=raw.mac,
            broadcast=netlink.mac_text(broadcast) if broadcast else None,
            mtu=raw.integer(_IFLA_MTU),
            txqlen=raw.integer(_IFLA_TXQLEN),
            group=raw.integer(_IFLA_GROUP),
            flags=tuple(sorted(name for name, bit in _FLAGS.items() if raw.flags & bit)),
            alias=text(found.get(_IFLA_IFALIAS, b"")),
            altnames=tuple(
                text(value)
                for kind, value in netlink.pairs(found.get(_IFLA_PROP_LIST, b""))
                if kind == _IFLA_ALT_IFNAME
            ),
            master=master.ifname if master else "",
            port_number=port_number,
            counterpart=self._counterpart(raw),
            options=options,
            port_options=port_options,
            limits={name: number(found[kind]) for kind, name in _LIMITS.items() if kind in found},
            tx_queues=raw.tx_queues,
            rx_queues=raw.rx_queues,
            token=netlink.ip_text(token) if any(token) else "",
        )

    def _options(self, raw: RawLink) -> tuple[dict[str, str], dict[str, str], int]:
        options: dict[str, str] = {}
        port_options: dict[str, str] = {}
        port_number = 0
        if (data := raw.info.get(_INFO_DATA)) is not None and raw.kind in rtnl_kinds.OPTIONS:
            options, unknown = rtnl_codecs.decode(rtnl_kinds.OPTIONS[raw.kind], data)
            options = {**rtnl_kinds.ABSENT.get(raw.kind, {}), **options}
            self._note_attributes(raw, raw.kind, unknown)
        slave_kind = text(raw.info.get(_INFO_SLAVE_KIND, b""))
        if slave_kind and slave_kind not in rtnl_kinds.PORT_OPTIONS:
            self._note(raw, "link-master-kind", f"is a port of a {slave_kind}")
        elif slave_kind:
            data = raw.info.get(_INFO_SLAVE_DATA, b"")
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
                return Counterpart(place=Place.INSIDE, ifname=other.ifname, ifindex=index)
            # A tunnel keeps the number of a link that has gone.
            return Counterpart(place=Place.INSIDE, ifindex=index) if tunnel and index else None
        if raw.integer(_IFLA_LINK_NETNSID) == self._caller_nsid and index in self._caller and not tunnel:
            return self._caller[index]
        return Counterpart(place=Place.ELSEWHERE, ifindex=index)

    def _note_unread(self, raw: RawLink) -> None:
        strange = raw.attributes.keys() - _READ - _WORKED_OUT
        self._note_attributes(raw, "link", sorted(strange))
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


def make(
    connection: Netlink,
    link: Link,
    *,
    lower: int = 0,
    netns: int | None = None,
    peer: Link | Counterpart | None = None,
    peer_netns: int | None = None,
) -> None:
    """Make ``link``, down, in ``netns`` or the socket's own namespace; a pair's ``peer`` in ``peer_netns`` or there.

    ``lower`` is the index of the link it stands on, in the socket's namespace. Raises KernelRefusal.
    """
    attributes = [_creation(link)]
    named = rtnl_kinds.LOWER.get(link.kind)
    if lower and named is None:
        attributes.append(attribute(_IFLA_LINK, u32(lower)))
    if netns is not None:
        attributes.append(attribute(_IFLA_NET_NS_FD, u32(netns)))
    # A bridge takes its options later, only those that differ: a kernel may lack what some of them speak of.
    options = {} if link.kind == "bridge" else link.options
    if link.kind == rtnl_bond.KIND:
        options = {name: value for name, value in options.items() if name == "mode"}
    options = {name: value for name, value in options.items() if name != rtnl_virtual.PRIMARY}
    data = [rtnl_codecs.encode(rtnl_kinds.OPTIONS[link.kind], options)]
    if lower and named is not None:
        data.append(attribute(named, u32(lower)))
    if peer is not None:
        place = b"" if peer_netns is None else attribute(_IFLA_NET_NS_FD, u32(peer_netns))
        data.append(nested(_VETH_INFO_PEER, _header(peer.ifindex), _creation(peer) + place))
    info = [attribute(_INFO_KIND, link.kind.encode()), nested(_INFO_DATA, *data)]
    body = _header(link.ifindex) + b"".join(attributes) + nested(_IFLA_LINKINFO, *info)
    connection.request(RTM_NEWLINK, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)


def make_pair(connection: Netlink, link: Link, peer: Link | Counterpart, peer_netns: int) -> None:
    """Make ``link`` in the socket's namespace, and its ``peer`` in ``peer_netns``; see ``make``."""
    if not is_second(link):
        make(connection, link, peer=peer, peer_netns=peer_netns)
        return
    options = rtnl_virtual.seen_from_peer(link.options)
    first = Link(ifname=peer.ifname, kind=link.kind, ifindex=peer.ifindex, mac=peer.mac, mtu=peer.mtu, options=options)
    make(connection, peer if isinstance(peer, Link) else first, netns=peer_netns, peer=link)


def is_second(link: Link) -> bool:
    """Whether the pair must be made from the other end of ``link``."""
    return link.options.get(rtnl_virtual.PRIMARY) == "0"


def move(connection: Netlink, ifindex: int, netns: int, *, ifname: str, new_ifindex: int) -> None:
    """Move a link of the socket's namespace into ``netns``, under the name and the index that it shall have there."""
    parts = [attribute(_IFLA_NET_NS_FD, u32(netns)), attribute(_IFLA_IFNAME, string(ifname))]
    if new_ifindex:
        parts.append(attribute(_IFLA_NEW_IFINDEX, u32(new_ifindex)))
    connection.request(RTM_NEWLINK, _header(ifindex) + b"".join(parts))


def _creation(link: Link | Counterpart) -> bytes:
    parts = []
    if link.ifname:
        parts.append(attribute(_IFLA_IFNAME, string(link.ifname)))
    own = link.port_options.get(rtnl_bond.PERMANENT_MAC, link.mac) if isinstance(link, Link) else link.mac
    # A bridge that is given an address keeps it; one that is not follows its ports.
    if own and link.kind != "bridge" and own != _NO_MAC:
        parts.append(attribute(_IFLA_ADDRESS, netlink.mac_bytes(own)))
    if link.mtu:
        parts.append(attribute(_IFLA_MTU, u32(link.mtu)))
    if isinstance(link, Link):
        if link.tx_queues:
            parts.append(attribute(_IFLA_NUM_TX_QUEUES, u32(link.tx_queues)))
        if link.rx_queues:
            parts.append(attribute(_IFLA_NUM_RX_QUEUES, u32(link.rx_queues)))
    return b"".join(parts)


def _wanted_options(link: Link) -> dict[str, str]:
    options = dict(link.options)
    # Giving the standard's own address would mark it as chosen by hand, which stops the bridge from following it.
    if options.get("group_addr") in ("01:80:c2:00:00:00", "00:00:00:00:00:00"):
        del options["group_addr"]
    return rtnl_bond.settable(options)


def change(connection: Netlink, now: Link, wanted: Link, *, master_kind: str = "") -> None:
    """Make the link ``now`` as ``wanted`` is, but for coming up or being enslaved; only what differs is sent.

    A link that is up because its master, of the kind ``master_kind``, has brought it up is taken down again.
    """
    parts: list[bytes] = []
    for kind, before, after in (
        (_IFLA_MTU, now.mtu, wanted.mtu),
        (_IFLA_GROUP, now.group, wanted.group),
        *((kind, now.limits.get(name, 0), wanted.limits.get(name, 0)) for kind, name in _LIMITS.items()),
    ):
        if before != after and (after or kind == _IFLA_GROUP):
            parts.append(attribute(kind, u32(after)))
    if wanted.txqlen not in (-1, now.txqlen):
        parts.append(attribute(_IFLA_TXQLEN, u32(wanted.txqlen)))
    if wanted.mac not in (None, now.mac) and wanted.kind not in rtnl_virtual.BORROWED_MAC:
        parts.append(attribute(_IFLA_ADDRESS, netlink.mac_bytes(wanted.mac or "")))
    if wanted.broadcast not in (None, now.broadcast):
        parts.append(attribute(_IFLA_BROADCAST, netlink.mac_bytes(wanted.broadcast or "")))
    if wanted.alias != now.alias:
        parts.append(attribute(_IFLA_IFALIAS, string(wanted.alias)))
    parts += _changed_info(now, wanted, master_kind)
    if parts:
        connection.request(RTM_NEWLINK, _header(now.ifindex) + b"".join(parts))
    names = [attribute(_IFLA_ALT_IFNAME, string(name)) for name in wanted.altnames if name not in now.altnames]
    if names:
        connection.request(_RTM_NEWLINKPROP, _header(now.ifindex) + nested(_IFLA_PROP_LIST, *names))
    kept = () if now.up and not wanted.up else ("up",)
    if (set(now.flags) ^ set(wanted.flags)) - set(kept):
        set_flags(connection, now.ifindex, wanted.flags, but=kept)


def _changed_info(now: Link, wanted: Link, master_kind: str) -> list[bytes]:
    """IFLA_LINKINFO for the options that differ, of the link's own kind and of its port."""
    info: list[bytes] = []
    options = {name: value for name, value in _wanted_options(wanted).items() if now.options.get(name) != value}
    # What a veth, macvlan or vlan is cannot be changed, tun knows no change by netlink, and a tunnel that is told only
    # what differs forgets the rest.
    if options and wanted.kind not in {"tun", *TUNNELS}:
        data = rtnl_codecs.encode(rtnl_kinds.OPTIONS[wanted.kind], options)
        info += [attribute(_INFO_KIND, wanted.kind.encode()), nested(_INFO_DATA, data)]
    options = {name: value for name, value in wanted.port_options.items() if now.port_options.get(name) != value}
    options.pop(rtnl_bond.PERMANENT_MAC, None)
    if options and now.master:
        data = rtnl_codecs.encode(rtnl_kinds.PORT_OPTIONS[master_kind], options)
        info += [attribute(_INFO_SLAVE_KIND, master_kind.encode()), nested(_INFO_SLAVE_DATA, data)]
    return [nested(_IFLA_LINKINFO, *info)] if info else []


def set_options(connection: Netlink, ifindex: int, link: Link, names: Iterable[str]) -> None:
    """Give a link those of the options of ``link`` that are in ``names``."""
    data = rtnl_codecs.encode(rtnl_kinds.OPTIONS[link.kind], {name: link.options[name] for name in names})
    info = [attribute(_INFO_KIND, link.kind.encode()), nested(_INFO_DATA, data)]
    connection.request(RTM_NEWLINK, _header(ifindex) + nested(_IFLA_LINKINFO, *info))


def set_flags(connection: Netlink, ifindex: int, flags: Iterable[str], *, but: Iterable[str] = ()) -> None:
    """Give a link the settable ``flags`` and no others; those in ``but`` stay as they are."""
    mask = _SETTABLE & ~sum(_FLAGS[name] for name in but)
    value = sum(_FLAGS[name] for name in flags) & mask
    connection.request(RTM_NEWLINK, _HEADER.pack(0, 0, ifindex, value, mask))


def set_up(connection: Netlink, ifindex: int) -> None:
    """Bring a link up."""
    connection.request(*up_message(ifindex))


def up_message(ifindex: int) -> tuple[int, bytes, int]:
    """What brings a link up."""
    return RTM_NEWLINK, _HEADER.pack(0, 0, ifindex, _FLAGS["up"], _FLAGS["up"]), 0


def set_down(connection: Netlink, ifindex: int) -> None:
    """Take a link down."""
    connection.request(RTM_NEWLINK, _HEADER.pack(0, 0, ifindex, 0, _FLAGS["up"]))


def touch(connection: Netlink, ifindex: int) -> None:
    """Change nothing of a link; returns when every change that was under way has been made."""
    connection.request(RTM_NEWLINK, _header(ifindex))


def enslave(connection: Netlink, ifindex: int, master: int) -> None:
    """Make a link a port of ``master``; 0 frees it."""
    connection.request(RTM_NEWLINK, _header(ifindex) + attribute(_IFLA_MASTER, u32(master)))


def set_addr_gen_mode(connection: Netlink, ifindex: int, mode: int) -> None:
    """How IPv6 makes its link-local address; unlike the sysctl of that name this makes none at once."""
    value = attribute(_INET6_ADDR_GEN_MODE, netlink.u8(mode))
    body = _header(ifindex) + nested(_IFLA_AF_SPEC, nested(_AF_INET6, value))
    connection.request(RTM_NEWLINK, body)


def set_token(connection: Netlink, ifindex: int, token: str) -> None:
    """The interface identifier of addresses that are autoconfigured."""
    value = attribute(_INET6_TOKEN, netlink.ip_bytes(token))
    body = _header(ifindex) + nested(_IFLA_AF_SPEC, nested(_AF_INET6, value))
    connection.request(RTM_NEWLINK, body)


def delete(connection: Netlink, ifindex: int) -> None:
    """Delete a link; of a veth, both ends go."""
    connection.request(RTM_DELLINK, _header(ifindex))


def _header(ifindex: int = 0) -> bytes:
    return _HEADER.pack(0, 0, ifindex, 0, 0)
