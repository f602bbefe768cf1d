"""The moments before a freeze, in which the group still runs and must not notice anything.

An accept queue is not in CRIU's images ("in-flight connection", criu/sk-inet.c), and the client of a handshake that
is half done would be answered with a RST by the restored listener. So before the freeze a gate keeps new connections
out, and those that wait get the time to be accepted. The lock proper is closed only when the tasks stand still: it
drops what they send, and a sender that runs would be told so (EPERM).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ckpt.kernel import sockdiag
from ckpt.kernel.group_lock import GroupLock
from ckpt.kernel.lock import Scope
from ckpt.model.process import Process
from ckpt.model.socket import Socket

DRAIN_SECONDS = 2.0
"""How long a server gets to accept the connections that wait for it."""

DELIVER_SECONDS = 0.5
_UNDELIVERED = ("fin_wait1", "closing", "last_ack")


def settle(
    lock: GroupLock,
    spaces: Sequence[int],
    listeners: Sequence[Process] | None,
    *,
    patient: bool = True,
) -> int:
    """Gate ``lock``; how many connections wait to be accepted all the same.

    ``spaces`` are the namespaces that it gates. ``listeners`` are the processes whose queues count where others have
    sockets in there too; None: all do. Unless ``patient``, nothing is waited for.
    """
    deadline = time.monotonic() + DRAIN_SECONDS
    lock.gate()
    while True:
        waiting = _waiting(spaces, listeners)
        if not waiting or not patient or time.monotonic() > deadline:
            return waiting
        time.sleep(0.01)


def deliver(spaces: Sequence[int]) -> None:
    """Wait until what closed connections still had to send has arrived, while their peers answer.

    No process holds them, so no image can: with their namespace they are lost. To be called when the tasks stand still
    and close no more of them; a peer that does not answer is not waited for for long.
    """
    deadline = time.monotonic() + DELIVER_SECONDS
    while any(one.state in _UNDELIVERED for netns in spaces for one in sockdiag.read_orphans(netns)):
        if time.monotonic() > deadline:
            return
        time.sleep(0.002)


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
