"""What this host has to say to a context that shall be restored on it, beside what is asked of every host.

Whether its kernel has what contexts need; whether root could leave one here; whether other contexts have the group's
ports in their books, which no list of sockets shows; and whether ports that a kernel once chose are among those that
this one would choose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ckpt.errors import CkptError, NotFoundError
from ckpt.kernel import context as kernel
from ckpt.kernel import context_books, context_bounds, context_places, context_probe
from ckpt.model.checkpoint import Checkpoint, ContextRecord
from ckpt.model.confined import claiming, members_with
from ckpt.model.finding import Finding, Severity
from ckpt.model.socket import Socket


def here(checkpoint: Checkpoint, *, try_kernel: bool = True) -> Iterator[Finding]:
    """Findings for a restore here. Unless ``try_kernel``, what it has is not tried: that takes a while."""
    record = checkpoint.context
    if record is None:
        return
    missing = [one for one in context_probe.features() if one.failure is not None and one.needed] if try_kernel else []
    for one in missing:
        yield _block(
            "context-unsupported", one.name, f"contexts need it: {one.failure}", f"boot Linux {one.since} or later"
        )
    for freedom in context_bounds.freedoms(tasks=record.tasks is not None):
        yield Finding(
            severity=Severity.WARN if record.root_may_leave else Severity.BLOCK,
            code="context-delegation",
            subject="the context",
            reason=freedom.reason,
            remedy=freedom.remedy,
        )
    if not missing:
        # An address that is none is said by others.
        with contextlib.suppress(CkptError, OSError, ValueError):
            yield from _booked(record, checkpoint.sockets)
            yield from _unchosen(record, checkpoint.sockets)


def _booked(record: ContextRecord, sockets: tuple[Socket, ...]) -> Iterator[Finding]:
    """Ports that another context has."""
    taken = {(one.address, one.port, one.protocol): one.number for one in context_books.claims()}
    names = {}
    for name, _ in context_places.found() if taken else ():
        with contextlib.suppress(NotFoundError):
            names[kernel.read(name).number] = name
    for one in claiming(record, sockets):
        if one.local is not None:
            number = taken.get((one.local.address.removeprefix("::ffff:"), one.local.port, one.protocol))
            if number is not None:
                yield _block(
                    "port-in-use",
                    str(one.local),
                    f"the context {names.get(number, 'of a group that is ending')} has this port",
                    "end the group of that context, or restore where the port is free",
                )


def _unchosen(record: ContextRecord, sockets: tuple[Socket, ...]) -> Iterator[Finding]:
    """Ports that the set does not name, where they are not of the kernel's own choice either."""
    around = kernel.surroundings()
    limited = {one.address for one in record.members if one.ports}
    for one in sockets:
        if not one.is_inet or one.local is None or one.local.port in (0, *range(around.low, around.high + 1)):
            continue
        address = one.local.address.removeprefix("::ffff:")
        named = {member.address for member in members_with(record, one.local.port, one.protocol)}
        if address in limited - named:
            yield _block(
                "context-port",
                str(one.local),
                f"the set does not name this port, and here the kernel chooses from {around.low} to {around.high}",
                f"sysctl net.ipv4.ip_local_port_range='{min(around.low, one.local.port)} "
                f"{max(around.high, one.local.port)}'",
            )


def _block(code: str, subject: str, reason: str, remedy: str) -> Finding:
    return Finding(severity=Severity.BLOCK, code=code, subject=subject, reason=reason, remedy=remedy)
