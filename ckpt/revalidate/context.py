"""The set of a context held against a host: which addresses are there, and on which link the others may be put. Pure.

An address that the host does not have is put where the source had it, on the link of that name or of the one that it
is mapped to; where there is none, on the one link that has its subnet. Sockets of the group are judged as they will be
on the host, with these addresses there.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Collection, Iterator, Sequence

from ckpt.model.checkpoint import Checkpoint, ContextRecord, PlacedAddress
from ckpt.model.confined import as_on_host
from ckpt.model.context import Member
from ckpt.model.finding import Finding
from ckpt.model.host import LinkFacts, Probe, TargetFacts
from ckpt.model.network import Address
from ckpt.model.process import Isolation
from ckpt.model.socket import Socket
from ckpt.records import dataclass
from ckpt.revalidate.verdict import block, ok


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """Where each address of a set is to be put that the host does not have, and what is to be said of all of them."""

    places: tuple[PlacedAddress, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Whether somebody on the wire has what is to be put."""
        return tuple(Probe(address=one.address.partition("/")[0], ifname=one.ifname) for one in self.places)


def place(record: ContextRecord, links: Sequence[LinkFacts], addresses: Sequence[Address]) -> Placing:
    """Find a link for each address of the set that none of ``addresses`` is."""
    there = {one.address.partition("/")[0]: one.ifname for one in addresses}
    places: list[PlacedAddress] = []
    findings: list[Finding] = []
    seen: set[str] = set()
    for member in record.members:
        if member.address in seen:
            findings.append(
                block(
                    "map-address-taken", member.address, "two addresses of the set became this one", "map one elsewhere"
                )
            )
        elif member.address in there:
            findings.append(ok("context-address", member.address, f"this host has it on {there[member.address]}"))
        else:
            found = _find(member, record, links, addresses)
            if isinstance(found, Finding):
                findings.append(found)
            else:
                places.append(found)
                findings.append(ok("context-address", member.address, f"will be put on {found.ifname}"))
        seen.add(member.address)
    return Placing(places=tuple(places), findings=tuple(findings))


def on_host(checkpoint: Checkpoint) -> Checkpoint:
    """``checkpoint`` with what its sockets will be on the host, as a group that nothing confines would have them.

    What is bound to the context's own loopback addresses is in nobody's way.
    """
    if checkpoint.context is None:
        return checkpoint
    in_hosts = dataclasses.replace(checkpoint, group=dataclasses.replace(checkpoint.group, isolation=Isolation.NONE))
    try:
        sockets = as_on_host(checkpoint.context, checkpoint.sockets)
        own = {index for index, one in enumerate(sockets) if _is_own(one, checkpoint.context)}
    except ValueError:
        return in_hosts  # one has an address that is none, which is said by others
    return dataclasses.replace(in_hosts, sockets=tuple(one for index, one in enumerate(sockets) if index not in own))


def with_places(target: TargetFacts, placing: Placing) -> TargetFacts:
    """``target`` as it will be when the addresses are there."""
    coming = tuple(Address(ifname=one.ifname, address=one.address) for one in placing.places)
    return dataclasses.replace(target, addresses=(*target.addresses, *coming))


def check_answers(placing: Placing, target: TargetFacts, held_by: Collection[str]) -> Iterator[Finding]:
    """Who has an address already that is to be put on a link, and rightly so where it is one of ``held_by``."""
    for probe in placing.probes:
        # Several may answer: somebody else beside the source that has it still.
        heard = [one.mac for one in target.answers if (one.address, one.ifname) == (probe.address, probe.ifname)]
        mac = next((one for one in heard if one not in held_by), None)
        if mac is not None:
            yield block(
                "address-in-use",
                probe.address,
                f"{mac} answers for it on {probe.ifname}",
                "stop what has it, or restore where the address is free",
            )


def _is_own(one: Socket, record: ContextRecord) -> bool:
    if not one.is_inet or one.local is None:
        return False
    ip = ipaddress.ip_address(one.local.address)
    inner = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (inner or ip).is_loopback or str(ip) == record.loopback6


def _find(
    member: Member, record: ContextRecord, links: Sequence[LinkFacts], addresses: Sequence[Address]
) -> PlacedAddress | Finding:
    known = {link.ifname: link for link in links}
    source = next((one for one in record.places if one.address.partition("/")[0] == member.address), None)
    prefix = member.prefix if member.prefix is not None else member.ip.max_prefixlen
    address = source.address if source is not None else f"{member.address}/{prefix}"
    wanted = source.ifname if source is not None else ""
    if wanted not in known:
        near = {one.ifname for one in addresses if member.ip in ipaddress.ip_interface(one.address).network}
        near = {ifname for ifname in near if ifname in known and ifname != "lo"}
        if len(near) != 1:
            return block(
                "context-link",
                member.address,
                f"this host neither has it nor a link called {wanted or 'as the source had'}"
                + (f", and several have its subnet: {', '.join(sorted(near))}" if near else ""),
                f"name one with --map-link {wanted or 'OLD'}=NEW, or put the address on a link yourself",
            )
        (wanted,) = near
    if not known[wanted].up:
        return block(
            "link-down", wanted, f"{member.address} is to be put there, and it is down", f"ip link set {wanted} up"
        )
    return PlacedAddress(address=address, ifname=wanted, given=True)
