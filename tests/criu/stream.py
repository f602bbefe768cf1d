"""A client of ``programs/stream_server.py`` that verifies every byte of both directions.

It works in a thread from its making to its end, writing and reading all the time, also while the server is away. The
first thing that is not as it should be (a record out of order, a reset, an end of stream) ends it and is raised by
whatever is asked of it next.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.criu.programs.stream_server import RECORD, counters

PATIENCE = 60.0
CHUNK = 1024
PAUSE = 0.003


def retransmits(connection: socket.socket) -> int:
    """How often the oldest unacknowledged segment was sent again: tcpi_retransmits of struct tcp_info."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 3)[2]


class Stream:
    """One connection. ``reading`` and ``writing`` can be turned off and on at any time."""

    def __init__(self, connection: socket.socket, *, reading: bool = True, writing: bool = True) -> None:
        self.socket = connection
        self.reading = reading
        self.writing = writing
        self.sent = 0
        self.records = 0
        self.verified_by_server = 0
        self.ended = False
        self.longest_gap = 0.0
        self._end_expected = False
        self._rest = b""
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        connection.setblocking(False)
        self._thread = threading.Thread(target=self._guarded, name="stream", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.socket.close()

    def progress(self, records: int = 300) -> None:
        """Wait until so many more records came and as many more bytes were verified by the server."""
        wanted_records, wanted_bytes = self.records + records, self.verified_by_server + records
        self.until(
            lambda: self.records >= wanted_records and (self.verified_by_server >= wanted_bytes or not self.writing),
            "records and bytes pass",
        )

    def finish(self) -> None:
        """Stop writing and wait until the server has verified every byte that was sent."""
        self.writing = False
        self.until(lambda: self.verified_by_server == self.sent, "the server has verified every byte")

    def finish_writing(self) -> None:
        """Write no more, and tell the server so: a half-closed connection."""
        self.writing = False
        self.until(lambda: not self._busy, "the last write is done")
        self.socket.shutdown(socket.SHUT_WR)

    def expect_end(self, records: int) -> None:
        """Wait until the server ends its stream, after exactly so many records."""
        self._end_expected = True
        self.until(lambda: self.ended, "the stream ends")
        assert (self.records, self._rest) == (records, b"")

    def until_stuck_writing(self) -> None:
        """Wait until nothing more can be written: the queues are full."""
        before = -1
        while before != (before := self.sent):
            self.check()
            time.sleep(0.5)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until ``condition()``, or raise what went wrong."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.check()
            assert time.monotonic() < deadline, f"waited in vain until {what}: {self}"
            time.sleep(0.01)
        self.check()

    def check(self) -> None:
        """Raise what has gone wrong so far."""
        if self._failure is not None:
            raise AssertionError(f"{self}: {self._failure!r}") from self._failure

    def __str__(self) -> str:
        return (
            f"stream with {self.records} records received, {self.sent} bytes sent,"
            f" {self.verified_by_server} verified by the server"
        )

    # -- in the thread -------------------------------------------------------------------------------------------

    def _guarded(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._failure = error

    def _work(self) -> None:
        last = time.monotonic()
        self._busy = False
        while not self._stop.is_set():
            reading = [self.socket] if self.reading and not self.ended else []
            self._busy = writing = self.writing
            ready, writable, _ = select.select(reading, [self.socket] if writing else [], [], 0.05)
            if writable:
                with contextlib.suppress(BlockingIOError):
                    self.sent += self.socket.send(counters(self.sent, CHUNK))
            self._busy = False
            if ready:
                self._receive()
                now = time.monotonic()
                self.longest_gap = max(self.longest_gap, now - last)
                last = now
            if writing:
                time.sleep(PAUSE)

    def _receive(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            if not self._end_expected:
                raise ConnectionError("the server ended its stream")
            self.ended = True
        data = self._rest + data
        whole = len(data) - len(data) % RECORD.size
        self._rest = data[whole:]
        for number, verified in RECORD.iter_unpack(data[:whole]):
            if number != self.records:
                raise ValueError(f"record {number} came where {self.records} should")
            if not self.verified_by_server <= verified <= self.sent:
                raise ValueError(f"the server has verified {verified} bytes of {self.sent}")
            self.verified_by_server = verified
            self.records += 1
