"""`ckpt agent`: one session of one near side, on two descriptors.

It answers the questions that `messages` names, one after the other, and no others: there is no way to run a command or
to read a file by it, but for the image that a restore is asked to keep. It ends with its input. A question that fails
is answered with `Failure`; what is a bug of ckpt is told as one, and ends the session.
"""

from __future__ import annotations

import contextlib
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckpt import arrival, migrations
from ckpt.errors import CkptError, NotFoundError
from ckpt.handover import Arrival
from ckpt.migrations import Role, State
from ckpt.remote import messages
from ckpt.remote.host import LocalHost
from ckpt.remote.protocol import Channel, ChannelClosedError, DataReader, DataWriter, EndOfData

GREETING_SECONDS = 60.0

STORE_SECONDS = 60.0
"""How long a near side that stores a dump may say nothing: the group stands still meanwhile."""

PROGRESS_SECONDS = 0.2


def serve(incoming: int, outgoing: int) -> None:
    """Serve one session; returns when the near side has gone."""
    channel = Channel(incoming, outgoing, "the near side")
    channel.offer(platform.node(), time.monotonic() + GREETING_SECONDS)
    agent = _Agent(channel)
    while True:
        try:
            question = channel.receive()
        except ChannelClosedError:
            return
        try:
            channel.send(agent.answer(question))
        except ChannelClosedError:
            return
        except CkptError as error:
            channel.send(
                messages.Failure(
                    brief=error.brief, code=error.code, details=error.details, hint=error.hint, status=error.status
                )
            )
        except Exception as error:
            told = traceback.format_exception_only(error)[-1].strip()
            channel.send(messages.Failure(brief="the agent failed", code="bug", details=told, hint=None, status=1))
            raise


class _Preflight(Arrival):
    """A look at what will arrive; it never does in this restore."""

    moves = True


class _Agent:
    """Answers questions that came by ``channel``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._host = LocalHost()
        self._told = 0.0

    def answer(self, question: object) -> messages.Message:
        """The result of a question; raises CkptError."""
        methods: dict[type[object], Callable[[Any], messages.Message]] = {
            messages.Ps: self._ps,
            messages.Clean: self._clean,
            messages.Check: self._check,
            messages.Dump: self._dump,
            messages.Restore: self._restore,
            messages.Inquire: lambda asked: arrival.standing(asked.migration),
            messages.Verdict: arrival.tell,
            messages.Decide: self._decide,
            messages.Forget: self._forget,
        }
        method = methods.get(type(question))
        if method is None:
            raise NotFoundError(f"the agent knows no question {type(question).__name__}", code="protocol-malformed")
        return method(question)

    def _ps(self, _: messages.Ps) -> messages.Groups:
        return messages.Groups(groups=self._host.ps())

    def _clean(self, asked: messages.Clean) -> messages.Cleaned:
        return messages.Cleaned(actions=self._host.clean(dry_run=asked.dry_run))

    def _check(self, asked: messages.Check) -> messages.Findings:
        return messages.Findings(findings=self._host.check(asked.name or asked.pid, criu=asked.criu))

    def _dump(self, asked: messages.Dump) -> messages.Dumped:
        from ckpt.carrying import OpenFiles
        from ckpt.dump import dump_stream

        target = asked.name if asked.name is not None else asked.pid or 0
        report = dump_stream(
            target,
            lambda: _stored(self._channel),
            leave_running=asked.leave_running,
            tcp_close=asked.tcp_close,
            skip_in_flight=asked.skip_in_flight,
            codec=asked.codec,
            with_files=tuple(map(Path, asked.with_files)),
            open_files=OpenFiles(asked.open_files),
            max_freeze=asked.max_freeze,
            criu_path=asked.criu,
            progress=self._progress,
        )
        return messages.Dumped(
            name=report.name,
            image_id=report.image_id,
            size=report.size,
            raw_size=report.raw_size,
            frozen_seconds=report.frozen_seconds,
            processes=report.processes,
            connections=report.connections,
            left_running=report.left_running,
            warnings=report.warnings,
        )

    def _restore(self, asked: messages.Restore) -> messages.Restored:
        from ckpt.restore import restore_stream

        stream = DataReader(self._channel, asked.patience)
        held = None
        try:
            if asked.migration is not None:
                name = asked.name or asked.label
                held = arrival.HeldArrival(asked.migration, name, asked.source, self._channel)
            report = restore_stream(
                stream,
                asked.label,
                name=asked.name,
                dry_run=asked.dry_run,
                tcp_close=asked.tcp_close,
                mapping=asked.mapping,
                replace_files=asked.replace_files,
                pages=asked.pages,
                keep=Path(asked.keep) if asked.keep else None,
                criu_path=asked.criu,
                arrival=held or (_Preflight() if asked.arriving else None),
                progress=self._progress,
            )
        except BaseException:
            if held is not None:
                held.given_up()
            raise
        finally:
            # What was sent meanwhile is in the way of the next question.
            with contextlib.suppress(CkptError):
                stream.drain()
        return messages.Restored(
            name=report.name,
            pid=report.pid,
            processes=report.processes,
            connections=report.connections,
            own_pid_namespace=report.own_pid_namespace,
            restore_seconds=report.restore_seconds,
            away_seconds=report.away_seconds,
            dry_run=report.dry_run,
            findings=report.findings,
        )

    def _decide(self, asked: messages.Decide) -> messages.Verdict:
        from ckpt.clean import clean

        go, record = migrations.decide(asked.migration, holds=asked.holds)
        if go and not record.under_way:
            # Its ckpt may have died before it had taken the group away.
            clean()
        return messages.Verdict(migration=asked.migration, go=go)

    def _forget(self, asked: messages.Forget) -> messages.Done:
        role = Role.SOURCE if asked.role == Role.SOURCE else Role.TARGET
        record = migrations.find(asked.migration, role)
        if record is not None and role is Role.SOURCE and record.state is not State.ROLLED_BACK:
            migrations.take_away_image(record)
        migrations.forget(asked.migration, role)
        return messages.Done()

    def _progress(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._told > PROGRESS_SECONDS or done == total:
            self._told = now
            self._channel.send(messages.Progress(stage=stage, done=done, total=total))


@contextlib.contextmanager
def _stored(channel: Channel) -> Any:
    """Where a dump is written: to the near side, which says when it has it in safety."""
    yield DataWriter(channel, patience=STORE_SECONDS)
    channel.end_data(time.monotonic() + STORE_SECONDS)
    answer = channel.receive(time.monotonic() + STORE_SECONDS)
    if not isinstance(answer, messages.Stored) or isinstance(answer, EndOfData):
        raise NotFoundError("the near side has not stored the image", code="protocol-malformed")
