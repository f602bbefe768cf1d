"""What all clients share: they count what was right, print the count, and end when their standard input does."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

PERIOD = 0.2
CONNECT_SECONDS = 120.0

PAUSE = 0.1
"""Between two of a client's messages: each takes an emulated processor milliseconds, and it has others to serve."""


class Report:
    """How much was right: ``count`` is printed from time to time."""

    def __init__(self) -> None:
        self.count = 0
        self._told = -1
        self._stop = threading.Event()
        threading.Thread(target=self._until_told_to_stop, daemon=True).start()
        threading.Thread(target=self._tell, daemon=True).start()

    @property
    def going(self) -> bool:
        """Whether to go on."""
        return not self._stop.is_set()

    def wait(self, seconds: float) -> None:
        """So long, or until it is told to stop."""
        self._stop.wait(seconds)

    def rounds(self) -> Iterator[int]:
        """0, 1, 2 … until it is told to stop; each is counted when the next begins."""
        while self.going:
            yield self.count
            self.count += 1

    def _tell(self) -> None:
        while True:
            if self._told != self.count:
                self._told = self.count
                print(self._told, flush=True)
            time.sleep(PERIOD)

    def _until_told_to_stop(self) -> None:
        while os.read(0, 4096):
            pass
        self._stop.set()


def connected(address: str, port: int, *, receive_buffer: int = 0) -> socket.socket:
    """A connection, as soon as somebody listens."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            found = socket.socket()
            if receive_buffer:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            found.settimeout(5)
            found.connect((address, port))
        except OSError as error:
            found.close()
            if time.monotonic() > deadline:
                sys.exit(f"nobody listens at {address} port {port}: {error}")
            time.sleep(0.1)
        else:
            found.settimeout(CONNECT_SECONDS)
            return found
