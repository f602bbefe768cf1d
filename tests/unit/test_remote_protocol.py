"""The channel between two ckpts, over pipes: what passes, what is refused, and that no wait is without an end."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ckpt.errors import NotFoundError, RemoteError
from ckpt.image import wire
from ckpt.mapping import Mapping, PortMap
from ckpt.model.finding import Finding, Severity
from ckpt.registry import GroupEntry
from ckpt.remote import messages
from ckpt.remote.protocol import (
    MARKER,
    MAX_DATA,
    Channel,
    ChannelClosedError,
    ChannelTimeoutError,
    Data,
    DataReader,
    DataWriter,
    EndOfData,
    failed,
)

SOON = 20.0


class Pipes:
    """Two channels that are joined."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        there, self._to = os.pipe()
        self._from, here = os.pipe()
        self.open = {there, self._to, self._from, here}
        self.near = Channel(self._from, self._to, "B")
        self.far = Channel(there, here, "the near side")
        self.far_out = here
        stack.callback(self._close)

    def _close(self) -> None:
        for one in self.open:
            os.close(one)

    def end_far(self) -> None:
        """The other side goes away."""
        for one in (self.far_out, self.far._in):
            os.close(one)
            self.open.remove(one)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    with ExitStack() as stack:
        yield Pipes(stack)


def soon() -> float:
    return time.monotonic() + SOON


ENTRY = GroupEntry(name="web", pid=7, start_time=9, isolation="netns", links=("a", "b"), addresses=("10.0.0.1/24",))
MAPPING = Mapping(ports=(PortMap(old=1, new=2),))
FINDING = Finding(severity=Severity.BLOCK, code="x-y", subject="s", reason="r", remedy="do")


@pytest.mark.parametrize(
    "message",
    [
        messages.Ps(),
        messages.Groups(groups=(messages.GroupStatus(entry=ENTRY, state="running"),)),
        messages.Findings(findings=(FINDING,)),
        messages.Restore(
            label="x.ckpt", name=None, pages=1 << 40, migration="ab", mapping=Mapping(ports=(PortMap(old=1, new=2),))
        ),
        messages.Stands(standing=messages.Standing.HOLDING, pid=4),
        messages.Failure(brief="b", code="c", details=None, hint="h", status=4),
    ],
    ids=lambda message: type(message).__name__,
)
def test_send_message_is_received_equal(pipes: Pipes, message: messages.Message) -> None:
    pipes.near.send(message, soon())
    assert pipes.far.receive(soon()) == message


def test_greet_skips_what_a_login_shell_printed(pipes: Pipes) -> None:
    os.write(pipes.far_out, b"Welcome to B!\r\nYou have mail.\n$ ")
    offered = threading.Thread(target=pipes.far.offer, args=("b", soon()))
    offered.start()
    assert pipes.near.greet(soon()).host == "b"
    offered.join()


@pytest.mark.parametrize("noise", [b"This account is not available.\n", b"x" * 100_000], ids=["short", "long"])
def test_greet_without_marker_says_what_was_printed(pipes: Pipes, noise: bytes) -> None:
    def print_and_end() -> None:
        os.write(pipes.far_out, noise)
        pipes.end_far()

    writer = threading.Thread(target=print_and_end)
    writer.start()
    with pytest.raises(RemoteError) as caught:
        pipes.near.greet(soon())
    writer.join()
    assert caught.value.code == "agent-silent"
    assert noise[:20].decode().strip() in (caught.value.details or "")


@pytest.mark.parametrize(("version", "code"), [(0, "agent-older"), (99, "agent-newer")])
def test_greet_other_protocol_is_refused_with_a_remedy(pipes: Pipes, version: int, code: str) -> None:
    payload = wire.pack({"kind": "Hello", "body": {"protocol": version, "ckpt": "9.9", "more": 1}})
    os.write(pipes.far_out, MARKER + struct.pack(">BI", 1, len(payload)) + payload)
    with pytest.raises(RemoteError) as caught:
        pipes.near.greet(soon())
    assert caught.value.code == code
    assert "9.9" in (caught.value.details or "")


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">BI", 1, 1 << 31),
        struct.pack(">BI", 2, MAX_DATA + 1),
        struct.pack(">BI", 9, 0),
        struct.pack(">BI", 1, 3) + b"\xc1\xc1\xc1",
        struct.pack(">BI", 1, 1) + b"\x80",
        b"\x01\x00\x00\x00\x07" + wire.pack({"a": [1]}) + b"\x00\x00",
    ],
    ids=["huge message", "huge data", "no kind", "no msgpack", "no fields", "other fields"],
)
def test_receive_what_is_no_message_is_refused(pipes: Pipes, frame: bytes) -> None:
    os.write(pipes.far_out, frame)
    with pytest.raises(RemoteError) as caught:
        pipes.near.receive(soon())
    assert caught.value.code == "protocol-malformed"


def test_receive_field_of_wrong_type_is_named(pipes: Pipes) -> None:
    payload = wire.pack({"kind": "Ready", "body": {"pid": "7"}})
    os.write(pipes.far_out, struct.pack(">BI", 1, len(payload)) + payload)
    with pytest.raises(RemoteError) as caught:
        pipes.near.receive(soon())
    assert "Ready.pid: expected int, got str" in (caught.value.details or "")


def test_receive_from_a_side_that_has_gone_ends(pipes: Pipes) -> None:
    pipes.far.send(messages.Done(), soon())
    pipes.end_far()
    assert pipes.near.receive(soon()) == messages.Done()
    with pytest.raises(ChannelClosedError):
        pipes.near.receive(soon())


def test_receive_from_a_silent_side_ends_at_the_deadline(pipes: Pipes) -> None:
    with pytest.raises(ChannelTimeoutError):
        pipes.near.receive(time.monotonic() + 0.05)


def test_send_data_that_nobody_reads_ends_at_the_deadline(pipes: Pipes) -> None:
    with pytest.raises(ChannelTimeoutError):
        pipes.near.send_data(bytes(1 << 24), time.monotonic() + 0.05)


def test_send_to_a_side_that_has_gone_is_told(pipes: Pipes) -> None:
    pipes.end_far()
    with pytest.raises(ChannelClosedError):
        pipes.near.send_data(bytes(1 << 24), soon())


def test_send_both_sides_at_once_do_not_wait_for_each_other(pipes: Pipes) -> None:
    data = os.urandom(1 << 20)

    def work(channel: Channel, got: list[bytes]) -> None:
        channel.send_data(data, soon())
        channel.end_data(soon())
        while isinstance(piece := channel.receive(soon()), Data):
            got.append(piece)

    here: list[bytes] = []
    there: list[bytes] = []
    far = threading.Thread(target=work, args=(pipes.far, there))
    far.start()
    work(pipes.near, here)
    far.join()
    assert b"".join(here) == b"".join(there) == data


def test_data_reader_reads_what_data_writer_wrote(pipes: Pipes) -> None:
    data = os.urandom(600_000)

    def write() -> None:
        DataWriter(pipes.near, soon()).write(data)
        pipes.near.end_data(soon())
        pipes.near.send(messages.Done(), soon())

    writer = threading.Thread(target=write)
    writer.start()
    reader = DataReader(pipes.far, SOON)
    got = bytearray()
    buffer = bytearray(10_000)
    while count := reader.readinto(memoryview(buffer)):
        got += buffer[:count]
    writer.join()
    assert bytes(got) == data
    assert pipes.far.receive(soon()) == messages.Done()


def test_drain_leaves_what_comes_after_the_data(pipes: Pipes) -> None:
    pipes.near.send_data(b"abc", soon())
    pipes.near.end_data(soon())
    pipes.near.send(messages.Done(), soon())
    reader = DataReader(pipes.far, SOON)
    reader.readinto(memoryview(bytearray(1)))
    reader.drain()
    assert pipes.far.receive(soon()) == messages.Done()


def test_expect_failure_is_raised_as_it_was(pipes: Pipes) -> None:
    pipes.far.send(
        messages.Failure(brief="no group is named x", code="group-unknown", details="d", hint="h", status=4), soon()
    )
    with pytest.raises(NotFoundError) as caught:
        pipes.near.expect(messages.Done, soon())
    assert (caught.value.code, caught.value.hint, caught.value.details) == ("group-unknown", "h", "on B\nd")


def test_expect_other_message_is_refused(pipes: Pipes) -> None:
    pipes.far.end_data(soon())
    with pytest.raises(RemoteError, match="EndOfData came where Done should"):
        pipes.near.expect(messages.Done, soon())


def test_receive_end_of_data_is_told(pipes: Pipes) -> None:
    pipes.near.end_data(soon())
    assert isinstance(pipes.far.receive(soon()), EndOfData)


def test_failed_of_unknown_status_is_a_remote_error() -> None:
    error = failed(messages.Failure(brief="b", code="c", details=None, hint=None, status=99), "B")
    assert isinstance(error, RemoteError)
