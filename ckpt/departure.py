"""The source's side of a migration: a dump that goes to the other host as it is written, and waits for it to be ready.

The image is written to a file here and sent at once; what the target says meanwhile is listened to, so a target that
fails ends the dump early. The group stands still from `frozen` until the commit, for no longer than the limit: what
takes longer is undone. At the commit the record is written, and nothing but that decides; when nothing of the group is
left here, the target is told to go on. What becomes of it then is for `migrate` to find out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ckpt import migrations
from ckpt.errors import CkptError, RemoteError
from ckpt.handover import Handover, Progress, write_all
from ckpt.image import created
from ckpt.image.writer import Writable
from ckpt.migrations import Migration, Role, State, Task
from ckpt.model.process import Process
from ckpt.remote import messages
from ckpt.remote.protocol import Channel, ChannelTimeoutError, DataWriter, failed

GO_SECONDS = 5.0
"""How long it may take to hand the last word to the connection."""


class Departure(Handover):
    """Hands the group of ``record`` over to the agent at the other end of ``channel``, by the question ``restore``.

    ``limit`` are the seconds for which the group may stand still before the commit.
    """

    def __init__(
        self, record: Migration, channel: Channel, restore: messages.Restore, limit: float, progress: Progress
    ) -> None:
        self.record = record
        self.frozen_at = 0.0
        self.told = False
        self.refused = False
        self._channel = channel
        self._restore = restore
        self._limit = limit
        self._progress = progress
        self._deadline: float | None = None

    @property
    def committed(self) -> bool:
        """Whether the group is the other host's."""
        return self.record.state is State.COMMITTED

    def frozen(self) -> None:
        """The clock runs."""
        self.frozen_at = time.monotonic()
        self._deadline = self.frozen_at + self._limit

    @contextlib.contextmanager
    def image(self, path: Path, *, force: bool, pages: int) -> Iterator[Writable]:
        """A file here, and the target."""
        with created(path, force=force) as out, self._timed():
            # By the size the target knows whether it can unpack it in memory, and need not wait for a disk.
            self._channel.send(dataclasses.replace(self._restore, pages=pages), self._deadline)
            yield _Both(out, DataWriter(self._channel, self._deadline), self._listen)
            # Before the file is synced: the target has enough to do meanwhile.
            self._channel.end_data(self._deadline)

    def agree(self) -> None:
        """Wait until the target holds the group."""
        with self._timed():
            while not isinstance(message := self._channel.receive(self._deadline), messages.Ready):
                self._take(message)

    def commit(self, processes: tuple[Process, ...]) -> None:
        """From here on the target owns the group."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise self._too_long()
        tasks = tuple(Task(pid=one.pid, start_time=one.start_time) for one in processes)
        before = self.record
        try:
            self.record = migrations.advance(before, State.COMMITTED, tasks=tasks)
        except CkptError:
            # It may have reached the disk all the same: the earlier one has to stand there again, or it counts.
            try:
                migrations.store(before)
            except CkptError:
                self.record = migrations.find(before.id, Role.SOURCE) or before
                if self.committed:
                    return
            raise

    def away(self) -> None:
        """Say go. Should that fail, `migrate` says it again."""
        with contextlib.suppress(CkptError):
            verdict = messages.Verdict(migration=self.record.id, go=True)
            self._channel.send(verdict, time.monotonic() + GO_SECONDS)
            self.told = True

    def discard(self, path: Path) -> None:
        """The group stays ours."""
        self.roll_back()
        path.unlink(missing_ok=True)

    def roll_back(self) -> None:
        """Write down that the group stays ours, if it can be written; what can not counts as that, too."""
        if self.record.state is State.PREPARED:
            with contextlib.suppress(CkptError):
                self.record = migrations.advance(self.record, State.ROLLED_BACK)

    def _listen(self) -> None:
        """Take what the target has said meanwhile."""
        while self._channel.pending():
            self._take(self._channel.receive(self._deadline))

    def _take(self, message: object) -> None:
        if isinstance(message, messages.Progress):
            self._progress(f"{message.stage} on {self._channel.label}", message.done, message.total)
        elif isinstance(message, messages.Failure):
            # It says so when it has undone everything.
            self.refused = True
            if message.code == "host-timeout" and self._deadline is not None and time.monotonic() > self._deadline:
                raise self._too_long()  # it has waited for the image for as long as we may take
            raise failed(message, self._channel.label)
        else:
            raise RemoteError(
                f"{self._channel.label} does not keep to the protocol",
                code="protocol-malformed",
                details=f"{type(message).__name__} came before Ready",
            )

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        try:
            yield
        except ChannelTimeoutError as error:
            raise self._too_long() from error

    def _too_long(self) -> RemoteError:
        return RemoteError(
            f"{self._channel.label} was not ready in time",
            code="downtime-limit",
            details=f"the group had stood still for {self._limit:g} s",
            hint="allow more with --downtime-limit, or find out what takes long: the network, the disk, the size",
        )


class _Both:
    """A stream into a file and to the other host."""

    def __init__(self, out: Writable, wire: DataWriter, listen: Callable[[], None]) -> None:
        self._out = out
        self._wire = wire
        self._listen = listen

    def write(self, data: bytes, /) -> int:
        """All of ``data`` to both."""
        self._listen()
        self._wire.write(data)
        write_all(self._out, data)
        return len(data)
