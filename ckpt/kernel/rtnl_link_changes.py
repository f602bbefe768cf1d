"""Links, written: from records to the messages that make and change them.

The mirror of ``rtnl_links``. Which link is made when, and in which namespace a message is sent, is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from ckpt.kernel import netlink, rtnl_bond, rtnl_codecs, rtnl_kinds, rtnl_virtual
from ckpt.kernel.netlink import Message, Netlink, attribute, nested, string, u32
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
from ckpt.model.network import Counterpart, Link
from ckpt.model.travel import TUNNELS

_RTM_DELLINK = 17
_RTM_NEWLINKPROP = 108
_IFLA_NET_NS_FD = 28
_IFLA_NEW_IFINDEX = 49
_VETH_INFO_PEER = 1
_INET6_ADDR_GEN_MODE = 8
_SETTABLE = sum(FLAGS.values())
_KEPT = attrgetter(
    "mtu", "group", "limits", "txqlen", "mac", "broadcast", "alias", "options", "port_options", "altnames"
)

# What a link has that has none, though its kind could.
_NO_MAC = "00:00:00:00:00:00"


def make(connection: Netlink, link: Link, *, lower: int = 0) -> None:
    """Make ``link``, down, in the socket's namespace; ``lower`` is the index of the link it stands on there."""
    connection.request(*making(link, lower=lower))


def making(
    link: Link,
    *,
    lower: int = 0,
    netns: int | None = None,
    peer: Link | Counterpart | None = None,
    peer_netns: int | None = None,
) -> Message:
    """What makes ``link``, down, in ``netns`` or the socket's own; the ``peer`` of a pair in ``peer_netns`` or there.

    ``lower`` is the index of the link it stands on, in the socket's namespace.
    """
    attributes = [_creation(link)]
    named = rtnl_kinds.LOWER.get(link.kind)
    if lower and named is None:
        attributes.append(attribute(IFLA_LINK, u32(lower)))
    if netns is not None:
        attributes.append(attribute(_IFLA_NET_NS_FD, u32(netns)))
    options = rtnl_kinds.MADE.get(link.kind, dict)(link.options)
    data = [rtnl_codecs.encode(rtnl_kinds.OPTIONS[link.kind], options)]
    if lower and named is not None:
        data.append(attribute(named, u32(lower)))
    if peer is not None:
        place = b"" if peer_netns is None else attribute(_IFLA_NET_NS_FD, u32(peer_netns))
        data.append(nested(_VETH_INFO_PEER, header(peer.ifindex), _creation(peer) + place))
    info = [attribute(INFO_KIND, link.kind.encode()), nested(INFO_DATA, *data)]
    body = header(link.ifindex) + b"".join(attributes) + nested(IFLA_LINKINFO, *info)
    return RTM_NEWLINK, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL


def make_pair(connection: Netlink, link: Link, peer: Link | Counterpart, peer_netns: int) -> None:
    """Make ``link`` in the socket's namespace, and its ``peer`` in ``peer_netns``."""
    connection.request(*making_pair(link, peer, peer_netns))


def making_pair(link: Link, peer: Link | Counterpart, peer_netns: int) -> Message:
    """What makes ``link`` in the socket's namespace, and its ``peer`` in ``peer_netns``; see ``making``."""
    if not is_second(link):
        return making(link, peer=peer, peer_netns=peer_netns)
    options = rtnl_virtual.seen_from_peer(link.options)
    first = Link(ifname=peer.ifname, kind=link.kind, ifindex=peer.ifindex, mac=peer.mac, mtu=peer.mtu, options=options)
    return making(peer if isinstance(peer, Link) else first, netns=peer_netns, peer=link)


def is_second(link: Link) -> bool:
    """Whether the pair must be made from the other end of ``link``."""
    return link.options.get(rtnl_virtual.PRIMARY) == "0"


def move(connection: Netlink, ifindex: int, netns: int, *, ifname: str, new_ifindex: int) -> None:
    """Move a link of the socket's namespace into ``netns``, under the name and the index that it shall have there."""
    parts = [attribute(_IFLA_NET_NS_FD, u32(netns)), attribute(IFLA_IFNAME, string(ifname))]
    if new_ifindex:
        parts.append(attribute(_IFLA_NEW_IFINDEX, u32(new_ifindex)))
    connection.request(RTM_NEWLINK, header(ifindex) + b"".join(parts))


def _creation(link: Link | Counterpart) -> bytes:
    parts = []
    if link.ifname:
        parts.append(attribute(IFLA_IFNAME, string(link.ifname)))
    own = link.port_options.get(rtnl_bond.PERMANENT_MAC, link.mac) if isinstance(link, Link) else link.mac
    # A bridge that is given an address keeps it; one that is not follows its ports.
    if own and _is_own(own) and link.kind != "bridge" and own != _NO_MAC:
        parts.append(attribute(IFLA_ADDRESS, netlink.mac_bytes(own)))
    if link.mtu:
        parts.append(attribute(IFLA_MTU, u32(link.mtu)))
    if isinstance(link, Link):
        if link.tx_queues:
            parts.append(attribute(IFLA_NUM_TX_QUEUES, u32(link.tx_queues)))
        if link.rx_queues:
            parts.append(attribute(IFLA_NUM_RX_QUEUES, u32(link.rx_queues)))
    return b"".join(parts)


def _is_own(mac: str) -> bool:
    """Whether a link-layer address is one that a link is given; of a tunnel for packets it is an end in other words."""
    return mac.count(":") == 5


def _wanted_options(link: Link) -> dict[str, str]:
    options = dict(link.options)
    # Giving the standard's own address would mark it as chosen by hand, which stops the bridge from following it.
    if options.get("group_addr") in ("01:80:c2:00:00:00", "00:00:00:00:00:00"):
        del options["group_addr"]
    for name in rtnl_kinds.NOT_SHOWN.get(link.kind, ()):
        options.pop(name, None)
    return rtnl_bond.settable(options)


def change(connection: Netlink, now: Link, wanted: Link, *, master_kind: str = "") -> None:
    """Make the link ``now`` as ``wanted`` is, but for coming up or being enslaved; only what differs is sent.

    A link that is up because its master, of the kind ``master_kind``, has brought it up is taken down again.
    """
    if _KEPT(now) != _KEPT(wanted):
        _change_kept(connection, now, wanted, master_kind)
    kept = () if now.up and not wanted.up else ("up",)
    if now.flags != wanted.flags and (set(now.flags) ^ set(wanted.flags)) - set(kept):
        set_flags(connection, now.ifindex, wanted.flags, but=kept)


def _change_kept(connection: Netlink, now: Link, wanted: Link, master_kind: str) -> None:
    parts: list[bytes] = []
    for kind, before, after in (
        (IFLA_MTU, now.mtu, wanted.mtu),
        (IFLA_GROUP, now.group, wanted.group),
        *((kind, now.limits.get(name, 0), wanted.limits.get(name, 0)) for kind, name in LIMITS.items()),
    ):
        if before != after and (after or kind == IFLA_GROUP):
            parts.append(attribute(kind, u32(after)))
    if wanted.txqlen not in (-1, now.txqlen):
        parts.append(attribute(IFLA_TXQLEN, u32(wanted.txqlen)))
    mac, broadcast = wanted.mac or "", wanted.broadcast or ""
    if mac not in ("", now.mac) and _is_own(mac) and wanted.kind not in rtnl_virtual.BORROWED_MAC:
        parts.append(attribute(IFLA_ADDRESS, netlink.mac_bytes(mac)))
    if broadcast not in ("", now.broadcast) and _is_own(broadcast):
        parts.append(attribute(IFLA_BROADCAST, netlink.mac_bytes(broadcast)))
    if wanted.alias != now.alias:
        parts.append(attribute(IFLA_IFALIAS, string(wanted.alias)))
    parts += _changed_info(now, wanted, master_kind)
    if parts:
        connection.request(RTM_NEWLINK, header(now.ifindex) + b"".join(parts))
    names = [attribute(IFLA_ALT_IFNAME, string(name)) for name in wanted.altnames if name not in now.altnames]
    if names:
        connection.request(_RTM_NEWLINKPROP, header(now.ifindex) + nested(IFLA_PROP_LIST, *names))


def _changed_info(now: Link, wanted: Link, master_kind: str) -> list[bytes]:
    """IFLA_LINKINFO for the options that differ, of the link's own kind and of its port."""
    info: list[bytes] = []
    options = {name: value for name, value in _wanted_options(wanted).items() if now.options.get(name) != value}
    # What a veth, macvlan or vlan is cannot be changed, tun knows no change by netlink, and a tunnel that is told only
    # what differs forgets the rest.
    if options and wanted.kind not in {"tun", *TUNNELS}:
        data = rtnl_codecs.encode(rtnl_kinds.OPTIONS[wanted.kind], options)
        info += [attribute(INFO_KIND, wanted.kind.encode()), nested(INFO_DATA, data)]
    options = {name: value for name, value in wanted.port_options.items() if now.port_options.get(name) != value}
    options.pop(rtnl_bond.PERMANENT_MAC, None)
    if options and now.master:
        data = rtnl_codecs.encode(rtnl_kinds.PORT_OPTIONS[master_kind], options)
        info += [attribute(INFO_SLAVE_KIND, master_kind.encode()), nested(INFO_SLAVE_DATA, data)]
    return [nested(IFLA_LINKINFO, *info)] if info else []


def set_options(connection: Netlink, ifindex: int, link: Link, names: Iterable[str]) -> None:
    """Give a link those of the options of ``link`` that are in ``names``."""
    data = rtnl_codecs.encode(rtnl_kinds.OPTIONS[link.kind], {name: link.options[name] for name in names})
    info = [attribute(INFO_KIND, link.kind.encode()), nested(INFO_DATA, data)]
    connection.request(RTM_NEWLINK, header(ifindex) + nested(IFLA_LINKINFO, *info))


def set_flags(connection: Netlink, ifindex: int, flags: Iterable[str], *, but: Iterable[str] = ()) -> None:
    """Give a link the settable ``flags`` and no others; those in ``but`` stay as they are."""
    mask = _SETTABLE & ~sum(FLAGS[name] for name in but)
    value = sum(FLAGS[name] for name in flags) & mask
    connection.request(RTM_NEWLINK, HEADER.pack(0, 0, ifindex, value, mask))


def set_up(connection: Netlink, ifindex: int) -> None:
    """Bring a link up."""
    connection.request(*up_message(ifindex))


def up_message(ifindex: int) -> Message:
    """What brings a link up."""
    return RTM_NEWLINK, HEADER.pack(0, 0, ifindex, FLAGS["up"], FLAGS["up"]), 0


def set_down(connection: Netlink, ifindex: int) -> None:
    """Take a link down."""
    connection.request(RTM_NEWLINK, HEADER.pack(0, 0, ifindex, 0, FLAGS["up"]))


def rename(connection: Netlink, ifindex: int, ifname: str) -> None:
    """Give a link another name; older kernels (before Linux 6.2, bd039b5ea2a9) want it down for that."""
    connection.request(RTM_NEWLINK, header(ifindex) + attribute(IFLA_IFNAME, string(ifname)))


def touch(connection: Netlink, ifindex: int) -> None:
    """Change nothing of a link; returns when every change that was under way has been made."""
    connection.request(RTM_NEWLINK, header(ifindex))


def enslave(connection: Netlink, ifindex: int, master: int) -> None:
    """Make a link a port of ``master``; 0 frees it."""
    connection.request(RTM_NEWLINK, header(ifindex) + attribute(IFLA_MASTER, u32(master)))


def set_addr_gen_mode(connection: Netlink, ifindex: int, mode: int) -> None:
    """How IPv6 makes its link-local address; unlike the sysctl of that name this makes none at once."""
    value = attribute(_INET6_ADDR_GEN_MODE, netlink.u8(mode))
    body = header(ifindex) + nested(IFLA_AF_SPEC, nested(AF_INET6, value))
    connection.request(RTM_NEWLINK, body)


def set_token(connection: Netlink, ifindex: int, token: str) -> None:
    """The interface identifier of addresses that are autoconfigured."""
    value = attribute(INET6_TOKEN, netlink.ip_bytes(token))
    body = header(ifindex) + nested(IFLA_AF_SPEC, nested(AF_INET6, value))
    connection.request(RTM_NEWLINK, body)


def delete(connection: Netlink, ifindex: int) -> None:
    """Delete a link; of a veth, both ends go."""
    connection.request(_RTM_DELLINK, header(ifindex))
