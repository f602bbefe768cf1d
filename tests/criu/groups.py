"""Groups under test: started, dumped, restored and, whatever happened, ended."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt import registry
from ckpt.dump import DumpReport, dump_group
from ckpt.model.groupspec import GroupSpec
from ckpt.model.process import Isolation
from ckpt.restore import RestoreReport, restore_group
from ckpt.run import MINIMAL_ENVIRONMENT, start_group
from tests.criu.segment import PATIENCE, Addresses, Segment
from tests.criu.stream import Stream

PROGRAMS = Path(__file__).parent / "programs"


def python(program: str, *arguments: object) -> list[str]:
    """The command that runs one of the programs."""
    return [sys.executable, "-I", "-S", str(PROGRAMS / program), *map(str, arguments)]


@dataclass(slots=True)
class Group:
    """A group, known by its name or, when `ckpt run` did not start it, by its root's PID."""

    target: str | int
    addresses: Addresses
    segment: Segment
    images: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    image: Path = Path()
    # A process that is our own child has to be waited for, or its PID stays taken.
    child: int | None = None

    @property
    def pid(self) -> int:
        """The root task."""
        return self.target if isinstance(self.target, int) else registry.get(self.target).pid

    def log(self) -> str:
        """What it has written."""
        assert isinstance(self.target, str)
        return Path(registry.get(self.target).log or "/dev/null").read_text()

    def wait_for_log(self, text: str) -> None:
        """Wait until it has written ``text``."""
        wait_for(lambda: text in self.log(), f"{text!r} is logged")

    def stream(
        self,
        address: str | None = None,
        *,
        from_host: bool = False,
        port: int = 7000,
        buffer: int | None = None,
        reading: bool = True,
        writing: bool = True,
    ) -> Stream:
        """A verified connection to its stream server."""
        connection = self.segment.connect(address or self.addresses.v4, port, from_host=from_host, buffer=buffer)
        return Stream(connection, reading=reading, writing=writing)

    def dump(self, **options: Any) -> DumpReport:
        """Dump it into the next image."""
        self.image = self.images / f"{self.target}-{next(self._numbers)}.ckpt"
        report = dump_group(self.target, self.image, **options)
        if self.child is not None and not report.left_running:
            os.waitpid(self.child, 0)
            self.child = None
        return report

    def restore(self, **options: Any) -> RestoreReport:
        """Restore it from the last image."""
        report = restore_group(self.image, **options)
        self.target = report.name
        return report

    def round_trip(self, **options: Any) -> RestoreReport:
        """Dump and restore."""
        self.dump(**options)
        return self.restore()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its root, which passes it on."""
        os.kill(self.pid, number)


class Starter:
    """Starts groups on a segment, under random names."""

    def __init__(self, segment: Segment, images: Path, unique: Any) -> None:
        self.segment = segment
        self.images = images
        self._unique = unique

    def __call__(
        self, command: Sequence[str], *, addresses: Addresses | None = None, only: str | None = None, **spec: Any
    ) -> Group:
        """Start ``command`` with an address of each family, or with ``only`` one, on the segment's bridge."""
        addresses = addresses or self.segment.addresses()
        settings: dict[str, Any] = {
            "name": self._unique("g"),
            "link": self.segment.bridge,
            "addresses": tuple(addresses) if only is None else (only,),
            "environment": MINIMAL_ENVIRONMENT,
            "root_may_leave": spec.get("isolation") is Isolation.IPSET,
        }
        settings.update(spec)
        entry = start_group(GroupSpec(command=tuple(command), **settings))
        return Group(entry.name, addresses, self.segment, self.images)

    def stream_server(self, *arguments: object, **spec: Any) -> Group:
        """Start the stream server, and wait until it listens."""
        group = self(python("stream_server.py", *arguments), **spec)
        group.wait_for_log("ready")
        return group

    def adopt(self, pid: int, addresses: Addresses, *, child: bool = True) -> Group:
        """A process tree that `ckpt run` did not start."""
        return Group(pid, addresses, self.segment, self.images, child=pid if child else None)


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition()``."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)
