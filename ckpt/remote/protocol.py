"""The channel between two ckpts: messages and bulk data over two descriptors, each way in order.

What comes out of the agent begins with a marker; whatever stands before it was said by the login shell there and is
skipped (and shown when no marker comes). Then frames follow: one byte of kind, four of length, and a message as
msgpack, or a piece of bulk data, or the end of the bulk data. A length is held against its kind's limit before
anything is allocated. While one side writes it also takes in what the other says, so two sides that write at once
never wait for each other. Every wait has an end: the deadline that is asked for, or the end of the stream.

The channel knows nothing of ssh, and of the messages only that they are records.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

from ckpt import __version__
from ckpt.errors import ImageError, RemoteError
from ckpt.image import schema, wire
from ckpt.image.defect import Place
from ckpt.remote import messages
from ckpt.remote.messages import PROTOCOL, Hello, Message

MARKER = b"\0ckpt-agent\0"
"""What the agent says first: NUL is nothing that a login shell prints."""

MAX_NOISE = 64 * 1024
"""What a login shell may print before the marker."""

MAX_MESSAGE = 16 * 1024 * 1024
MAX_DATA = 256 * 1024

_HEAD = struct.Struct(">BI")
_MESSAGE, _DATA, _END = 1, 2, 3
_LIMITS = {_MESSAGE: MAX_MESSAGE, _DATA: MAX_DATA, _END: 0}
_PIPE = 1024 * 1024  # what a pipe may hold at most where nobody has set another limit (fs.pipe-max-size)
_QUEUED = 4 * 1024 * 1024  # bytes that are taken in beyond what is asked for, before the other side has to wait

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Message)}

_M = TypeVar("_M")


class ChannelClosedError(RemoteError):
    """The other side has gone."""


class ChannelTimeoutError(RemoteError):
    """The other side did not answer in time."""


class Data(bytes):
    """A piece of bulk data as it came in."""


class EndOfData:
    """The bulk data ends here."""


class Channel:
    """Frames over ``incoming`` and ``outgoing``, which become non-blocking. ``label`` names the other side.

    Deadlines are moments of `time.monotonic`; None waits as long as the other side is there.
    """

    def __init__(self, incoming: int, outgoing: int, label: str) -> None:
        self.label = label
        self._in = incoming
        self._out = outgoing
        self._place = Place(label)
        self._buffer = bytearray()
        self._frames: deque[tuple[int, bytes]] = deque()
        self._queued = 0
        self._ended = False
        for descriptor in (incoming, outgoing):
            os.set_blocking(descriptor, False)
            # What is no pipe has room of its own. The usual 64 KiB make both ends wait for each other all the time.
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)

    @property
    def ended(self) -> bool:
        """Whether the other side is known to be gone; what it has said before may still be received."""
        return self._ended

    # -- the beginning -------------------------------------------------------------------------------------------

    def offer(self, host: str, deadline: float | None = None) -> Hello:
        """As the agent: say the marker and hello, and take the other's."""
        self._write(MARKER, deadline)
        self.send(Hello(protocol=PROTOCOL, ckpt=__version__, host=host), deadline)
        return self._hello(deadline)

    def greet(self, deadline: float | None = None) -> Hello:
        """As the near side: skip noise up to the marker, say hello and take the agent's.

        Raises RemoteError (``agent-silent``, ``agent-older``, ``agent-newer``).
        """
        self._skip_noise(deadline)
        self.send(Hello(protocol=PROTOCOL, ckpt=__version__), deadline)
        return self._hello(deadline)

    def _skip_noise(self, deadline: float | None) -> None:
        while (start := self._buffer.find(MARKER)) < 0:
            if len(self._buffer) > MAX_NOISE or self._ended:
                noise = bytes(self._buffer[:200]).decode(errors="replace").strip()
                raise RemoteError(
                    f"what answers on {self.label} is no ckpt agent",
                    code="agent-silent",
                    details=f"it said: {noise}" if noise else "it said nothing",
                    hint="a login shell must not print when it is not interactive: look at ~/.bashrc there",
                )
            self._transfer(b"", deadline, parse=False)
        del self._buffer[: start + len(MARKER)]
        self._parse()

    def _hello(self, deadline: float | None) -> Hello:
        kind, payload = self._next(deadline)
        # Read field by field: what another version has beside them is not known here.
        try:
            body = dict(wire.unpack(payload, self._place)["body"])  # type: ignore[index]
            found = Hello(protocol=int(body["protocol"]), ckpt=str(body["ckpt"]), host=str(body.get("host", "")))
        except (ImageError, KeyError, TypeError, ValueError) as error:
            raise self._malformed("it does not begin with hello") from error
        if kind != _MESSAGE:
            raise self._malformed("it does not begin with hello")
        if found.protocol != PROTOCOL:
            older = found.protocol < PROTOCOL
            raise RemoteError(
                f"the ckpt on {self.label} is {'older' if older else 'newer'} than this one",
                code="agent-older" if older else "agent-newer",
                details=f"it is {found.ckpt} with protocol {found.protocol}; this is {__version__} with {PROTOCOL}",
                hint=f"install the newer of the two {'there' if older else 'here'}",
            )
        return found

    # -- messages ------------------------------------------------------------------------------------------------

    def send(self, message: Message, deadline: float | None = None) -> None:
        """Send a message; ChannelClosedError, ChannelTimeoutError."""
        payload = wire.pack({"kind": type(message).__name__, "body": schema.encode(message)})
        self._write(_HEAD.pack(_MESSAGE, len(payload)) + payload, deadline)

    def receive(self, deadline: float | None = None) -> Message | Data | EndOfData:
        """What comes next."""
        kind, payload = self._next(deadline)
        if kind == _DATA:
            return Data(payload)
        if kind == _END:
            return EndOfData()
        return self._decode(payload)

    def expect(self, kind: type[_M], deadline: float | None = None) -> _M:
        """The next message, which has to be a ``kind``. A `Failure` is raised as the error that it tells of."""
        found = self.receive(deadline)
        if isinstance(found, messages.Failure):
            raise failed(found, self.label)
        if not isinstance(found, kind):
            raise self._malformed(f"{type(found).__name__} came where {kind.__name__} should")
        return found

    def pending(self) -> bool:
        """Whether something was said that was not received yet, or the other side has gone."""
        if not self._frames and not self._ended:
            with contextlib.suppress(ChannelTimeoutError):
                self._transfer(b"", time.monotonic())
        return bool(self._frames) or self._ended

    def skip(self, kind: type[Message]) -> bool:
        """Pass over the next message if it is there and is a ``kind``; whether it was."""
        if not self._frames or self._frames[0][0] != _MESSAGE:
            return False
        if not isinstance(self._decode(self._frames[0][1]), kind):
            return False
        self.receive()
        return True

    def wait(self, seconds: float) -> bool:
        """Wait until something was said, or the other side has gone; False when nothing came meanwhile."""
        deadline = time.monotonic() + seconds
        while not self._frames and not self._ended:
            try:
                self._transfer(b"", deadline)
            except ChannelTimeoutError:
                return False
        return True

    # -- bulk data -----------------------------------------------------------------------------------------------

    def send_data(self, data: bytes | memoryview, deadline: float | None = None) -> None:
        """Send ``data``, in pieces."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), MAX_DATA):
            piece = view[start : start + MAX_DATA]
            self._write(_HEAD.pack(_DATA, len(piece)) + piece, deadline)

    def end_data(self, deadline: float | None = None) -> None:
        """Say that this was all of it."""
        self._write(_HEAD.pack(_END, 0), deadline)

    def drain(self, deadline: float | None = None) -> None:
        """Pass over what is left of the other side's data."""
        while not isinstance(self.receive(deadline), EndOfData):
            pass

    # -- underneath ----------------------------------------------------------------------------------------------

    def _decode(self, payload: bytes) -> Message:
        try:
            value = wire.unpack(payload, self._place)
            kind = _KINDS[value["kind"]]  # type: ignore[index]
            message: Message = schema.decode(kind, value["body"], kind.__name__, self._place)  # type: ignore[index]
        except ImageError as error:
            raise self._malformed(error.details or error.brief) from error
        except (KeyError, TypeError) as error:
            raise self._malformed("a message of no known kind") from error
        return message

    def _next(self, deadline: float | None) -> tuple[int, bytes]:
        while not self._frames:
            if self._ended:
                raise ChannelClosedError(f"the connection to {self.label} has ended", code="connection-lost")
            self._transfer(b"", deadline)
        kind, payload = self._frames.popleft()
        self._queued -= len(payload)
        return kind, payload

    def _write(self, data: bytes | bytearray, deadline: float | None) -> None:
        left = memoryview(data)
        while left:
            left = left[self._transfer(left, deadline) :]

    def _transfer(self, data: bytes | memoryview, deadline: float | None, *, parse: bool = True) -> int:
        """Wait until something can be read or, with ``data``, written; how much was written."""
        poll = select.poll()
        if not self._ended and self._queued < _QUEUED:
            poll.register(self._in, select.POLLIN)
        if data:
            poll.register(self._out, select.POLLOUT)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if self._ended:
            # Who says nothing more takes nothing more either, once the pipe is full.
            left = 0.0
        ready = {descriptor for descriptor, _ in poll.poll(None if left is None else left * 1000)}
        if not ready and self._ended:
            raise ChannelClosedError(f"the connection to {self.label} has ended", code="connection-lost")
        if not ready:
            raise ChannelTimeoutError(f"{self.label} did not answer in time", code="host-timeout")
        if self._in in ready:
            self._read(parse)
        if not data or self._out not in ready:
            return 0
        try:
            return os.write(self._out, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ChannelClosedError(
                f"the connection to {self.label} has ended", code="connection-lost", details=error.strerror
            ) from error

    def _read(self, parse: bool) -> None:
        try:
            data = os.read(self._in, MAX_DATA)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._ended = not data
        self._buffer += data
        if parse:
            self._parse()

    def _parse(self) -> None:
        while len(self._buffer) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._buffer)
            if kind not in _LIMITS or length > _LIMITS[kind]:
                raise self._malformed(f"a frame of kind {kind} with {length} bytes")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view:
                self._frames.append((kind, bytes(view[_HEAD.size : end])))
            self._queued += length
            del self._buffer[:end]

    def _malformed(self, details: str) -> RemoteError:
        return RemoteError(
            f"{self.label} does not keep to the protocol", code="protocol-malformed", details=details, hint=_REPORT
        )


_REPORT = "does something between the two hosts change what passes? `ssh HOST true` should print nothing"


class DataReader:
    """The other side's bulk data as a readable stream, for an image's reader. Every read may last ``patience``."""

    def __init__(self, channel: Channel, patience: float | None) -> None:
        self._channel = channel
        self._patience = patience
        self._left = memoryview(b"")
        self.ended = False
        self.position = 0

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill ``buffer`` or a part of it; 0 at the end. Raises RemoteError when the other side has gone."""
        while not self._left and not self.ended:
            found = self._channel.receive(None if self._patience is None else time.monotonic() + self._patience)
            if isinstance(found, EndOfData):
                self.ended = True
            elif isinstance(found, Data):
                self._left = memoryview(found)
            else:
                raise RemoteError(
                    f"{self._channel.label} does not keep to the protocol",
                    code="protocol-malformed",
                    details=f"{type(found).__name__} amid bulk data",
                )
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        self.position += count
        return count

    def drain(self) -> None:
        """Pass over the rest, so that the next message can be received."""
        self._left = memoryview(b"")
        if not self.ended:
            self._channel.drain(None if self._patience is None else time.monotonic() + self._patience)
            self.ended = True


class DataWriter:
    """Bulk data for the other side as a writable stream, for an image's writer.

    All of it may last to ``deadline``, or each write as long as ``patience``.
    """

    def __init__(self, channel: Channel, deadline: float | None = None, *, patience: float | None = None) -> None:
        self._channel = channel
        self._deadline = deadline
        self._patience = patience

    def write(self, data: bytes | memoryview, /) -> int:
        """All of ``data``."""
        deadline = self._deadline if self._patience is None else time.monotonic() + self._patience
        self._channel.send_data(data, deadline)
        return len(data)


def failed(failure: messages.Failure, label: str) -> Exception:
    """The error that ``failure`` tells of, as the class that it was on the other side."""
    kind = next((one for one in _error_classes() if one.status == failure.status), RemoteError)
    details = "\n".join(filter(None, [f"on {label}", failure.details]))
    return kind(failure.brief, code=failure.code, details=details, hint=failure.hint)


def _error_classes() -> Iterator[type[Any]]:
    from ckpt import errors

    return (one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.CkptError))
