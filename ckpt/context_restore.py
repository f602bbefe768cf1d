"""The context of a group that is restored: made and filled before the group, and held against the image after it.

First the context, in which nothing is yet; then a lock on what the group will have on each address; then the addresses
that the host lacks, under that lock. CRIU is run inside the context's cgroup, so that every socket that it makes is
confined from its first moment: one that CRIU made outside would never be. The sockets get their names as the programs
knew them, and the context's own programs make of `*` and of 127.0.0.1 what these are here.

Before anything of the group runs, each of its processes has to be in the cgroup, each program of the context attached,
each socket made within, and the books as they were. What is not so ends the restore: no group is left unconfined.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ckpt import context, context_record, registry
from ckpt.errors import RefusedError, RestoreError
from ckpt.kernel import arp, cgroup2, context_bounds, context_limits, context_sockets, criu, host, netns, outside
from ckpt.kernel import context as kernel
from ckpt.kernel.group_lock import GroupLock
from ckpt.kernel.lock import NetworkLock
from ckpt.model.checkpoint import Booking, Checkpoint, ContextRecord, PlacedAddress
from ckpt.model.confined import claiming
from ckpt.model.context import Context
from ckpt.model.finding import refuse_blocked
from ckpt.model.network import Address, Link, Network
from ckpt.model.process import Process
from ckpt.model.socket import Socket
from ckpt.rebuild import Home
from ckpt.records import dataclass
from ckpt.revalidate.context import Placing, place

_log = logging.getLogger(__name__)

_CRIU_KNOWS = Path("/run/criu.kdat")
"""Where CRIU keeps what it has found out (KERNDAT_CACHE_FILE, criu/kerndat.c)."""

_ENTER = 'while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs" || exit 1; shift; done; shift; exec "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfinedHome(Home):
    """A home in the host's namespace: a context, and the addresses that were put on links for it."""

    context: Context
    cgroups: tuple[str, ...]
    covers: tuple[str, ...] = ()
    places: tuple[PlacedAddress, ...] = ()

    @property
    def wrapper(self) -> tuple[str, ...]:
        """The command that runs another in the context, and in a cgroup namespace that begins there."""
        return ("sh", "-c", _ENTER, "sh", *self.cgroups, "--", "unshare", "--cgroup", "--")

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(text for one in self.context.members for text in str(one).split())

    @property
    def given(self) -> tuple[str, ...]:
        """As the registry has it."""
        return tuple(f"{one.ifname} {one.address}" for one in self.places)


def placing(record: ContextRecord) -> Placing:
    """Where the addresses of the set go on this host."""
    return place(record, host.read_links(), outside.addresses())


def confine(
    program: criu.Criu,
    checkpoint: Checkpoint,
    name: str,
    operation: registry.Operation,
    passing: ExitStack,
    undo: ExitStack,
    *,
    mute: bool = False,
) -> ConfinedHome:
    """Make the context called ``name``, locked, for ``checkpoint``'s group; `rebuild.rebuild` for one in the host's.

    With ``mute`` the host does not even answer for the addresses that it gets, until the lock goes.
    """
    record = _record(checkpoint)
    if not _CRIU_KNOWS.exists():
        # CRIU tries out what the kernel can when it is first run after a boot: not in there.
        criu.features(program)
    found = placing(record)
    refuse_blocked(found.findings, f"{name} cannot be restored here")
    for one in found.places:
        # Below the context, which has them in its set: it has to be gone when they go.
        undo.callback(context.take_address, one.ifname, one.address)
    with registry.locked():
        context.require_no_context(name)
        made = kernel.create(name, record.members, registry.state_dir(), undo)
        undo.callback(_discard, name)
        cgroups = (made.cgroup, *(context_limits.prepare(made) if record.tasks is not None else ()))
        kernel.set_restoring(made, on=True)
    own = netns.open_own()
    passing.callback(os.close, own)
    here = replace(record, loopback4=made.loopback4, loopback6=made.loopback6)
    scope = context_record.scope(here, checkpoint.sockets)
    if mute:
        scope = replace(scope, mute=tuple(one.address.partition("/")[0] for one in found.places))
    lock = GroupLock([NetworkLock(own, scope=scope)])
    passing.enter_context(lock).close(permanent=True)
    covers = context_record.covers(scope)
    home = ConfinedHome(lock=lock, context=made, cgroups=cgroups, covers=covers, places=found.places)
    operation.note(lock_tables=list(lock.names), netns_pid=os.getpid(), given=list(home.given))
    for one in home.places:
        context.give_address(one.ifname, one.address)
    return home


def _discard(name: str) -> None:
    with registry.locked():
        context.discard(name)


def _record(checkpoint: Checkpoint) -> ContextRecord:
    if checkpoint.context is None:
        raise RefusedError("the image does not say what confined its group", code="context-missing")
    return checkpoint.context


# -- after CRIU --------------------------------------------------------------------------------------------------------


def settle(home: ConfinedHome, checkpoint: Checkpoint, restored: list[Process], live: tuple[Socket, ...]) -> None:
    """End the exceptions that were made for CRIU; RestoreError (`context-differs`) unless all of it is confined."""
    kernel.set_restoring(home.context, on=False)
    tasks = _record(checkpoint).tasks
    if tasks is not None:
        context_bounds.limit_tasks(home.context, tasks)
    wrong = [
        *_outside(home, restored),
        *(f"the program {section} is not attached" for section in kernel.missing_programs(home.context)),
        *_free_sockets(home, live),
        *_unbooked(home, checkpoint),
    ]
    if wrong:
        raise RestoreError(
            "what was restored is not confined as the image says", code="context-differs", details="\n".join(wrong)
        )


def _outside(home: ConfinedHome, restored: list[Process]) -> Iterator[str]:
    for directory in home.cgroups:
        inside = set(cgroup2.pids(Path(directory), below=False))
        for process in restored:
            if process.pid not in inside and not process.zombie:
                yield f"the process {process.ns_pid} is not in the cgroup {directory}"


def _free_sockets(home: ConfinedHome, live: tuple[Socket, ...]) -> Iterator[str]:
    made = {one.inode for one in context_sockets.of(home.context)}
    for one in live:
        listed = one.is_inet and one.type in ("stream", "dgram") and one.local and one.local.port
        if listed and one.state != "close" and one.inode not in made:
            yield f"the socket {one.local} was not made in the context"


def _unbooked(home: ConfinedHome, checkpoint: Checkpoint) -> Iterator[str]:
    """Ports that the group had to itself, and that anybody could bind to now."""
    record = _record(checkpoint)
    here = replace(record, loopback4=home.context.loopback4, loopback6=home.context.loopback6)
    booked = {_key(one): one for one in context_record.bookings(home.context, here)}
    waiting = _waiting(record, checkpoint.sockets)
    for one in record.bookings:
        now = booked.get(_key(one))
        if _key(one) in waiting and (now is None or (now.wild, now.primary) != (one.wild, one.primary)):
            yield f"the port {one.port} of {one.address} is not booked as it was"


def _key(one: Booking) -> tuple[str, int, int]:
    return (one.address, one.port, one.protocol)


def _waiting(record: ContextRecord, sockets: tuple[Socket, ...]) -> set[tuple[str, int, int]]:
    """What sockets are bound to, as the books have it."""
    plain = replace(record, loopback4="127.0.0.1", loopback6="::1")
    return {
        (one.local.address.removeprefix("::ffff:"), one.local.port, one.protocol)
        for one in claiming(plain, sockets)
        if one.local is not None
    }


def announce(home: ConfinedHome) -> None:
    """Tell the segments who has the addresses now that were put on links."""
    space = netns.open_own()
    try:
        for ifname in {one.ifname for one in home.places}:
            addresses = tuple(
                Address(ifname=ifname, address=one.address) for one in home.places if one.ifname == ifname
            )
            arp.announce(space, Network(links=(Link(ifname=ifname, kind="", flags=("up",)),), addresses=addresses))
    finally:
        os.close(space)
