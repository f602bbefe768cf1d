"""Links and addresses of a group with network namespaces of its own: can it be attached here as it was.

The namespaces are made anew and are never in anybody's way. What can be missing or taken is outside of them: the
bridge or link that the group hung on, and its addresses on that segment, which another group, this host, or a machine
that nobody here knows may have.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from ckpt.model.checkpoint import Checkpoint
from ckpt.model.finding import Finding
from ckpt.model.host import TargetFacts
from ckpt.model.network import PAIRED, Counterpart, Link, Network, Place
from ckpt.revalidate.needs import all_segments, host_part, is_own_address
from ckpt.revalidate.verdict import block, ok, warn


def check_network(checkpoint: Checkpoint, target: TargetFacts) -> Iterator[Finding]:
    """Findings on kinds of link, on each attachment to the host, and on each address."""
    for kind in target.kinds_missing if checkpoint.networks else ():
        yield block(
            "link-kind",
            f"links of kind {kind}",
            "this host cannot make them",
            f"modprobe {kind}, or boot a kernel that has it",
        )
    for key, network in checkpoint.networks.items():
        for link in network.links:
            if link.counterpart is not None and link.counterpart.place is Place.CALLER:
                yield from _attachment(link, link.counterpart, target, bridge_made=checkpoint.group.bridge_made)
        yield from _addresses(network, all_segments(checkpoint.networks, key), target)


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
            f"rename the link that shall take its place to {outside.ifname}, or restore on a host that has it",
        )
        return
    if link.mtu > below.mtu:
        yield block(
            "link-mtu",
            outside.ifname,
            f"the group's {link.ifname} has an MTU of {link.mtu}, and this link below it only {below.mtu}",
            f"ip link set {outside.ifname} mtu {link.mtu}",
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
            f"ip link add {bridge} up type bridge, and attach it to the network as on the source",
        )
        return
    if found.kind != "bridge":
        kind = found.kind or "physical"
        yield block(
            "link-not-bridge",
            bridge,
            f"the group's {link.ifname} is attached to this bridge, and here it is a link of kind {kind}",
            f"make {bridge} a bridge",
        )
        return
    # a bridge without ports takes the MTU of its first one
    if link.mtu > found.mtu and any(one.master == bridge for one in target.links):
        yield warn(
            "link-mtu",
            bridge,
            f"the group's {link.ifname} has an MTU of {link.mtu}, and it only {found.mtu}: larger frames are lost",
            f"ip link set {bridge} mtu {link.mtu}",
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
            )


def _addresses(network: Network, segments: Mapping[str, tuple[str, ...]], target: TargetFacts) -> Iterator[Finding]:
    macs = {link.mac for link in network.links if link.mac}
    held = {_canonical(one.address): one.ifname for one in target.addresses}
    probed = {(answer.address, answer.ifname): answer.mac for answer in target.answers}
    for address in network.addresses:
        if not is_own_address(address):
            continue
        plain = host_part(address.address)
        attached = segments[address.ifname]
        owner = _owner(plain, attached, held, target) if attached else None
        answer = next((probed[plain, ifname] for ifname in attached if (plain, ifname) in probed), None)
        if owner is not None:
            yield _in_use(plain, owner[0], owner[1])
        elif answer is not None:
            whose = " (the group's own: it or a copy of it still runs)" if answer in macs else ""
            yield _in_use(plain, f"{answer}{whose} answers for it on {attached[0]}", "stop what has it")
        elif attached:
            yield ok("address", plain, f"free on {attached[0]}")


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
    return block("address-in-use", address, reason, f"{remedy}, or restore where the address is free")
