"""Groups in IP-set contexts, and of IPv6 alone, move between hosts: the address leaves one and comes to the other."""

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
from tests.hosts.moving import LIMIT, Moving, connect
from tests.hosts.test_migrate import owners
from tests.net import context_lab

ADDRESS = "10.88.0.30"


@pytest.fixture
def name(world: World) -> Iterator[str]:
    """A stream server on A, in a context of an address that ckpt puts on A's bridge."""
    found = random_name("g")
    for host in (world.a, world.b):
        # A context goes by the host's own routes.
        host.run("ip", "route", "replace", "default", "via", GATEWAY)
    program = [sys.executable, "-I", "-S", str(PROGRAMS / "stream_server.py"), "--family", "v4"]
    confined = ["--isolation", "ipset", "--root-may-leave", "--link", BRIDGE, "--address", f"{ADDRESS}/24"]
    world.a.must("run", "--name", found, *confined, "--clear-env", "--", *program)
    yield found
    for host in (world.a, world.b):
        host.ckpt("stop", "--timeout", "0", found)
        host.ckpt("clean")
        host.run("ip", "route", "delete", "default")


@pytest.mark.parametrize("isolation", ["netns", "ipset"])
def test_migrate_group_of_ipv6_alone_there_and_back_loses_nothing(world: World, isolation: str) -> None:
    moving = Moving.made(world, isolation, "fd88::30")
    try:
        with capturing() as capture:
            for _ in range(2):
                done = moving.move("--downtime-limit", LIMIT)
                assert done.status == 0, done.err
                assert moving.copies() == [moving.target]
                moving.stream.progress()
                moving.moved()
                assert moving.left_behind() == []
        assert capture.betrayals(moving.address) == []
        assert owners(capture, moving) == [world.a.port, world.b.port, world.a.port]
    finally:
        moving.end()


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


def test_migrate_to_where_root_could_leave_is_refused(world: World) -> None:
    """Both hosts have one hierarchy: it is no boundary any more when the group is to move."""
    name = random_name("g")
    confined = ["--isolation", "ipset", "--link", BRIDGE, "--address", "10.88.0.32/24"]
    with context_lab.boundaries(on=True):
        world.a.must("run", "--name", name, *confined, "--", "sleep", "1000")
    try:
        with context_lab.boundaries(on=False):
            done = world.a.ckpt("migrate", name, "--host", world.b.address)
        assert (done.status, done.error["code"]) == (3, "context-delegation"), done.err
        assert (world.a.groups(), world.b.groups()) == ({name: "running"}, {})
    finally:
        world.a.must("stop", "--timeout", "0", name)
