"""The network of a group that is about to start: is it free, and how is it attached.

The addresses are asked for three times over: in the registry, on the host itself, and on the wire, where a machine
that nobody here knows may answer. Only then is the bridge made, if it is not there, and the namespace filled by the
steps that the plan finds. What may be left by a crash is written into the journal before it is made.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
from contextlib import ExitStack

from ckpt import registry
from ckpt.errors import ExistsError, NetworkError, NotFoundError
from ckpt.kernel import apply, arp, outside, rtnl
from ckpt.model.groupspec import GroupSpec, LinkKind, parse_address, wanted_network
from ckpt.model.process import Isolation
from ckpt.plan import plan_network
from ckpt.records import dataclass
from ckpt.registry import Operation
from ckpt.stop import release_bridge

_log = logging.getLogger(__name__)

_PROBE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """What a group has in the host's namespace; ``bridge_made`` says that its bridge is one of ckpt's making."""

    links: tuple[str, ...] = ()
    bridge_made: bool = False


def require_addresses_free(spec: GroupSpec) -> None:
    """ExistsError (``address-in-use``) that says who has an address of the group."""
    if spec.link is None or spec.isolation is Isolation.IPSET:
        return
    link = outside.find(spec.link)
    if spec.kind is LinkKind.VETH and link is not None and link.kind != "bridge":
        raise NetworkError(
            f"{spec.link} is not a bridge",
            code="link-not-bridge",
            details=f"it is a link of kind {link.kind or 'physical'}",
            hint="name a bridge, or attach to this link by --kind macvlan",
        )
    if spec.kind is LinkKind.MACVLAN and link is None:
        raise NotFoundError(
            f"there is no link {spec.link}", code="link-missing", hint="`ip link` lists those of the host"
        )
    for text in spec.addresses:
        address = parse_address(text).ip
        owner = _group_with(address, spec.link) or _host_link_with(address)
        if owner is None and link is not None and link.up:
            _log.info("asking on %s who has %s", spec.link, address)
            mac = arp.probe(None, spec.link, str(address), _PROBE_SECONDS)
            owner = f"{mac} on {spec.link}" if mac else None
        if owner is not None:
            raise ExistsError(
                f"the address {address} is in use",
                code="address-in-use",
                details=f"by {owner}",
                hint="give the group another --address",
            )


def attach(spec: GroupSpec, namespace: int, operation: Operation, undo: ExitStack) -> Attachment:
    """Fill the namespace of the group as ``spec`` asks; undone by ``undo``."""
    outside_ifname = f"ckpt{secrets.token_hex(4)}"
    attachment = Attachment()
    if spec.link is not None and spec.kind is LinkKind.VETH:
        operation.note(links=[outside_ifname], bridge=spec.link)
        undo.callback(release_bridge, spec.link)
        if outside.ensure_bridge(spec.link):
            _log.info("made the bridge %s", spec.link)
        attachment = Attachment(links=(outside_ifname,), bridge_made=spec.link in outside.made_bridges())
    wanted = wanted_network(spec, outside_ifname, _random_mac())
    steps = plan_network(wanted, rtnl.read_network(namespace, untouched=True))
    apply.apply(namespace, steps, undo)
    _log.info("filled the network namespace in %d steps: %s", len(steps), " ".join(spec.addresses) or "lo alone")
    # Who has talked to an earlier owner of the addresses shall not have to wait until it forgets that one's MAC.
    arp.announce(namespace, wanted)
    return attachment


def _random_mac() -> str:
    """A unicast MAC address from the locally administered range."""
    first, *rest = secrets.token_bytes(6)
    return bytes([first & 0xFC | 0x02, *rest]).hex(":")


def _group_with(address: ipaddress.IPv4Address | ipaddress.IPv6Address, link: str) -> str | None:
    for entry in registry.entries():
        here = entry.alive and link in (entry.bridge, entry.parent)
        if here and any(ipaddress.ip_interface(text).ip == address for text in entry.addresses):
            return f"the group {entry.name}"
    return None


def _host_link_with(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    found = (item.ifname for item in outside.addresses() if ipaddress.ip_interface(item.address).ip == address)
    return next((f"this host, on {ifname}" for ifname in found), None)
