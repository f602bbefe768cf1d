"""Groups that move with their files, and under other names, between hosts that share neither."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import random_name
from tests.criu.groups import PROGRAMS
from tests.hosts.machines import BRIDGE, GATEWAY, World
from tests.hosts.moving import LIMIT, connect

OLD, NEW = "10.88.0.30", "10.88.0.31"
PLACE = "/run/app"
"""On a disk of each host's own."""


DISK = "/var/lib/ckpt/app"
"""On one that outlives a loss of power."""


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    """Where the program has its files."""
    return str(getattr(request, "param", PLACE))


@pytest.fixture
def name(world: World, place: str) -> Iterator[str]:
    """A program on A with files there: it has been asked twice."""
    name = random_name("g")
    for host in (world.a, world.b):
        host.run("rm", "-rf", place)
    world.a.run("sh", "-c", f"mkdir -p {place}/conf && echo level=3 > {place}/conf/settings")
    program = [sys.executable, "-I", "-S", str(PROGRAMS / "file_writer.py"), place, "7000"]
    network = ["--link", BRIDGE, "--address", f"{OLD}/24", "--gateway", GATEWAY]
    world.a.must("run", "--name", name, *network, "--clear-env", "--", *program)
    assert [asked(world, OLD), asked(world, OLD)] == [1, 2]
    yield name
    for host in (world.a, world.b):
        host.ckpt("stop", "--timeout", "0", name)
        host.ckpt("clean")
        host.run("rm", "-rf", place)


def asked(world: World, address: str, port: int = 7000) -> int:
    with connect(world, address, port) as client:
        return int(client.recv(20))


def test_migrate_takes_files_along_and_other_names(world: World, name: str) -> None:
    words = ["--with-file", f"{PLACE}/conf", "--map-address", f"{OLD}={NEW}", "--map-port", "7000=7070"]
    done = world.a.ckpt("migrate", name, "--host", world.b.address, "--downtime-limit", LIMIT, *words, timeout=120)
    assert done.status == 0, done.err
    assert asked(world, NEW, 7070) == 3
    found = world.b.run("sh", "-c", f"cd {PLACE}; cat state; echo; cat log conf/settings; stat -c %a run work")
    assert found.out.splitlines() == ["3", "asked 1", "asked 2", "asked 3", "level=3", "710", "750"]
    # What the source had it keeps, as it was.
    assert world.a.run("cat", f"{PLACE}/state").out == "2"


def test_migrate_to_a_host_with_another_file_is_refused_until_it_shall_make_way(world: World, name: str) -> None:
    world.b.run("sh", "-c", f"mkdir -p {PLACE} && printf 9 > {PLACE}/state")
    done = world.a.ckpt("migrate", name, "--host", world.b.address, "--downtime-limit", LIMIT, timeout=120)
    assert (done.status, done.error["code"]) == (3, "file-differs")
    assert asked(world, OLD) == 3
    words = ["--downtime-limit", LIMIT, "--replace-files"]
    done = world.a.ckpt("migrate", name, "--host", world.b.address, *words, timeout=120)
    assert done.status == 0, done.err
    assert asked(world, OLD) == 4
    assert world.b.run("cat", f"{PLACE}/state.ckpt-backup").out == "9"


def test_restore_of_another_host_under_another_address(world: World, name: str) -> None:
    image = "/var/lib/ckpt/moved.ckpt"
    world.a.must("dump", name, "-o", image)
    words = ["--host", world.b.address, "--map-address", f"{OLD}={NEW}", "--replace-files"]
    world.b.run("sh", "-c", f"mkdir -p {PLACE} && printf 9 > {PLACE}/state")
    dry = world.a.ckpt("restore", image, "--dry-run", *words)
    assert dry.status == 0, dry.err
    assert {"map-follows", "file-placed", "file-replaced"} <= {one["code"] for one in dry.json["findings"]}
    checked = world.a.must("check", image, *words)["findings"]
    assert [one["code"] for one in checked] == [one["code"] for one in dry.json["findings"]]
    world.b.run("rm", "-r", PLACE)
    assert world.b.run("test", "-e", PLACE).status == 1
    world.a.must("restore", image, "--host", world.b.address, "--map-address", f"{OLD}={NEW}")
    world.a.run("rm", image)
    assert asked(world, NEW) == 3


@pytest.mark.parametrize("place", [DISK], indirect=True)
def test_clean_after_a_loss_of_power_takes_back_what_a_move_had_placed(world: World, name: str) -> None:
    world.b.run("sh", "-c", f"mkdir -p {DISK} && printf 9 > {DISK}/state")
    before = world.b.run("ls", "-AR", DISK).out
    plan = {"command": "agent", "point": "return ckpt.placing:place", "passage": 1, "fault": "host"}
    (world.b.disk / "fault.json").write_text(json.dumps(plan))
    words = ["--downtime-limit", "5", "--replace-files"]
    done = world.a.ckpt("migrate", name, "--host", world.b.address, *words, timeout=120)
    assert done.status == 9, done
    (world.b.disk / "struck").unlink()
    world.b.lose_power()
    world.b.boot()
    assert (asked(world, OLD), world.b.run("cat", f"{DISK}/state").out) == (3, "2")
    found = {one["subject"] for one in world.b.must("clean")}
    assert {f"{DISK}/state", f"{DISK}/log"} <= found
    assert (world.b.run("ls", "-AR", DISK).out, world.b.run("cat", f"{DISK}/state").out) == (before, "9")
    world.a.must("migrate", "--resume")
