"""`ckpt migrate`: a group leaves this host and goes on at another one, with its connections.

First the other host is asked, by the group's records alone and while it runs, whether it could go on there. Then the
group is dumped to it (`departure`), restored and held there (`arrival`), committed, taken away here and told to go on
there. Whatever fails before the commit leaves the group running here; from the commit on it is the other host's, and
this side only finds out how it went: it asks again when the connection is lost, restores the image again when the other
side has lost the group before it ran, and says what is known when nothing can be found out. `resume` does the same
later. docs/migration.md has the protocol, its states, and who decides what.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from ckpt import arrival, carrying, live, migrations, sections
from ckpt.carrying import OpenFiles
from ckpt.clean import clean
from ckpt.departure import Departure
from ckpt.dump import DumpReport, dump_group, find_root
from ckpt.errors import (
    CkptError,
    NotFoundError,
    RefusedError,
    RemoteError,
    RestoreError,
    RolledBackError,
    UnknownOutcomeError,
    UsageError,
)
from ckpt.handover import Progress
from ckpt.image import Writer
from ckpt.kernel import criu
from ckpt.mapping import NO_MAPPING, Mapping
from ckpt.migrations import Migration, Role, State, Task
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.finding import Finding, Severity, refuse_blocked
from ckpt.places import IMAGES
from ckpt.records import dataclass
from ckpt.registry import start_time
from ckpt.remote import messages, ssh
from ckpt.remote.host import SshHost
from ckpt.remote.messages import Standing, Stands, Verdict
from ckpt.remote.protocol import Channel, ChannelClosedError, ChannelTimeoutError, DataWriter, failed
from ckpt.witness import witnessed

RESULT_SECONDS = 20.0
"""How long the other side may take from our go to its report."""

RETRY_SECONDS = 30.0
"""How long a connection that was lost after the commit is tried again."""

ANSWER_SECONDS = 60.0
"""How long an agent may take to answer a question for which it has to look about, and perhaps to clean."""

HANG_UP_SECONDS = 1.0

TELL_SECONDS = 15.0
"""How long a connection may take over which a target is told to give up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateReport:
    """A migration that succeeded, or with ``dry_run`` the findings alone. ``away_seconds``: frozen to released."""

    name: str
    host: str
    migration: str = ""
    pid: int = 0
    processes: int = 0
    connections: int = 0
    size: int = 0
    away_seconds: float = 0.0
    dry_run: bool = False
    resumed: bool = False
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateOptions:
    """What the caller asked for; see `ckpt migrate --help`."""

    name: str | None = None
    dry_run: bool = False
    tcp_close: bool = False
    skip_in_flight: bool = False
    codec: str = "zstd"
    downtime_limit: float = 30.0
    mapping: Mapping = NO_MAPPING
    with_files: tuple[Path, ...] = ()
    open_files: OpenFiles = OpenFiles.SMALL
    replace_files: bool = False
    criu: str | None = None
    ckpt: str | None = None


def migrate_group(
    target: str | int, host: str, options: MigrateOptions | None = None, *, progress: Progress | None = None
) -> MigrateReport:
    """Move the group ``target`` to ``host``.

    Raises RefusedError when a check there or here finds what would fail (nothing was touched), RolledBackError when it
    failed (the group runs on here), UnknownOutcomeError when it was committed and the other side cannot be asked.
    """
    options = options or MigrateOptions()
    shown: Progress = progress or (lambda stage, done, total: None)
    # The dump would say so; but a dry run has none, and nobody need be asked before.
    criu.require_lock_skip(criu.find(options.criu))
    entry, root = find_root(target)
    checkpoint = _with_files(live.read_checkpoint(target, options.criu), options)
    with ssh.session(host, ckpt=options.ckpt) as session:
        findings = (*_staying(checkpoint, options), *_preflight(session.channel, checkpoint, options))
        name = options.name or checkpoint.group.name
        if options.dry_run:
            return MigrateReport(name=name, host=host, dry_run=True, findings=findings)
        refuse_blocked(findings, f"{target} cannot go on on {host}")
        record = _prepare(entry.name if entry else name, root, host)
        question = _question(checkpoint, options, migration=record.id, dry_run=False)
        departure = Departure(record, session.channel, question, options.downtime_limit, shown)
        try:
            with witnessed(record.id):
                dumped = _dump(target, record, departure, options, progress)
        except BaseException as error:
            if not departure.committed:
                hint = _rolled_back(departure, session, host, options)
                if isinstance(error, CkptError) and departure.frozen_at:
                    raise _runs_on(name, host, error, hint) from error
                raise
            raise _unknown(departure.record, host, str(error)) from error
        return _MigrateEnd(departure.record, host, options).report(session.channel, departure, dumped)


def _dump(
    target: str | int, record: Migration, departure: Departure, options: MigrateOptions, progress: Progress | None
) -> DumpReport:
    assert record.image is not None
    return dump_group(
        target,
        Path(record.image),
        tcp_close=options.tcp_close,
        skip_in_flight=options.skip_in_flight,
        codec=options.codec,
        with_files=options.with_files,
        open_files=options.open_files,
        criu_path=options.criu,
        handover=departure,
        progress=progress,
    )


def _with_files(checkpoint: Checkpoint, options: MigrateOptions) -> Checkpoint:
    """``checkpoint`` with the files that would travel, as they are now."""
    named = carrying.check_named(options.with_files)
    found = carrying.collect(checkpoint.processes, checkpoint.sockets, checkpoint.criu, named, options.open_files)
    return dataclasses.replace(checkpoint, carried=found.files)


def _prepare(name: str, root: int, host: str) -> Migration:
    """The record of what is about to be done."""
    migration = migrations.new_id()
    record = Migration(
        id=migration,
        role=Role.SOURCE,
        state=State.PREPARED,
        group=name,
        peer=host,
        owner=migrations.ourselves(),
        root=Task(pid=root, start_time=start_time(root) or 0),
        image=str(IMAGES / f"{name}.migration-{migration}.ckpt"),
    )
    migrations.store(record)
    return record


def _preflight(channel: Channel, checkpoint: Checkpoint, options: MigrateOptions) -> tuple[Finding, ...]:
    """What the other side says of the group's records; it touches nothing."""
    channel.send(_question(checkpoint, options, migration=None, dry_run=True))
    with Writer(DataWriter(channel), "none", label="the group's records") as writer:
        sections.write(writer, checkpoint)
        writer.finish()
    channel.end_data()
    return channel.expect(messages.Restored, time.monotonic() + ANSWER_SECONDS).findings


def _staying(checkpoint: Checkpoint, options: MigrateOptions) -> Iterator[Finding]:
    """Addresses of a set that are this host's own: nobody would take them away here, and both would have them."""
    for one in checkpoint.context.places if checkpoint.context is not None else ():
        plain = one.address.partition("/")[0]
        if not one.given and options.mapping.address(ipaddress.ip_address(plain))[1] is None:
            yield Finding(
                severity=Severity.BLOCK,
                code="address-stays",
                subject=plain,
                reason=f"it is this host's own, on {one.ifname}, and would stay here when the group goes",
                remedy=f"`ip address del {one.address} dev {one.ifname}` and let ckpt give it, or --map-address",
            )


def _question(
    checkpoint: Checkpoint, options: MigrateOptions, *, migration: str | None, dry_run: bool
) -> messages.Restore:
    return messages.Restore(
        label=checkpoint.group.name,
        name=options.name,
        dry_run=dry_run,
        tcp_close=options.tcp_close,
        migration=migration,
        arriving=True,
        source=checkpoint.source.hostname,
        patience=options.downtime_limit,
        mapping=options.mapping,
        replace_files=options.replace_files,
    )


# -- the source keeps it -----------------------------------------------------------------------------------------------


def _rolled_back(departure: Departure, session: ssh.Session, host: str, options: MigrateOptions) -> str | None:
    """The group stays here; see that nothing of it stays there, or return what is still to be done about that."""
    departure.roll_back()
    record = departure.record
    if departure.frozen_at and not departure.refused:
        # What listens there is told, as far as it can be; a connection of its own finds out what came of it.
        with contextlib.suppress(CkptError):
            session.channel.send(Verdict(migration=record.id, go=False), time.monotonic() + HANG_UP_SECONDS)
        session.close()
        try:
            with ssh.session(host, ckpt=options.ckpt, seconds=TELL_SECONDS) as session:
                _tell(session.channel, record.id, go=False)
        except CkptError as untold:
            return f"{host} was not told ({untold.brief}): `ckpt migrate --resume {record.id}` when it can be reached"
    migrations.forget(record.id, Role.SOURCE)
    return None


def _runs_on(name: str, host: str, error: CkptError, hint: str | None) -> RolledBackError:
    return RolledBackError(
        f"{name} could not be moved to {host}, and runs on here",
        code=error.code,
        details=str(error),
        hint="; ".join(filter(None, [error.hint, hint])) or "try again",
    )


def _tell(channel: Channel, migration: str, *, go: bool) -> Stands:
    channel.send(Verdict(migration=migration, go=go))
    return channel.expect(Stands, time.monotonic() + ANSWER_SECONDS)


# -- the target has it -------------------------------------------------------------------------------------------------


class _MigrateEnd:
    """What follows from a commit: find out that the group runs there, by whatever way is left."""

    def __init__(self, record: Migration, host: str, options: MigrateOptions) -> None:
        self._record = record
        self._host = host
        self._options = options

    def report(self, channel: Channel, departure: Departure, dumped: DumpReport) -> MigrateReport:
        """Wait for the other side's report; where none comes, ask."""
        released_at = 0.0
        resumed = False
        try:
            deadline = time.monotonic() + RESULT_SECONDS
            while not isinstance(message := channel.receive(deadline), messages.Restored):
                if isinstance(message, messages.Released):
                    released_at = time.monotonic()
                elif isinstance(message, messages.Failure):
                    raise RemoteError(message.brief, code=message.code, details=message.details)
            pid = message.pid
            self._done(channel)
        except CkptError:
            resumed = True
            pid = self.ask()
        return MigrateReport(
            name=self._options.name or dumped.name,
            host=self._host,
            migration=self._record.id,
            pid=pid,
            processes=dumped.processes,
            connections=dumped.connections,
            size=dumped.size,
            away_seconds=(released_at or time.monotonic()) - departure.frozen_at,
            resumed=resumed,
        )

    def ask(self) -> int:
        """Tell the other side to go on, over connections of their own, and see to it that it does; the root's PID."""
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                with ssh.session(self._host, ckpt=self._options.ckpt, seconds=TELL_SECONDS) as session:
                    return self.settle(session.channel)
            except RestoreError:
                raise
            except CkptError as error:
                if time.monotonic() > deadline:
                    raise _unknown(self._record, self._host, str(error)) from error
                time.sleep(1.0)

    def settle(self, channel: Channel) -> int:
        """The same over this connection."""
        stands = _tell(channel, self._record.id, go=True)
        if stands.standing is Standing.GONE:
            stands = self._restore_again(channel)
        if stands.standing is not Standing.RUNNING:
            image = self._record.whole_image
            raise RestoreError(
                f"{self._record.group} has gone on on {self._host}, and does not run there any more",
                code="migration-ended",
                details=f"as it was when it moved, it is in {image}" if image else "there is no image of the move",
                hint=f"`ckpt logs {self._record.group}` there may say why",
            )
        self._done(channel)
        return stands.pid

    def _restore_again(self, channel: Channel) -> Stands:
        """It never ran there, and not here: the image is what there is."""
        image = self._record.whole_image
        if image is None:
            raise RestoreError(
                f"{self._record.group} is lost: {self._host} has lost it, and there is no image of it here",
                code="migration-lost",
            )
        try:
            return self._send_again(channel, image)
        except (ChannelClosedError, ChannelTimeoutError):
            raise
        except CkptError as error:
            migrations.forget(self._record.id, Role.SOURCE)
            raise RestoreError(
                f"{self._record.group} was taken away here, and could not be restored on {self._host}",
                code=error.code,
                details=f"{error}\nthe image {image} has all of it",
                hint=f"`ckpt restore {image}` brings it back here, with --host elsewhere",
            ) from error

    def _send_again(self, channel: Channel, image: Path) -> Stands:
        """As the same migration, so that it can be asked for again should the connection end meanwhile."""
        _forget(channel, self._record.id, Role.TARGET)
        with image.open("rb", buffering=0) as stream:
            SshHost(channel).send_image(self._question(), stream, image.stat().st_size)
        while True:
            message = channel.receive(time.monotonic() + ANSWER_SECONDS)
            if isinstance(message, messages.Ready):
                channel.send(Verdict(migration=self._record.id, go=True))
            elif isinstance(message, messages.Failure):
                raise failed(message, self._host)
            elif isinstance(message, messages.Restored):
                return Stands(standing=Standing.RUNNING, pid=message.pid)

    def _question(self) -> messages.Restore:
        return messages.Restore(
            label=self._record.group,
            name=self._options.name,
            tcp_close=self._options.tcp_close,
            migration=self._record.id,
            source=platform.node(),
            patience=self._options.downtime_limit,
            mapping=self._options.mapping,
            replace_files=self._options.replace_files,
        )

    def _done(self, channel: Channel) -> None:
        """It runs there: the image is of the past now, and nobody has a question left."""
        self._record = migrations.advance(self._record, State.DONE)
        migrations.take_away_image(self._record)
        with contextlib.suppress(CkptError):
            _forget(channel, self._record.id, Role.TARGET)
            migrations.forget(self._record.id, Role.SOURCE)


def _forget(channel: Channel, migration: str, role: Role) -> None:
    channel.send(messages.Forget(migration=migration, role=role))
    channel.expect(messages.Done, time.monotonic() + RESULT_SECONDS)


def _unknown(record: Migration, host: str, why: str) -> UnknownOutcomeError:
    return UnknownOutcomeError(
        f"{record.group} was handed over to {host}, and whether it runs there cannot be told",
        code="migration-unknown-outcome",
        details=f"{why}\nif {host} has lost it, the image {record.image} has all of it; do not restore it before",
        hint=f"`ckpt migrate --resume {record.id}` as soon as {host} can be reached",
    )


# -- later -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeReport:
    """How a migration ended: ``outcome`` in one line, ``runs`` where the group runs now, if it does."""

    migration: str
    group: str
    outcome: str
    runs: str | None


def resume(
    migration: str | None, *, host: str | None = None, source_lost: bool = False, options: MigrateOptions | None = None
) -> ResumeReport:
    """Bring a migration to its end, on either side; without an id the only one that there is.

    ``host`` is the other side, which the source remembers. ``source_lost`` is the user's word, on a target, that no
    source will ever answer. Raises what is said of a host that cannot be reached, UnknownOutcomeError.
    """
    options = options or MigrateOptions()
    record = migrations.get(migration) if migration else _only_one()
    if record.role is Role.SOURCE:
        return _resume_source(record, host or record.peer, options)
    return _resume_target(record, host, source_lost, options)


def _only_one() -> Migration:
    found = migrations.migrations()
    if not found:
        raise NotFoundError("no migration waits for anything", code="migration-unknown")
    if len(found) > 1:
        names = ", ".join(f"{one.id} ({one.group})" for one in found)
        raise UsageError("several migrations wait", code="usage", details=names, hint="name one: --resume ID")
    return found[0]


def _resume_source(record: Migration, host: str, options: MigrateOptions) -> ResumeReport:
    if record.under_way:
        raise RefusedError(
            f"the migration {record.id} is under way",
            code="migration-under-way",
            details=f"the ckpt with PID {record.owner.pid} works on it",
            hint="wait until that is done",
        )
    # What a dead ckpt has left goes first, and with it, after a commit, what still runs of the group.
    clean()
    if record.group_lives and record.state is State.PREPARED:
        migrations.decide(record.id, holds=False)
    with ssh.session(host, ckpt=options.ckpt) as session:
        channel = session.channel
        if record.state is State.DONE:
            _forget(channel, record.id, Role.TARGET)
            migrations.forget(record.id, Role.SOURCE)
            return ResumeReport(
                migration=record.id, group=record.group, outcome=f"{record.group} has moved to {host}", runs=host
            )
        channel.send(messages.Inquire(migration=record.id))
        # One that runs there was let go by its user's word alone (`source_lost`), which holds if nothing runs here.
        holds = channel.expect(Stands, time.monotonic() + ANSWER_SECONDS).standing is not Standing.GONE
        go, record = migrations.decide(record.id, holds=holds)
        if not go:
            if _tell(channel, record.id, go=False).standing is Standing.RUNNING:
                raise UnknownOutcomeError(
                    f"{record.group} runs here and on {host}",
                    code="migration-doubled",
                    details=f"on {host} it was let go with --source-lost, and the source was not",
                    hint=f"`ckpt stop {record.group}` on the host that shall not have it",
                )
            migrations.forget(record.id, Role.SOURCE)
            return _kept(record)
        pid = _MigrateEnd(record, host, options).settle(channel)
    outcome = f"{record.group} runs on {host} as PID {pid}"
    return ResumeReport(migration=record.id, group=record.group, outcome=outcome, runs=host)


def _kept(record: Migration) -> ResumeReport:
    """It was never committed: it runs here, or its image is here, or both are lost with what they lived on."""
    image = record.whole_image
    runs = None
    if record.group_lives:
        outcome, runs = f"{record.group} runs on here as if nothing had been", "here"
        if image is not None:
            image.unlink()
    elif image is not None:
        outcome = f"{record.group} runs nowhere; {image} has it as it was when it was to move: `ckpt restore {image}`"
    else:
        outcome = f"{record.group} ended here before it was handed over; there is no image of it"
    return ResumeReport(migration=record.id, group=record.group, outcome=outcome, runs=runs)


def _resume_target(record: Migration, host: str | None, source_lost: bool, options: MigrateOptions) -> ResumeReport:
    stands = arrival.standing(record.id)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(ssh.session(host, ckpt=options.ckpt)).channel if host is not None else None
        if stands.standing is Standing.HOLDING:
            go = source_lost or _ask(record, source)
            stands = arrival.tell(Verdict(migration=record.id, go=go))
        if stands.standing is Standing.GONE:
            migrations.forget(record.id, Role.TARGET)
        elif source is not None:
            # Only when the source has no question left: its answer to GONE would be to restore its image.
            _forget(source, record.id, Role.SOURCE)
            migrations.forget(record.id, Role.TARGET)
    outcomes = {
        Standing.RUNNING: f"{record.group} runs here as PID {stands.pid}",
        Standing.GONE: f"{record.group} is not here; {record.peer} has it, or its image",
        Standing.ENDED: f"{record.group} ran here, and does not any more",
        Standing.HOLDING: f"{record.group} is still held here",
    }
    return ResumeReport(
        migration=record.id,
        group=record.group,
        outcome=outcomes[stands.standing],
        runs="here" if stands.standing is Standing.RUNNING else None,
    )


def _ask(record: Migration, source: Channel | None) -> bool:
    """What the source's record says, or comes to say."""
    if source is None:
        raise UsageError(
            f"only the source ({record.peer}) can say what shall become of {record.group}",
            code="usage",
            hint=f"`ckpt migrate --resume {record.id}` there; or here with --host to ask it, or --source-lost",
        )
    source.send(messages.Decide(migration=record.id, holds=True))
    return source.expect(Verdict, time.monotonic() + ANSWER_SECONDS).go
