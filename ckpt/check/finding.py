"""How the rules of this package say what they found."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.model.finding import Finding, Severity
from ckpt.model.process import Holder, OpenFile, Process
from ckpt.model.socket import Socket

NAMED = 5
"""How many processes a finding names before it only counts the rest."""


def block(code: str, subject: str, reason: str, remedy: str) -> Finding:
    """A finding that stops a dump."""
    return Finding(severity=Severity.BLOCK, code=code, subject=subject, reason=reason, remedy=remedy)


def warn(code: str, subject: str, reason: str, remedy: str) -> Finding:
    """A finding that lets a dump go on."""
    return Finding(severity=Severity.WARN, code=code, subject=subject, reason=reason, remedy=remedy)


def of_process(process: Process) -> str:
    """``PID 71 (redis-server)``."""
    return f"PID {process.pid} ({process.name})"


def of_file(process: Process, file: OpenFile) -> str:
    """``PID 71 (redis-server), fd 5``."""
    return f"{of_process(process)}, fd {file.fd}"


def of_socket(socket: Socket) -> str:
    """``PID 71, fd 5``: the first descriptor by which a process has the socket."""
    if not socket.owners:
        return f"connection {socket.local} to {socket.remote}"
    return f"PID {socket.owners[0].pid}, fd {socket.owners[0].fd}"


def of_holders(holders: Sequence[Holder]) -> str:
    """``PID 3 (sshd), PID 7 (cat)``."""
    named = ", ".join(f"PID {holder.pid} ({holder.name})" for holder in holders[:NAMED])
    return f"{named} and {len(holders) - NAMED} more" if len(holders) > NAMED else named
