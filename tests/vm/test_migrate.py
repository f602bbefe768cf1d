"""Groups that move between machines, each with its own kernel, while a client on a third checks every byte."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.vm.machines import CHECKOUT, Client
from tests.vm.moving import Group

REDIS = ["redis-server", "--save", "", "--bind", "{address}", "--protected-mode", "no"]
STREAM = [
    "python3",
    "-I",
    "-S",
    f"{CHECKOUT}/tests/criu/programs/stream_server.py",
    "--family",
    "v4",
    "--pause",
    "0.1",
]

BRIEF = bool(os.environ.get("CKPT_VM_BRIEF"))
MOVES, FEW = (2, 1) if BRIEF else (10, 2)
"""So often redis goes, there and back, and the other groups. In a brief session these go there alone."""

Run = Callable[..., Group]
Start = Callable[..., Client]


def test_migrate_redis_there_and_back_counts_without_a_gap(run: Run, client: Start) -> None:
    group = run(*REDIS)
    counting = client("redis_client.py", group.address)
    counting.progress()
    for _ in range(MOVES):
        report = group.migrate()
        assert report["connections"] == 1
        counting.progress()
    counting.finish()


def test_dump_and_restore_of_redis_on_another_host_counts_without_a_gap(run: Run, client: Start) -> None:
    group = run(*REDIS)
    counting = client("redis_client.py", group.address)
    counting.progress()
    for _ in range(FEW):
        group.carry()
        counting.progress()
    counting.finish()


@pytest.mark.parametrize("isolation", ["netns", "ipset"])
def test_migrate_stream_there_and_back_loses_no_byte(run: Run, client: Start, isolation: str) -> None:
    group = run(*STREAM, isolation=isolation, number=101)
    stream = client("stream_client.py", group.address, 7000)
    stream.progress()
    for _ in range(FEW):
        group.migrate()
        stream.progress()
    if isolation == "ipset":
        assert group.address in group.here.sh("ip address show dev br0")
        assert group.address not in group.there.sh("ip address show dev br0")
    stream.finish()
