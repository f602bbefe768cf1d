"""Links and addresses of a group with network namespaces of its own: can it be attached here as it was.

The namespaces are made anew and are never in anybody's way. What can be missing or taken is outside of them: the
bridge or link that the group hung on, and its addresses on that segment, which another group, this host, or a machine
that nobody here knows may have.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping

from ckpt.model import fallback
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.finding import Finding
from ckpt.model.host import Needs, TargetFacts
from ckpt.model.network import PAIRED, Address, Counterpart, Link, Network, Place
from ckpt.revalidate.needs import all_segments, host_part, is_own_address, needs_of
from ckpt.revalidate.verdict import block, ok, warn


def check_network(checkpoint: Checkpoint, target: TargetFacts, held_by: Collection[str] = ()) -> Iterator[Finding]:
    """Findings on kinds of link, on each attachment to the host, on each address and each gateway.

    ``held_by`` are the MACs of those who rightly have the addresses still.
    """
    needs = needs_of(checkpoint)
    for kind in target.kinds_missing if checkpoint.networks else ():
        yield block(
            "link-kind",
            f"links of kind {kind}",
            "this host cannot make them",
            f"modprobe {kind}, or boot a kernel that has it",
            needed=kind,
        )
    for key, network in checkpoint.networks.items():
        yield from _driver_links(network, target)
        for link in network.links:
            if link.counterpart is not None and link.counterpart.place is Place.CALLER:
                yield from _attachment(link, link.counterpart, target, bridge_made=checkpoint.group.bridge_made)
        yield from _addresses(network, all_segments(checkpoint.networks, key), target, held_by)
    yield from _silent_gateways(needs, target)


def _driver_links(network: Network, target: TargetFacts) -> Iterator[Finding]:
    """Whether links that tunnel drivers make by themselves here are in the way of the group's."""
    for own in target.fallbacks:
        reasons = "; ".join(fallback.in_the_way(network, Network(links=(own,))))
        if reasons and target.fallbacks_avoidable:
            yield ok("fallback-device", own.ifname, f"{reasons}; the namespace is made without it")
        elif reasons:
            yield block(
                "fallback-device",
                own.ifname,
                f"{reasons}, and a namespace without it cannot be made from here",
                "sysctl net.core.fb_tunnels_only_for_init_net=1, in the namespace that the host began with",
                there=f"{own.ifname}, index {own.ifindex}",
            )


def check_clock(checkpoint: Checkpoint, target: TargetFacts, made: float | None) -> Iterator[Finding]:
    """Whether WireGuard's peers would hear the group.

    A peer keeps the time of the last handshake that a key has begun, and takes none that is older (the TAI64N
    timestamp; wg_noise_handshake_consume_initiation, drivers/net/wireguard/noise.c). That time is the source's.
    """
    behind = 0.0 if made is None or not target.clock else made - target.clock
    if behind <= _CLOCK_SECONDS:
        return
    for network in checkpoint.networks.values():
        for device in network.wireguard:
            if device.peers:
                yield warn(
                    "wireguard-clock",
                    device.ifname,
                    f"the clock here is {behind:.0f} s behind that of the source, and peers take no handshake that is"
                    " older than the last one",
                    f"set the clock (`timedatectl set-ntp true`), or the tunnel is silent for {behind:.0f} s",
                    needed=f"{made:.0f}",
                    there=f"{target.clock:.0f}",
                )


_CLOCK_SECONDS = 1.0
"""The records are younger than their image, and a restore takes as long."""


def _attachment(link: Link, outside: Counterpart, target: TargetFacts, *, bridge_made: bool) -> Iterator[Finding]:
    if link.kind in PAIRED:
        if outside.ifname and target.link(outside.ifname) is not None:
            yield ok(
                "link-name-taken", outside.ifname, f"taken here; the host's end of {link.ifname} gets another name"
            )
        if outside.master:
            yield from _bridge(link, outside.master, target, bridge_made=bridge_made)
        yield from _outside_addresses(outside, target)
        return
    below = target.link(outside.ifname)
    if below is None:
        yield block(
            "link-missing",
            outside.ifname,
            f"the group's {link.ifname} ({link.kind}) is made on this link, and it is not there",
            f"name the link that takes its place: --map-link {outside.ifname}=LINK; or restore where it is",
            needed=outside.ifname,
        )
        return
    if link.mtu > below.mtu:
        yield block(
            "link-mtu",
            outside.ifname,
            f"the group's {link.ifname} has an MTU of {link.mtu}, and this link below it only {below.mtu}",
            f"ip link set {outside.ifname} mtu {link.mtu}",
            needed=link.mtu,
            there=below.mtu,
        )
    yield from _state(link, outside.ifname, target)


def _bridge(link: Link, bridge: str, target: TargetFacts, *, bridge_made: bool) -> Iterator[Finding]:
    found = target.link(bridge)
    if found is None:
        if bridge_made:
            yield ok("link-made", bridge, "not there; ckpt makes this bridge, as it did on the source")
            return
        yield block(
            "link-missing",
            bridge,
            f"the group's {link.ifname} is attached to this bridge, and it is not there",
            f"name the one that takes its place: --map-link {bridge}=BRIDGE; or `ip link add {bridge} up type bridge`",
            needed=bridge,
        )
        return
    if found.kind != "bridge":
        kind = found.kind or "physical"
        yield block(
            "link-not-bridge",
            bridge,
            f"the group's {link.ifname} is attached to this bridge, and here it is a link of kind {kind}",
            f"name a bridge instead: --map-link {bridge}=BRIDGE",
            needed="bridge",
            there=kind,
        )
        return
    # a bridge without ports takes the MTU of its first one
    if link.mtu > found.mtu and any(one.master == bridge for one in target.links):
        yield warn(
            "link-mtu",
            bridge,
            f"the group's {link.ifname} has an MTU of {link.mtu}, and it only {found.mtu}: larger frames are lost",
            f"ip link set {bridge} mtu {link.mtu}",
            needed=link.mtu,
            there=found.mtu,
        )
    yield from _state(link, bridge, target)


def _state(link: Link, ifname: str, target: TargetFacts) -> Iterator[Finding]:
    found = target.link(ifname)
    if found is not None and not found.up and link.up:
        yield warn(
            "link-down",
            ifname,
            f"the group's {link.ifname} is attached to it, and it is down",
            f"ip link set {ifname} up",
        )
    else:
        yield ok("link", ifname, f"there for the group's {link.ifname}")


def _outside_addresses(outside: Counterpart, target: TargetFacts) -> Iterator[Finding]:
    """The addresses of the host's end: a pair without a bridge is routed by the host."""
    for address in outside.addresses:
        if not is_own_address(address):
            continue
        plain = host_part(address.address)
        owner = next((one.ifname for one in target.addresses if host_part(one.address) == plain), None)
        if owner is not None:
            yield block(
                "address-in-use",
                plain,
                f"the host's end of the group's link has it, and this host has it on {owner}",
                f"ip address del {address.address} dev {owner}",
                needed=plain,
                there=owner,
            )
        yield from _overlapping(address, target)


def _overlapping(address: Address, target: TargetFacts) -> Iterator[Finding]:
    """The host gets a route to the prefix of its end; what it had a route to by another link may be lost."""
    prefix = ipaddress.ip_interface(address.address).network
    for held in target.addresses:
        if is_own_address(held) and host_part(held.address) != host_part(address.address):
            other = ipaddress.ip_interface(held.address).network
            if other.version == prefix.version and other.overlaps(prefix):
                yield warn(
                    "route-overlap",
                    str(prefix),
                    f"the host gets a route to it by the group's link, and has {other} on {held.ifname}",
                    "map the addresses of the link to a prefix that is free here, with --map-address",
                    needed=prefix,
                    there=f"{other} on {held.ifname}",
                )


def _silent_gateways(needs: Needs, target: TargetFacts) -> Iterator[Finding]:
    heard = {(one.address, one.ifname) for one in target.gateways}
    own = {host_part(one.address) for one in target.addresses}
    there = {link.ifname for link in target.links if link.up}
    silent: dict[str, list[str]] = {}
    for gateway in dict.fromkeys(needs.gateways):
        if gateway.ifname in there and gateway.address not in own and (gateway.address, gateway.ifname) not in heard:
            silent.setdefault(gateway.address, []).append(gateway.ifname)
    for address, links in silent.items():
        yield warn(
            "gateway-silent",
            address,
            f"the group's routes lead to it, and nobody answers for it on {' or '.join(links)}",
            "attach the group where its gateway is, with --map-link, or map the gateway with --map-address",
            needed=address,
        )


def _addresses(
    network: Network, segments: Mapping[str, tuple[str, ...]], target: TargetFacts, held_by: Collection[str]
) -> Iterator[Finding]:
    macs = {link.mac for link in network.links if link.mac}
    held = {_canonical(one.address): one.ifname for one in target.addresses}
    probed: dict[tuple[str, str], list[str]] = {}
    for one in target.answers:
        probed.setdefault((one.address, one.ifname), []).append(one.mac)
    rightly = {mac.lower() for mac in held_by}
    for address in network.addresses:
        if not is_own_address(address):
            continue
        plain = host_part(address.address)
        attached = segments[address.ifname]
        owner = _owner(plain, attached, held, target) if attached else None
        heard = [mac for ifname in attached for mac in probed.get((plain, ifname), ())]
        answer = next((mac for mac in heard if mac not in rightly), None)
        if owner is not None:
            yield _in_use(plain, owner[0], owner[1])
        elif answer is not None:
            whose = " (the group's own: it or a copy of it still runs)" if answer in macs else ""
            yield _in_use(plain, f"{answer}{whose} answers for it on {attached[0]}", "stop what has it")
        elif heard:
            yield ok("address-held", plain, f"the source has it still ({heard[0]}), and gives it up", there=heard[0])
        elif attached:
            yield ok("address", plain, f"free on {attached[0]}", needed=plain)


def _owner(
    address: str, attached: tuple[str, ...], held: Mapping[str, str], target: TargetFacts
) -> tuple[str, str] | None:
    """Who on this host has ``address``, and what to do about it; ``held`` are the host's own by address."""
    for group in target.groups:
        if group.alive and set(group.links).intersection(attached) and address in map(_canonical, group.addresses):
            return f"the group {group.name} has it", f"`ckpt stop {group.name}` first"
    link = held.get(_canonical(address))
    return None if link is None else (f"this host has it on {link}", f"take it away from {link}")


def _canonical(address: str) -> str:
    """The address without its prefix length, as the kernel writes it: in the registry it is as the user wrote it."""
    return str(ipaddress.ip_interface(address).ip)


def _in_use(address: str, reason: str, remedy: str) -> Finding:
    ways = f"{remedy}, give the group another with --map-address, or restore where it is free"
    return block("address-in-use", address, reason, ways, needed=address)
