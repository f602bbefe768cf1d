"""A host that commands work on: this one, or another one by its agent. Both do the same.

A `Host` is asked for what a command shows or does; what it returns and raises does not tell which kind it is, but for
the name of the host in an error's details. Images pass as streams: a dump writes to a destination that the caller
opens, which is safe once its block has ended, and only then is the group taken away; a restore reads from a stream of
the caller's, no further than it needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ckpt import registry
from ckpt.carrying import OpenFiles
from ckpt.clean import clean
from ckpt.dump import DumpReport, dump_stream
from ckpt.errors import NotFoundError, UnknownOutcomeError
from ckpt.handover import Destination, Progress, write_all
from ckpt.image.frames import Readable
from ckpt.mapping import NO_MAPPING, Mapping
from ckpt.model.finding import Finding
from ckpt.records import dataclass
from ckpt.remote import messages, ssh
from ckpt.remote.messages import CleanedThing, GroupStatus
from ckpt.remote.protocol import Channel, ChannelClosedError, Data, failed
from ckpt.restore import RestoreReport, restore_stream

_PIECE = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpWanted:
    """What is asked of a dump; see `ckpt dump --help`."""

    leave_running: bool = False
    tcp_close: bool = False
    skip_in_flight: bool = False
    codec: str = "zstd"
    criu: str | None = None
    with_files: tuple[Path, ...] = ()
    open_files: OpenFiles = OpenFiles.SMALL
    max_freeze: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreWanted:
    """What is asked of a restore; see `ckpt restore --help`. ``size`` and ``pages`` as far as they are known."""

    name: str | None = None
    dry_run: bool = False
    tcp_close: bool = False
    pages: int | None = None
    size: int = 0
    keep: Path | None = None
    criu: str | None = None
    mapping: Mapping = NO_MAPPING
    replace_files: bool = False


class Host(Protocol):
    """What every host can be asked."""

    label: str

    def ps(self) -> tuple[GroupStatus, ...]:
        """The groups that it knows, by name."""

    def clean(self, *, dry_run: bool = False) -> tuple[CleanedThing, ...]:
        """Take away what dead ckpts have left."""

    def check(self, target: str | int | None, *, criu: str | None = None) -> tuple[Finding, ...]:
        """What works there, or whether the group or PID ``target`` would dump."""

    def dump(
        self, target: str | int, destination: Destination, wanted: DumpWanted, progress: Progress | None = None
    ) -> DumpReport:
        """Dump to ``destination``. Once that is safe and the group's fate is not known: UnknownOutcomeError."""

    def restore(
        self, image: Readable, label: str, wanted: RestoreWanted, progress: Progress | None = None
    ) -> RestoreReport:
        """Restore from ``image``, called ``label``; with ``dry_run`` only the findings."""


class LocalHost:
    """This host."""

    label = "this host"

    def ps(self) -> tuple[GroupStatus, ...]:
        """See Host."""
        return tuple(GroupStatus(entry=entry, state=state(entry)) for entry in registry.entries())

    def clean(self, *, dry_run: bool = False) -> tuple[CleanedThing, ...]:
        """See Host."""
        return tuple(
            CleanedThing(kind=one.kind, subject=one.subject, done=one.done, reason=one.reason)
            for one in clean(dry_run=dry_run)
        )

    def check(self, target: str | int | None, *, criu: str | None = None) -> tuple[Finding, ...]:
        """See Host."""
        from ckpt.forecast import findings_of
        from ckpt.hostcheck import check_host
        from ckpt.kernel.proc import read_group

        if target is None:
            return tuple(check_host(criu))
        if isinstance(target, int):
            return tuple(findings_of(read_group(target)))
        entry = registry.get(target)
        if not entry.alive:
            raise NotFoundError(f"{target} has exited", code="group-exited", hint=f"`ckpt logs {target}` may say why")
        return tuple(findings_of(read_group(entry.pid)))

    def dump(
        self, target: str | int, destination: Destination, wanted: DumpWanted, progress: Progress | None = None
    ) -> DumpReport:
        """See Host."""
        return dump_stream(
            target,
            destination,
            leave_running=wanted.leave_running,
            tcp_close=wanted.tcp_close,
            skip_in_flight=wanted.skip_in_flight,
            codec=wanted.codec,
            with_files=wanted.with_files,
            open_files=wanted.open_files,
            max_freeze=wanted.max_freeze,
            progress=progress,
            criu_path=wanted.criu,
        )

    def restore(
        self, image: Readable, label: str, wanted: RestoreWanted, progress: Progress | None = None
    ) -> RestoreReport:
        """See Host."""
        return restore_stream(
            image,
            label,
            name=wanted.name,
            dry_run=wanted.dry_run,
            tcp_close=wanted.tcp_close,
            mapping=wanted.mapping,
            replace_files=wanted.replace_files,
            pages=wanted.pages,
            size=wanted.size,
            keep=wanted.keep,
            criu_path=wanted.criu,
            progress=progress,
        )


class SshHost:
    """Another host, by the agent at the other end of ``channel``."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.label = channel.label

    def ps(self) -> tuple[GroupStatus, ...]:
        """See Host."""
        self.channel.send(messages.Ps())
        return self.channel.expect(messages.Groups).groups

    def clean(self, *, dry_run: bool = False) -> tuple[CleanedThing, ...]:
        """See Host."""
        self.channel.send(messages.Clean(dry_run=dry_run))
        return self.channel.expect(messages.Cleaned).actions

    def check(self, target: str | int | None, *, criu: str | None = None) -> tuple[Finding, ...]:
        """See Host."""
        name, pid = _name_or_pid(target)
        self.channel.send(messages.Check(name=name, pid=pid, criu=criu))
        return self.channel.expect(messages.Findings).findings

    def dump(
        self, target: str | int, destination: Destination, wanted: DumpWanted, progress: Progress | None = None
    ) -> DumpReport:
        """See Host."""
        name, pid = _name_or_pid(target)
        self.channel.send(
            messages.Dump(
                name=name,
                pid=pid,
                leave_running=wanted.leave_running,
                tcp_close=wanted.tcp_close,
                skip_in_flight=wanted.skip_in_flight,
                codec=wanted.codec,
                criu=wanted.criu,
                with_files=tuple(map(str, wanted.with_files)),
                open_files=wanted.open_files.value,
                max_freeze=wanted.max_freeze,
            )
        )
        first = self._listen(progress)
        with destination() as out:
            while isinstance(first, Data):
                write_all(out, first)
                first = self._listen(progress)
        try:
            self.channel.send(messages.Stored())
            done = self.channel.expect(messages.Dumped)
        except ChannelClosedError as error:
            raise UnknownOutcomeError(
                f"{target} is whole in the image, and may have been left running on {self.label}",
                code="connection-lost",
                details="the connection ended when the image was stored here",
                hint=f"`ckpt ps --host {self.label}`: if it runs there, this image is of a moment that has passed",
            ) from error
        return DumpReport(
            name=done.name,
            path=Path("-"),
            image_id=done.image_id,
            size=done.size,
            raw_size=done.raw_size,
            frozen_seconds=done.frozen_seconds,
            processes=done.processes,
            connections=done.connections,
            left_running=done.left_running,
            warnings=done.warnings,
        )

    def _listen(self, progress: Progress | None) -> object:
        """What comes next but for progress; a failure is raised."""
        while True:
            found = self.channel.receive()
            if isinstance(found, messages.Failure):
                raise failed(found, self.label)
            if not isinstance(found, messages.Progress):
                return found
            if progress is not None:
                progress(found.stage, found.done, found.total)

    def restore(
        self, image: Readable, label: str, wanted: RestoreWanted, progress: Progress | None = None
    ) -> RestoreReport:
        """See Host."""
        question = messages.Restore(
            label=label,
            name=wanted.name,
            dry_run=wanted.dry_run,
            tcp_close=wanted.tcp_close,
            pages=wanted.pages,
            keep=str(wanted.keep) if wanted.keep else None,
            criu=wanted.criu,
            mapping=wanted.mapping,
            replace_files=wanted.replace_files,
        )
        self.send_image(question, image, wanted.size, progress)
        return restored(self._result(progress))

    def send_image(
        self, question: messages.Restore, image: Readable, size: int, progress: Progress | None = None
    ) -> None:
        """Ask, and send all of the image, unless the agent has said meanwhile that it has no use for more."""
        self.channel.send(question)
        buffer = memoryview(bytearray(_PIECE))
        sent = 0
        while not self._is_answered() and (count := image.readinto(buffer)):
            self.channel.send_data(buffer[:count])
            sent += count
            if progress is not None:
                progress(f"sending to {self.label}", sent, size or None)
        self.channel.end_data()

    def _is_answered(self) -> bool:
        while self.channel.pending():
            if not self.channel.skip(messages.Progress):
                return True
        return False

    def _result(self, progress: Progress | None) -> messages.Restored:
        while True:
            found = self.channel.receive()
            if isinstance(found, messages.Failure):
                raise failed(found, self.label)
            if isinstance(found, messages.Restored):
                return found
            if isinstance(found, messages.Progress) and progress is not None:
                progress(f"{found.stage} on {self.label}", found.done, found.total)


def restored(found: messages.Restored) -> RestoreReport:
    """The report of a restore on another host."""
    return RestoreReport(
        name=found.name,
        pid=found.pid,
        processes=found.processes,
        connections=found.connections,
        own_pid_namespace=found.own_pid_namespace,
        restore_seconds=found.restore_seconds,
        away_seconds=found.away_seconds,
        dry_run=found.dry_run,
        findings=found.findings,
    )


@contextlib.contextmanager
def host_at(name: str | None, *, ckpt: str | None = None) -> Iterator[Host]:
    """The host that ``name`` means to `ssh`, for the time of the block; this one without a name."""
    if name is None:
        yield LocalHost()
        return
    with ssh.session(name, ckpt=ckpt) as session:
        yield SshHost(session.channel)


def state(entry: registry.GroupEntry) -> str:
    """``running``, ``exited``, or what a ckpt is doing to it (``dump``)."""
    if not entry.alive:
        return "exited"
    busy = next((work.kind for work in registry.operations() if work.group == entry.name and work.alive), None)
    return busy or "running"


def _name_or_pid(target: str | int | None) -> tuple[str | None, int | None]:
    return (None, target) if isinstance(target, int) else (target, None)
