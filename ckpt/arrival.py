"""The target's side of a migration: it holds a group that is restored, and lets it go only when it is told.

Until it has said that it is ready the source cannot have committed, and whatever goes wrong undoes the restore. From
then on it decides nothing by itself, not even when the connection ends: it waits for a verdict, which comes over the
connection or, from whoever asks later, as a file beside its record. `standing` tells what became of a migration, from
what is there and not from what was written; see docs/migration.md.
"""

from __future__ import annotations

import contextlib
import logging
import time

from ckpt import migrations
from ckpt.clean import clean
from ckpt.errors import CkptError, RefusedError, RestoreError
from ckpt.handover import Arrival
from ckpt.migrations import Migration, Role, State, Task
from ckpt.remote.messages import Ready, Released, Standing, Stands, Verdict
from ckpt.remote.protocol import Channel

_log = logging.getLogger(__name__)

TELL_SECONDS = 30.0
"""How long a ckpt that holds a group may take to do as it was told."""


class HeldArrival(Arrival):
    """The restore of a group that ``peer`` hands over by ``channel`` as the migration ``record``."""

    moves = True

    def __init__(self, migration: str, group: str, peer: str, channel: Channel) -> None:
        if migrations.find(migration, Role.TARGET) is not None:
            raise RefusedError(f"the migration {migration} is known here already", code="migration-known")
        self._channel = channel
        self._told: bool | None = None
        self._record = Migration(
            id=migration,
            role=Role.TARGET,
            state=State.RECEIVING,
            group=group,
            peer=peer,
            owner=migrations.ourselves(),
        )
        migrations.store(self._record)

    def hold(self, pid: int, start_time: int) -> None:
        """Say that we are ready, and wait for the verdict, for ever if need be."""
        ready = migrations.advance(self._record, State.READY, root=Task(pid=pid, start_time=start_time))
        self._record = ready
        with contextlib.suppress(CkptError):
            self._channel.send(Ready(pid=pid), time.monotonic() + TELL_SECONDS)
        if not self._verdict():
            raise RestoreError("the source has taken the group back", code="migration-given-up")
        self._record = migrations.advance(self._record, State.TOLD)

    def running(self) -> None:
        """Write down that it runs."""
        with contextlib.suppress(CkptError):
            self._record = migrations.advance(self._record, State.RUNNING)

    def released(self) -> None:
        """Say so."""
        with contextlib.suppress(CkptError):
            self._channel.send(Released(), time.monotonic() + 1.0)

    def given_up(self) -> None:
        """The restore failed and is undone: there is nothing left to ask about."""
        migrations.forget(self._record.id, Role.TARGET)

    def _verdict(self) -> bool:
        while True:
            found = migrations.verdict(self._record.id)
            if found is not None:
                return found
            if self._channel.ended:
                time.sleep(migrations.POLL_SECONDS)
                continue
            try:
                if not self._channel.wait(migrations.POLL_SECONDS) or self._channel.ended:
                    continue
                message = self._channel.receive()
            except CkptError as error:
                _log.warning("%s", error)
                continue
            if isinstance(message, Verdict) and message.migration == self._record.id:
                return message.go


def standing(migration: str) -> Stands:
    """How a migration stands here, once what a dead ckpt has left of it is undone.

    Raises RefusedError (`migration-under-way`) when the ckpt that works on it comes to no end.
    """
    deadline = time.monotonic() + TELL_SECONDS
    while True:
        record = migrations.find(migration, Role.TARGET)
        if record is None:
            return Stands(standing=Standing.GONE)
        if not record.under_way or record.state is State.RUNNING:
            break
        if record.state is State.READY and record.root and migrations.verdict(migration) is None:
            return Stands(standing=Standing.HOLDING, pid=record.root.pid)
        if time.monotonic() > deadline:
            raise RefusedError(
                f"the migration {migration} is under way",
                code="migration-under-way",
                details=f"the ckpt with PID {record.owner.pid} works on it",
                hint="try again when that is done",
            )
        time.sleep(migrations.POLL_SECONDS)
    if not record.under_way:
        # A restore that was left half-way is ended, and what runs is freed of its lock.
        clean()
    if record.group_lives and record.root and record.state in (State.TOLD, State.RUNNING):
        return Stands(standing=Standing.RUNNING, pid=record.root.pid)
    return Stands(standing=Standing.ENDED if record.state is State.RUNNING else Standing.GONE)


def tell(verdict: Verdict) -> Stands:
    """Let the ckpt that holds the group know, and see what comes of it."""
    before = standing(verdict.migration)
    if before.standing is not Standing.HOLDING:
        return before
    migrations.tell(verdict.migration, go=verdict.go)
    return standing(verdict.migration)
