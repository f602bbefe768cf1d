"""The machines of the tests of several hosts, and what the tests of one host have as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.criu.conftest import directories, segment, start
from tests.hosts import machines
from tests.hosts.machines import World
from tests.hosts.moving import Moving

__all__ = ["directories", "segment", "start"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two hosts, a router and a client."""
    require(Path("/usr/sbin/sshd").exists(), "openssh-server is not installed")
    with machines.made(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="module")
def moving(world: World) -> Iterator[Moving]:
    """A group that is moved to and fro, with its client."""
    made = Moving.made(world)
    yield made
    made.end()
