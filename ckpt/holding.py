"""Signals that have to wait: between a point of no return and the end of what follows from it.

^C or a SIGTERM there would leave work half done that nobody is going to undo. They are not lost: they take effect when
the block ends.
"""

from __future__ import annotations

import signal
from types import TracebackType

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class SignalHold:
    """A context manager; from ``begin`` to its end the calling thread is not interrupted by signals."""

    def __init__(self) -> None:
        self._before: set[int] | None = None

    def begin(self) -> None:
        """From now on signals wait. Again is nothing."""
        if self._before is None:
            self._before = set(signal.pthread_sigmask(signal.SIG_BLOCK, _HELD))

    def __enter__(self) -> SignalHold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
