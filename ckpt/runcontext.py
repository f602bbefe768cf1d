"""The context of a group that is about to start: are its addresses there, and the context made before its first task.

An address of the set is the host's already, or is put on the link that the user named, after it was asked for on the
wire. The group's name is the context's. What may be left by a crash is written into the journal before it is made; the
context itself is known by its cgroup.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import replace

from ckpt import context, registry
from ckpt.errors import ExistsError, NotFoundError, RefusedError
from ckpt.kernel import arp, context_bounds, netns, outside
from ckpt.kernel import context as kernel
from ckpt.kernel.spawn import Bounds
from ckpt.model.context import Member, parse_set
from ckpt.model.groupspec import GroupSpec
from ckpt.model.network import Address, Link, Network
from ckpt.records import dataclass
from ckpt.registry import Operation

_log = logging.getLogger(__name__)

_PROBE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a confined group starts in; ``given`` are addresses that ckpt put on links for it."""

    context: str
    members: tuple[str, ...]
    given: tuple[str, ...]
    bounds: Bounds


def confine(spec: GroupSpec, operation: Operation, undo: ExitStack) -> Confinement:
    """Make the context that ``spec`` asks for, undone by ``undo``."""
    members = parse_set(spec.addresses)
    context.require_no_context(spec.name)
    _require_bounds(spec)
    given = _give_missing(members, spec.link, operation, undo)
    made = kernel.create(spec.name, members, registry.state_dir(), undo)
    _log.info("made the context %s of %s", made.name, ", ".join(str(one) for one in made.members))
    if spec.limits.tasks is not None:
        undo.callback(context.discard, spec.name)
        context_bounds.limit_tasks(made, spec.limits.tasks)
    return Confinement(
        context=made.name,
        members=tuple(text for one in made.members for text in str(one).split()),
        given=given,
        bounds=context_bounds.bounds(made, spec.limits),
    )


def _require_bounds(spec: GroupSpec) -> None:
    """RefusedError where root in the group could undo what the spec asks for, unless it may."""
    found = list(context_bounds.freedoms(tasks=spec.limits.tasks is not None))
    for one in found if spec.root_may_leave else ():
        _log.info("%s", one.reason)
    if found and not spec.root_may_leave:
        raise RefusedError(
            f"{spec.name} cannot be confined here for certain",
            code="context-delegation",
            details="\n".join(one.reason for one in found),
            hint=f"{'; '.join(one.remedy for one in found)}; or --root-may-leave, "
            "for a command that gives up root, or that you trust",
        )


def _give_missing(
    members: tuple[Member, ...], link: str | None, operation: Operation, undo: ExitStack
) -> tuple[str, ...]:
    known = {one.address.partition("/")[0] for one in outside.addresses()}
    missing = [one for one in members if one.address not in known]
    if not missing:
        return ()
    if link is None:
        raise NotFoundError(
            f"this host does not have the address {missing[0].address}",
            code="address-missing",
            hint="name with --link where ckpt shall put it, or put it on a link yourself",
        )
    _require_free(missing, link)
    wanted = [
        replace(one, ports=(), prefix=one.ip.max_prefixlen if one.prefix is None else one.prefix) for one in missing
    ]
    operation.note(given=[f"{link} {one}" for one in wanted])
    for one in wanted:
        undo.callback(context.take_address, link, str(one))
        context.give_address(link, str(one))
    _announce(wanted, link)
    return tuple(f"{link} {one}" for one in wanted)


def _require_free(members: list[Member], ifname: str) -> None:
    """ExistsError when somebody on the wire has one of the addresses."""
    link = outside.find(ifname)
    if link is None:
        raise NotFoundError(f"there is no link {ifname}", code="link-missing", hint="`ip link` lists those of the host")
    for one in members:
        _log.info("asking on %s who has %s", ifname, one.address)
        mac = arp.probe(None, ifname, one.address, _PROBE_SECONDS) if link.up else None
        if mac is not None:
            raise ExistsError(
                f"the address {one.address} is in use",
                code="address-in-use",
                details=f"by {mac} on {ifname}",
                hint="give the group another --address",
            )


def _announce(members: list[Member], ifname: str) -> None:
    """Who has talked to an earlier owner of the addresses shall not have to wait until it forgets that one's MAC."""
    space = netns.open_own()
    try:
        addresses = tuple(Address(ifname=ifname, address=str(one)) for one in members)
        arp.announce(space, Network(links=(Link(ifname=ifname, kind="", flags=("up",)),), addresses=addresses))
    finally:
        os.close(space)
