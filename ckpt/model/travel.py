"""What of a network namespace travels, and a finding for everything that does not.

A kind of link travels when it can be made anew from its record. What cannot blocks a dump or a restore, or is only
told, by how much the group would notice: nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt.model.finding import Finding, Severity
from ckpt.model.network import PAIRED, Address, Link, Network, Place, Unread
from ckpt.model.wireguard import Carrier, WireguardDevice

TUNNELS = frozenset(
    {
        *("gre", "gretap", "erspan", "ip6gre", "ip6gretap", "ip6erspan", "ipip", "sit", "ip6tnl", "vti", "vti6"),
        *("vxlan", "geneve", "bareudp", "xfrm", "amt"),
    }
)
"""The kinds that send packets of their own: those are routed in the namespace in which the link was made."""

KINDS = TUNNELS | frozenset(
    {
        *("loopback", "veth", "bridge", "macvlan", "macvtap", "vlan", "dummy", "ifb", "tun"),
        *("bond", "hsr", "ipvlan", "ipvtap", "macsec", "netkit", "nlmon", "team", "vcan", "vrf", "vsockmon"),
        *("vxcan", "wireguard"),
    }
)
"""The kinds of link that travel."""

_NOT_TOLD = {
    "": "it is hardware, or made as such on a bus of the host's, like a netdevsim",
    "netdevsim": "a netdevsim is made on a bus of the host's, and its index cannot be chosen",
    "batadv": "the mesh and its settings are kept by a protocol that ckpt does not speak",
    "can": "it is hardware: a controller of the host's CAN bus",
    "gtp": "the kernel tells nobody which sockets a gtp sends by, or the address of its own",
    "ipoib": "it is hardware: a partition of the host's InfiniBand",
    "lowpan": "it stands on a radio of the host's",
    "ovpn": "the kernel tells nobody the keys of an ovpn, and it sends by sockets of whoever made it",
    "pfcp": "the kernel tells nobody in which network namespace a pfcp receives",
    "ppp": "it goes with the descriptor of the process that made it",
    "rmnet": "the kernel tells nobody in which network namespace is the modem that an rmnet stands on",
    "slcan": "it goes with the terminal of the process that made it",
    "virt_wifi": "the kernel tells nobody which network a virt_wifi has joined",
    "wwan": "it is hardware: a channel of the host's modem",
}
"""Why links of some kinds cannot be made from what is to be read of them."""

_BLOCKING = {
    "iptables-legacy": "install iptables, or replace the iptables-legacy rules by nftables",
    "nft-xt": "write the rules with nft's own expressions",
    "nft-table": "install a newer nft",
    "route-attribute": "replace the route by one without it",
    "rule-attribute": "replace the rule by one without it",
    "link-master-kind": "take the link out of its master",
    "ipsec": "let IPsec end before the group, or remove its states and policies",
    "nexthop-object": "name the next hops in the routes themselves",
    "route-encapsulation": "take the route away, and set it again after the restore",
    "tc-kind": "replace the queueing discipline, and set it again after the restore",
    "tc-unreadable": "take them away, and set them again after the restore",
    "tc-filter": "take the filter or action away, and set it again after the restore",
    "bpf-attached": "detach it, and attach it again after the restore",
    "link-xdp": "take it off (ip link set dev LINK xdp off), and attach it again after the restore",
    "ipvs": "install ipvsadm, or remove the services",
    "ipset-unread": "install ipset, or destroy the sets",
    "arptables": "write the rules with arptables-nft, and start the group in a namespace without the table",
    "ebtables": "write the rules with ebtables-nft, and start the group in a namespace without the table",
    "bridge-vlan": "take the VLAN away, and set it again after the restore",
    "macsec-keys": "remove them, and let them be agreed upon anew after the restore",
    "multicast-routing": "stop the multicast router, and start it again after the restore",
}


def cannot_travel(network: Network, observed: Network | None = None) -> tuple[Finding, ...]:
    """Everything of ``network`` that would be lost or cannot be made: none of it is left out in silence.

    ``observed`` is a fresh namespace of the kernel on which it shall be made, when that is known.
    """
    return (
        *(found for link in network.links if (found := _judge_link(link))),
        *(found for address in network.addresses if (found := _judge_address(address))),
        *(_judge_unread(unread) for unread in network.unread),
        *_judge_ipsec(network),
        *_judge_wireguard(network),
        *(_missing_sysctl(key) for key in _missing_templates(network, observed)),
    )


def _missing_templates(network: Network, observed: Network | None) -> list[str]:
    if observed is None:
        return []
    templates = [key for key in network.sysctls if _is_template(key)]
    return [key for key in templates if key not in observed.sysctls]


def _is_template(key: str) -> bool:
    parts = key.split("/")
    return len(parts) == 5 and parts[2] in ("conf", "neigh") and parts[3] in ("all", "default")


def _missing_sysctl(key: str) -> Finding:
    return Finding(
        severity=Severity.WARN,
        code="sysctl-missing",
        subject=f"sysctl {key}",
        reason="this kernel does not have it",
        remedy="none is needed where the group does not depend on it",
    )


def _judge_link(link: Link) -> Finding | None:
    reason = "" if link.fallback or link.kind == "loopback" else why_not(link)
    if not reason:
        return None
    return Finding(
        severity=Severity.BLOCK,
        code="link-kind",
        subject=f"link {link.ifname}",
        reason=reason,
        remedy="remove the link, or give the group one of a kind that travels",
    )


def _judge_address(address: Address) -> Finding | None:
    lost = sorted({"temporary", "dadfailed", "stable-privacy"} & set(address.flags))
    # The kernel gives it to a tunnel's link-local address that it makes of an IPv4 one of lo (add_v4_addrs,
    # net/ipv6/addrconf.c); to one that is given, that of its bits.
    if address.scope == "host" and address.address.startswith("fe80:"):
        lost.append("the scope host")
    if not lost:
        return None
    return Finding(
        severity=Severity.WARN,
        code="address-flag",
        subject=f"address {address.address} of {address.ifname}",
        reason=f"the kernel lets nobody set {', '.join(lost)}; the address is restored without",
        remedy="none is needed where only the address counts",
    )


def _judge_ipsec(network: Network) -> tuple[Finding, ...]:
    if not network.ipsec.states:
        return ()
    finding = Finding(
        severity=Severity.WARN,
        code="ipsec-keys",
        subject=f"{len(network.ipsec.states)} IPsec states",
        reason="their keys are in the image, and a copy that is restored later or twice repeats sequence numbers",
        remedy="restore the image once, before the group goes on elsewhere; else negotiate new keys after the restore",
    )
    return (finding,)


def _judge_wireguard(network: Network) -> Iterator[Finding]:
    for device in network.wireguard:
        if finding := _judge_carrier(device, network.link(device.ifname)):
            yield finding
    keys = sum(device.private_key is not None for device in network.wireguard)
    if keys:
        yield Finding(
            severity=Severity.WARN,
            code="wireguard-keys",
            subject=f"{keys} WireGuard interfaces",
            reason="their private keys are in the image, and of two copies that run only one is answered",
            remedy="restore the image once; keep it as you keep the keys, and give a second copy keys of its own",
        )


def _judge_carrier(device: WireguardDevice, link: Link | None) -> Finding | None:
    subject = f"link {device.ifname}"
    if device.carrier is Carrier.ELSEWHERE and (link is None or link.counterpart is None):
        return Finding(
            severity=Severity.BLOCK,
            code="wireguard-carrier",
            subject=subject,
            reason="it was made in a third network namespace, and sends its packets there",
            remedy="make it in the group's namespace or in the host's, one for each port",
        )
    if device.carrier is Carrier.UNKNOWN:
        return Finding(
            severity=Severity.WARN,
            code="wireguard-carrier",
            subject=subject,
            reason="it does not show where it sends, as while it is down; it is restored to send in its own namespace",
            remedy="bring it up before the dump, where it was made in the host's namespace",
        )
    return None


def _judge_unread(unread: Unread) -> Finding:
    return Finding(
        severity=Severity.BLOCK if unread.code in _BLOCKING else Severity.WARN,
        code=unread.code,
        subject=unread.subject,
        reason=unread.what,
        remedy=_BLOCKING.get(unread.code, "set it again after the restore, where it is needed"),
    )


def why_not(link: Link) -> str:
    """Why ``link`` cannot be made in a fresh namespace; empty when it can."""
    other = link.counterpart
    if link.kind not in KINDS:
        return _NOT_TOLD.get(link.kind, f"links of kind {link.kind or 'physical'} are not supported")
    if other is not None and other.place is Place.ELSEWHERE and not other.netns:
        if link.kind in TUNNELS:
            return "it was made in a network namespace that is not the group's, and sends its packets there"
        return "its other end is in a third network namespace"
    if link.kind in ("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec", *PAIRED) and other is None:
        return "what it stands on is not known"
    if link.kind == "hsr":
        return _why_not_ring(link)
    if link.kind == "tun" and link.options.get("persist") != "1":
        return "it is not persistent, so it goes with the process that made it"
    return ""


def _why_not_ring(link: Link) -> str:
    if not {"slave1", "slave2"} <= link.options.keys():
        return "it has lost one of its two ports, without which none is made"
    if link.options.get("protocol", "0") == "0" and "version" not in link.options:
        return "which version of HSR it speaks is told by its frames alone, and it sends none: it or its ports are down"
    return ""
