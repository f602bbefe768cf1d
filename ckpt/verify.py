"""Is what was restored what was dumped? The image's sockets held against the live ones.

CRIU reports success also when a socket is not where it was (facts that only show when packets come), so after each
restore every descriptor is compared while the group is still held. Pure: two lists of records in, differences out.
What may rightly differ is not compared: inodes, the host's PIDs, queues, and the state of a connection that is being
closed. Unix connections are compared by who faces whom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt.model.process import Process
from ckpt.model.socket import Owner, Socket

Place = tuple[int, int]
"""PID in the innermost PID namespace, and descriptor."""

CLOSING = frozenset({"fin_wait1", "fin_wait2", "closing", "last_ack", "close_wait", "time_wait", "close"})
"""A connection on its way out goes through these on its own; which of them it is in says nothing."""


def compare(
    wanted: Sequence[Socket],
    live: Sequence[Socket],
    renumbered: Mapping[int, int] | None = None,
    *,
    tcp_close: bool = False,
) -> tuple[str, ...]:
    """What differs between the sockets of an image and those of the restored group, one line each.

    ``renumbered`` is the number that a network namespace has now, by its former one, where it was made anew.
    With ``tcp_close`` connections were to be closed: their sockets must be there, unconnected.
    """
    wanted = [replace(one, netns=(renumbered or {}).get(one.netns, 0)) for one in wanted]
    return tuple(_differences(wanted, _by_place(live), _by_inode(wanted), tcp_close=tcp_close))


def misplaced(wanted: Sequence[Process], live: Sequence[Process], renumbered: Mapping[int, int]) -> Iterator[str]:
    """The processes that are in another network namespace than the one that was made for theirs, one line each."""
    found = {one.ns_pid: one.namespaces.get("net") for one in live}
    for one in wanted:
        expected = renumbered.get(one.namespaces.get("net", 0))
        if expected is not None and found.get(one.ns_pid, expected) not in (expected, None):
            yield f"the process {one.ns_pid} is in the network namespace {found[one.ns_pid]} instead of {expected}"


def _by_place(sockets: Sequence[Socket]) -> dict[Place, Socket]:
    return {_place(owner): socket for socket in sockets for owner in socket.owners}


def _by_inode(sockets: Sequence[Socket]) -> dict[int, Socket]:
    return {socket.inode: socket for socket in sockets}


def _place(owner: Owner) -> Place:
    return owner.ns_pid, owner.fd


def _differences(
    wanted: Sequence[Socket], live: Mapping[Place, Socket], known: Mapping[int, Socket], *, tcp_close: bool
) -> Iterator[str]:
    for socket in wanted:
        found = [(owner, live.get(_place(owner))) for owner in socket.owners]
        for owner, one in found:
            if one is None:
                yield f"{_name(socket, owner)} is missing"
        there = [(owner, one) for owner, one in found if one is not None]
        if not there:
            continue
        if len({one.inode for _, one in there}) > 1:
            yield f"{_name(socket, there[0][0])} was one socket and is several"
        owner, one = there[0]
        for what, before, now in _compare(socket, one, closed=tcp_close and socket.holds_connection):
            yield f"{_name(socket, owner)}: {what} is {_shown(now)} instead of {_shown(before)}"
        if socket.peer and not _faces(known.get(socket.peer), one, live):
            yield f"{_name(socket, owner)}: is not connected to the socket that it was connected to"


def _compare(wanted: Socket, live: Socket, *, closed: bool) -> Iterator[tuple[str, object, object]]:
    yield from _unequal(wanted, live, "family", "type", "protocol", "device")
    if wanted.netns:
        yield from _unequal(wanted, live, "netns")
    # The accepted end of a unix connection has its listener's name, and CRIU restores it without one.
    if not (wanted.peer and live.path is None):
        yield from _unequal(wanted, live, "path")
    if not wanted.is_inet:
        return
    if closed:
        if live.state not in CLOSING:
            yield "state", "close", live.state
        return
    yield from _unequal(wanted, live, "local", "remote", "backlog")
    if wanted.state != live.state and not (wanted.state in CLOSING and live.state in CLOSING):
        yield "state", wanted.state, live.state
    # Of a socket with a peer IPV6_V6ONLY says nothing, and CRIU sets it on every IPv6 one that it restores.
    for option in ("freebind",) if wanted.remote else ("v6only", "freebind"):
        before, now = getattr(wanted.options, option), getattr(live.options, option)
        if before != now:
            yield option, before, now


def _unequal(wanted: Socket, live: Socket, *fields: str) -> Iterator[tuple[str, object, object]]:
    for field in fields:
        before, now = getattr(wanted, field), getattr(live, field)
        if before != now:
            yield field, before, now


def _faces(peer: Socket | None, live: Socket, places: Mapping[Place, Socket]) -> bool:
    """Whether the peer of ``live`` is held where ``peer`` was held; a peer outside of the image cannot be told."""
    if peer is None or not peer.owners:
        return True
    found = places.get(_place(peer.owners[0]))
    return found is not None and live.peer == found.inode


def _name(socket: Socket, owner: Owner) -> str:
    if socket.is_inet:
        where = f" {socket.local}" + (f" to {socket.remote}" if socket.remote else "")
    else:
        where = f" {socket.path}" if socket.path else ""
    return f"PID {owner.ns_pid}, fd {owner.fd} ({socket.family} {socket.type}{where})"


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
