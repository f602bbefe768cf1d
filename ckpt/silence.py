"""The moment before a freeze: from here on the group's peers hear nothing.

An accept queue is not in CRIU's images ("in-flight connection", criu/sk-inet.c), and the client of a handshake that
is half done would be answered with a RST by the restored listener. So before the lock is final, connections that wait
get the time to be accepted, while a gate keeps new ones out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ckpt.kernel import sockdiag
from ckpt.kernel.group_lock import GroupLock
from ckpt.kernel.lock import Scope
from ckpt.model.process import Process
from ckpt.model.socket import Socket

DRAIN_SECONDS = 2.0
"""How long a server gets to accept the connections that wait for it."""


def silence(
    lock: GroupLock,
    spaces: Sequence[int],
    listeners: Sequence[Process] | None,
    note: Callable[[], None],
    *,
    patient: bool = True,
) -> int:
    """Close ``lock``; how many connections wait to be accepted all the same.

    ``spaces`` are the namespaces that it closes. ``listeners`` are the processes whose queues count where others have
    sockets in there too; None: all do.
    ``note`` is called whenever the tables of the lock have changed. Unless ``patient``, nothing is waited for.
    """
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        lock.close()
        note()
        waiting = _waiting(spaces, listeners)
        if not waiting or not patient or time.monotonic() > deadline:
            return waiting
        lock.gate()
        note()
        while _waiting(spaces, listeners) and time.monotonic() < deadline:
            time.sleep(0.01)


def _waiting(spaces: Sequence[int], listeners: Sequence[Process] | None) -> int:
    if listeners is None:
        return sum(map(sockdiag.accept_queue, spaces))
    return sum(one.accept_queue or 0 for one in sockdiag.read_sockets(listeners))


def scope_of(sockets: tuple[Socket, ...]) -> Scope:
    """What a lock in a shared namespace has to silence for a group with these sockets."""
    inet = [one for one in sockets if one.is_inet and one.local is not None and one.local.port]
    return Scope(
        connections=tuple(
            (one.local.address, one.local.port, one.remote.address, one.remote.port)
            for one in inet
            if one.holds_connection and one.local and one.remote
        ),
        listeners=tuple((one.local.address, one.local.port) for one in inet if one.state == "listen" and one.local),
        udp_ports=tuple(one.local.port for one in inet if one.type == "dgram" and one.local),
    )
