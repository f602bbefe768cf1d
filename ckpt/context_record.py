"""The context of a group that is dumped: whether it can be, what of it goes into the image, and what is to be silent.

A group in a context is all that its cgroup holds; one dump is one tree of processes. Its sockets are read as its
programs see them, and the books say what they are on the host. The lock covers the group's own connections, and the
ports that it has on each address of its set; others may have the same address with other ports.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ckpt.errors import CkptError
from ckpt.kernel import cgroup2, context_books, context_limits, context_places, context_sockets, host, outside
from ckpt.kernel import context as kernel
from ckpt.kernel.lock import Scope
from ckpt.model.checkpoint import Booking, ContextRecord, PlacedAddress
from ckpt.model.confined import as_on_host, outwards
from ckpt.model.context import Context
from ckpt.model.finding import Finding, Severity
from ckpt.model.process import GroupFacts
from ckpt.model.socket import Socket
from ckpt.registry import GroupEntry
from ckpt.silence import scope_of

_NAMED = 5


def of_process(pid: int) -> Context | None:
    """The context that a process is in; None when it is in none. NotFoundError for one that is not whole."""
    cgroup = cgroup2.of_process(pid)
    name = None if cgroup is None or not context_places.is_context(cgroup) else context_places.name_of(cgroup)
    return None if name is None else kernel.read(name)


def findings(facts: GroupFacts) -> Iterator[Finding]:
    """Why a group in a context cannot be dumped."""
    if not any(_is_confined(one.pid) for one in facts.processes):
        return
    try:
        context = of_process(facts.root)
    except CkptError as error:
        yield _block("context-incomplete", f"PID {facts.root}", str(error), "`ckpt clean`, or end the group")
        return
    if context is None:
        yield _block(
            "context-mixed",
            f"PID {facts.root}",
            "is not in the IP-set context that processes below it are in, or is in one of another network namespace",
            "dump the group of that context",
        )
        return
    yield from _members(facts, context)
    yield from _sockets(facts, context)
    for section in kernel.missing_programs(context):
        yield _block(
            "context-programs",
            f"context {context.name}",
            f"its program {section} is not attached any more: somebody has taken it away",
            "end the group; it is not confined as its image would say",
        )


def read(context: Context, entry: GroupEntry | None) -> ContextRecord:
    """The record of a context, whose processes stand still."""
    places = {one.address.partition("/")[0]: one for one in outside.addresses()}
    macs = {link.ifname: link.mac for link in host.read_links()}
    given = {text.partition(" ")[2].partition("/")[0] for text in (entry.given if entry else ())}
    bare = ContextRecord(members=context.members, loopback4=context.loopback4, loopback6=context.loopback6)
    return ContextRecord(
        members=context.members,
        loopback4=context.loopback4,
        loopback6=context.loopback6,
        places=tuple(
            PlacedAddress(
                address=there.address,
                ifname=there.ifname,
                mac=macs.get(there.ifname),
                given=one.address in given,
            )
            for one in context.members
            if (there := places.get(one.address)) is not None
        ),
        tasks=context_limits.tasks(context),
        bookings=bookings(context, bare),
        root_may_leave=entry is not None and entry.root_may_leave,
    )


def covers(scope: Scope) -> tuple[str, ...]:
    """The ports that a lock of this scope silences, by their addresses."""
    ports = sorted({*scope.listeners, *scope.datagrams})
    return tuple(f"{address.removeprefix('::ffff:')} {port}" for address, port in ports)


def has_address(context: Context) -> bool:
    """Whether this host still has an address of the set."""
    known = {one.address.partition("/")[0] for one in outside.addresses()}
    return any(one.address in known for one in context.members)


def bookings(context: Context, record: ContextRecord) -> tuple[Booking, ...]:
    """What the books have of the context, with its loopback addresses as ``record`` says that the group knows them."""
    found = (
        Booking(
            address=outwards(record, one.address),
            port=one.port,
            protocol=one.protocol,
            primary=outwards(record, one.primary),
            wild=one.wild,
            sockets=one.sockets,
        )
        for one in context_books.claims()
        if one.number == context.number
    )
    return tuple(sorted(found, key=lambda one: (one.protocol, one.port, one.address)))


def scope(record: ContextRecord, sockets: Sequence[Socket]) -> Scope:
    """What a lock in the host's namespace has to silence for a context with these sockets."""
    there = as_on_host(record, sockets)
    wide = scope_of(there)
    return Scope(
        connections=wide.connections,
        listeners=wide.listeners,
        datagrams=tuple(
            (one.local.address, one.local.port)
            for one in there
            if one.is_inet and one.type == "dgram" and one.local and one.local.port
        ),
    )


def _is_confined(pid: int) -> bool:
    cgroup = cgroup2.of_process(pid)
    return cgroup is not None and context_places.is_context(cgroup)


def _members(facts: GroupFacts, context: Context) -> Iterator[Finding]:
    """The tree and the cgroup have to hold the same processes."""
    directly = set(cgroup2.pids(Path(context.cgroup), below=False))
    for process in facts.processes:
        if process.pid not in directly and not process.zombie:
            yield _block(
                "context-mixed",
                f"PID {process.pid} ({process.name})",
                f"is not directly in the cgroup of the context {context.name}, as the root task is",
                "start it within the context, and make no cgroups there",
            )
    others = sorted(set(cgroup2.pids(Path(context.cgroup))) - facts.pids)
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        yield _block(
            "context-roots",
            f"PID {', '.join(map(str, others[:_NAMED]))}{more}",
            f"in the context {context.name}, but not below PID {facts.root}; CRIU dumps one tree of processes, and "
            "what would run on meanwhile may have other ends of the same connections",
            "end it (what `ckpt exec` has started is such), or have it started by the group itself",
        )


def _sockets(facts: GroupFacts, context: Context) -> Iterator[Finding]:
    """Sockets that were made in the context and are held by somebody else, and the other way round."""
    held = {one.inode for one in facts.sockets}
    made = context_sockets.of(context)
    # The group runs: what it has made since its facts were read is its own.
    own = frozenset(cgroup2.pids(Path(context.cgroup)))
    for one in made:
        if one.inode and one.inode not in held and _is_held(one.inode, own):
            yield _block(
                "context-socket-outside",
                str(one),
                f"was made in the context {context.name} and is held by a process outside of the group",
                "let that process close it",
            )
    known = {one.inode for one in made}
    for socket in facts.sockets:
        # What is neither bound nor connected is in no list of the kernel's.
        bound = socket.is_inet and socket.type in ("stream", "dgram") and socket.local and socket.local.port
        if bound and socket.inode not in known and socket.state not in ("close",):
            yield _block(
                "context-socket-free",
                f"PID {socket.owners[0].pid}, fd {socket.owners[0].fd}" if socket.owners else f"socket {socket.inode}",
                f"was not made in the context {context.name}, and is not confined by it",
                "let the program close it; what it opens itself is confined",
            )


def _is_held(inode: int, own: Collection[int]) -> bool:
    """Whether a process that is none of ``own`` has the socket: without one it is on its way out."""
    name = f"socket:[{inode}]"
    for directory in Path("/proc").glob("[0-9]*/fd"):
        if int(directory.parent.name) in own:
            continue
        with contextlib.suppress(OSError):
            for descriptor in directory.iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) == name:
                        return True
    return False


def _block(code: str, subject: str, reason: str, remedy: str) -> Finding:
    return Finding(severity=Severity.BLOCK, code=code, subject=subject, reason=reason, remedy=remedy)
