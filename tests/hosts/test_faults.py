"""Whatever dies at whatever step of a migration: one running copy in the end, or one whole image, and the user is told.

All faults are tried with ``CKPT_FAULTS=all`` (`scripts/test --faults`); otherwise a sample that differs from commit to
commit, and is named in the tests' ids.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import require
from tests.criu.capture import capturing
from tests.hosts import machines
from tests.hosts.fault_steps import Fault, faults
from tests.hosts.machines import ROOT, World
from tests.hosts.moving import Moving

SAMPLE = 6


def chosen() -> list[Fault]:
    """Those of this commit, in an order in which the costly ones come last."""
    every = list(faults())
    if os.environ.get("CKPT_FAULTS") == "all":
        return every
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    sample = random.Random(commit).sample(every, SAMPLE)
    return sorted(sample, key=every.index)


class Field:
    """Keeps the machines, and the group as long as it is well."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._moving: Moving | None = None
        self._world: World | None = None
        self._made = machines.made(place)

    @contextmanager
    def moving(self, isolation: str) -> Iterator[Moving]:
        """The group of that kind, running on one of the hosts; watched for what would betray that it is moved."""
        try:
            if self._world is None:
                self._world = self._made.__enter__()
            if self._moving is not None and self._moving.isolation != isolation:
                self.end_group()
            if self._moving is None:
                self._moving = Moving.made(self._world, isolation)
            yield self._moving
        except BaseException:
            self.end_group()
            raise

    def end_group(self) -> None:
        """A new one for the next test."""
        if self._moving is not None:
            self._moving.end()
            self._moving = None

    def end(self) -> None:
        """All of it."""
        self.end_group()
        if self._world is not None:
            self._made.__exit__(None, None, None)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    require(Path("/usr/sbin/sshd").exists(), "openssh-server is not installed")
    made = Field(tmp_path_factory.mktemp("hosts"))
    yield made
    made.end()


@pytest.mark.parametrize("fault", chosen(), ids=str)
def test_migrate_fault_ends_with_one_copy_or_one_image(field: Field, fault: Fault) -> None:
    with field.moving(fault.isolation) as moving, capturing() as capture:
        outcome = moving.strike(fault)
        said = moving.settle()
        print(outcome, *said, sep="\n")
        copies = moving.copies()
        images = moving.images()
        if not copies and not images:
            assert fault.may_lose_the_group
            field.end_group()
            return
        assert len(copies) + len(images) == 1, f"it runs on {[host.name for host in copies]}, images: {images}"
        if not copies:
            moving.restore_image(images[0])
            copies = moving.copies()
        if copies[0] is not moving.source:
            moving.moved()
        moving.stream.progress(50)
        assert moving.left_behind() == []
        told = outcome.status == 0 or fault.fault in ("ckpt", "host") or outcome.error["brief"]
        assert told, f"nothing was said: {outcome}"
    assert capture.betrayals(moving.address) == []
