"""The longest that a dump may have its group stand still: then it goes on, and there is no image.

An alarm interrupts whatever the dump is at, as ^C would, and as by that all is undone: also a write that a slow disk or
a reader who has stopped keeps waiting. At the point of no return the clock ends.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

from ckpt.errors import RolledBackError


class _TimeIsUpError(KeyboardInterrupt):
    """No error that anybody on the way could mean to take care of."""


class FreezeLimit:
    """A context manager around a dump of ``name``, which may stand still for ``seconds``; None for any time.

    In the main thread only, as signals are. Raises RolledBackError (`max-freeze`) at its end when time was up.
    """

    def __init__(self, seconds: float | None, name: str) -> None:
        self._seconds = seconds
        self._name = name
        self._runs = False

    def __enter__(self) -> Self:
        if self._seconds is not None:
            self._before = signal.signal(signal.SIGALRM, _interrupt)
        return self

    def begin(self) -> None:
        """The group stands still from now on."""
        if self._seconds is not None:
            self._runs = True
            signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def cancel(self) -> None:
        """Something else has gone wrong, and is not to be interrupted while it is undone."""
        if self._seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def end(self) -> None:
        """It stands still no longer, or for good. An alarm that was on its way still counts. Again is nothing."""
        if not self._runs:
            return
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._runs = False
            if signal.SIGALRM in signal.sigpending():
                signal.sigwait({signal.SIGALRM})
                raise _TimeIsUpError
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()
        if self._seconds is None:
            return
        signal.signal(signal.SIGALRM, self._before)
        if isinstance(error, _TimeIsUpError):
            raise RolledBackError(
                f"{self._name} could not be dumped in time, and runs on",
                code="max-freeze",
                details=f"it had stood still for {self._seconds:g} s, and no image was made",
                hint="allow more with --max-freeze, or find out what takes long: the memory, the disk, who reads",
            ) from error


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _TimeIsUpError
