"""A group in an IP-set context moves between hosts: its address leaves the one and comes to the other, unnoticed."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.conftest import random_name
from tests.criu.capture import capturing
from tests.criu.fault_lab import patient
from tests.criu.groups import PROGRAMS
from tests.criu.stream import Stream
from tests.hosts.machines import BRIDGE, GATEWAY, Machine, World
from tests.hosts.moving import LIMIT, connect

ADDRESS = "10.88.0.30"


@pytest.fixture
def name(world: World) -> Iterator[str]:
    """A stream server on A, in a context of an address that ckpt puts on A's bridge."""
    found = random_name("g")
    for host in (world.a, world.b):
        # A context goes by the host's own routes.
        host.run("ip", "route", "replace", "default", "via", GATEWAY)
    program = [sys.executable, "-I", "-S", str(PROGRAMS / "stream_server.py"), "--family", "v4"]
    confined = ["--isolation", "ipset", "--link", BRIDGE, "--address", f"{ADDRESS}/24"]
    world.a.must("run", "--name", found, *confined, "--clear-env", "--", *program)
    yield found
    for host in (world.a, world.b):
        host.ckpt("stop", "--timeout", "0", found)
        host.ckpt("clean")
        host.run("ip", "route", "delete", "default")


def has_address(host: Machine) -> bool:
    return f" {ADDRESS}/24 " in host.run("ip", "address", "show", "dev", BRIDGE).out


def test_migrate_context_there_and_back_loses_nothing(world: World, name: str) -> None:
    with patient(Stream(connect(world, ADDRESS))) as stream:
        stream.progress()
        with capturing() as capture:
            for source, target in ((world.a, world.b), (world.b, world.a)):
                done = source.ckpt("migrate", name, "--host", target.address, "--downtime-limit", LIMIT, timeout=120)
                assert done.status == 0, done.err
                stream.progress()
                assert (has_address(source), has_address(target)) == (False, True)
                assert (source.groups(), target.groups()) == ({}, {name: "running"})
                assert source.must("context") == []
                (found,) = target.must("context")
                assert (found["name"], found["members"], found["missing"]) == (name, [f"{ADDRESS}/24"], [])
        assert capture.betrayals(ADDRESS) == []
        stream.finish()
