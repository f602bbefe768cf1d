"""The locks of all namespaces of a group as one.

A group that lives in several network namespaces is silent only when each of them is. They are closed one after the
other, in the order given: until the last is closed packets may still pass within the group, as they may before any
is. What fails in one is raised when the others have had their turn, where the aim is to open or to give up.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.errors import CkptError
from ckpt.kernel.lock import NetworkLock


class GroupLock:
    """Does to each of ``locks`` what is asked of it; see `NetworkLock`."""

    def __init__(self, locks: Sequence[NetworkLock]) -> None:
        self._locks = tuple(locks)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tables that are in place now, in all namespaces."""
        return tuple(name for lock in self._locks for name in lock.names)

    def gate(self) -> None:
        """Let no new TCP connection in, and let handshakes under way end."""
        for lock in self._locks:
            lock.gate()

    def close(self, *, permanent: bool = False) -> None:
        """Drop everything both ways in every namespace."""
        for lock in self._locks:
            lock.close(permanent=permanent)

    def require_intact(self) -> None:
        """NetworkError (`lock-lost`) when a lock has gone by itself."""
        for lock in self._locks:
            lock.require_intact()

    def release(self) -> None:
        """Take away every table; harmless when there is none."""
        failure: CkptError | None = None
        for lock in self._locks:
            try:
                lock.release()
            except CkptError as error:
                failure = error
        if failure is not None:
            raise failure

    def keep(self) -> tuple[str, ...]:
        """Forget the permanent tables; their names."""
        return tuple(name for lock in self._locks for name in lock.keep())

    def __enter__(self) -> GroupLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
