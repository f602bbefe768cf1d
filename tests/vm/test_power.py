"""A machine loses its power, its button is pressed or its cable is pulled in the middle of a migration.

QEMU does it, while the ckpt of that machine is held at a step (``tests/hosts/fault_program.py``). When it is up again
and a user has done as docs/migration.md says, there has to be exactly one running copy, or one whole image, and its
client goes on. A sample; ``CKPT_FAULTS=all`` tries whatever can happen at every step.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.hosts.fault_program import PAUSE_SECONDS
from tests.hosts.fault_steps import SOURCE, TARGET, Step
from tests.vm.machines import CHECKOUT, COMMAND_SECONDS, Client, Host, Machines
from tests.vm.moving import Group
from tests.vm.test_migrate import REDIS

Run = Callable[..., Group]
Start = Callable[..., Client]

FAULTY = "/usr/local/bin/ckpt-with-fault"
STRIKE_SECONDS = 180.0
LIMIT = "40"


@dataclass(frozen=True, slots=True)
class Loss:
    """What happens to the machine that is at a step."""

    do: str
    step: Step

    def __str__(self) -> str:
        point = self.step.point.replace("ckpt.", "") + (f" #{self.step.passage}" if self.step.passage > 1 else "")
        return f"{self.step.side}: {self.do}: {point}"


def chosen() -> list[Loss]:
    """Either machine loses its power, and one other thing happens: at steps that differ from day to day."""
    steps = {"source": SOURCE, "target": tuple(step for step in TARGET if step.isolation in ("", "netns"))}
    every = [Loss(do, step) for side in steps for do in ("off", "reset", "cut") for step in steps[side]]
    if os.environ.get("CKPT_FAULTS") == "all":
        return every
    today = random.Random(time.strftime("%Y-%m-%d"))
    other = today.choice([("reset", "source"), ("cut", "source"), ("cut", "target")])
    kinds = [("off", "source"), ("off", "target"), other]
    return [today.choice([one for one in every if (one.do, one.step.side) == kind]) for kind in kinds]


@pytest.fixture
def faulty(machines: Machines) -> Iterator[None]:
    """On both hosts, a ckpt in which a fault may strike."""
    python = "$(head -n 1 $(command -v ckpt) | cut -c 3-)"
    for host in (machines.a, machines.b):
        host.sh(
            f"printf '#!/bin/sh\\ncd {CHECKOUT} && exec %s -m tests.hosts.fault_program \"$@\"\\n' {python} >{FAULTY};"
            f" chmod 755 {FAULTY}"
        )
    yield
    for host in (machines.a, machines.b):
        host.sh(f"rm -f {FAULTY} /var/lib/ckpt/fault.json /var/lib/ckpt/struck; ckpt clean")


def strike(group: Group, loss: Loss) -> str:
    """Migrate the group, let it happen, and repair the machine; what the source's ckpt said, if it could."""
    struck, other = (group.here, group.there) if loss.step.side == "source" else (group.there, group.here)
    plan = {
        "command": "migrate" if loss.step.side == "source" else "agent",
        "point": loss.step.point,
        "passage": loss.step.passage,
        "fault": "pause" if loss.do == "cut" else "stop",
    }
    struck.sh(f"rm -f /var/lib/ckpt/struck; cat >/var/lib/ckpt/fault.json <<'END'\n{json.dumps(plan)}\nEND")
    words = f"{FAULTY} migrate {group.name} --host {group.there.name} --remote-ckpt {FAULTY} --downtime-limit {LIMIT}"
    migrate = subprocess.Popen(
        group.here.argv(words, shared=False),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + STRIKE_SECONDS
        while struck.run("test -e /var/lib/ckpt/struck").status:
            assert migrate.poll() is None, f"it never struck: {migrate.communicate()[0]}"
            assert time.monotonic() < deadline, "it never struck"
            time.sleep(0.2)
        struck.power(loss.do)
        if loss.do == "off":
            struck.power("boot")
        elif loss.do == "cut":
            # Until the one has gone on and the other's limit is over: it may hold what it has, for as long as it takes.
            time.sleep(PAUSE_SECONDS)
            settled(other, float(LIMIT))
            struck.power("mend")
        struck.sh("rm -f /var/lib/ckpt/struck")
        settled(group.here, 2 * COMMAND_SECONDS)
    finally:
        migrate.kill()
        said = migrate.communicate()[0]
    return said


def settled(host: Host, seconds: float) -> None:
    """Wait until no ckpt there tries any more, or so long: what it cannot bring to its end it leaves to the user."""
    deadline = time.monotonic() + seconds
    while host.run("pgrep -f 'fault_program .*(migrate|agent)'").status == 0 and time.monotonic() < deadline:
        time.sleep(1)


def repair(group: Group) -> list[str]:
    """Do what a user is told to; what was said."""
    said = []
    # The source decides: it is asked first, and what the target still has a record of, it asks the source.
    for host, other in ((group.here, group.there), (group.there, group.here)):
        for record in host.records():
            asked = ["--host", other.name] if record["role"] == "target" else []
            said.append(str(host.ckpt("migrate", "--resume", record["id"], *asked, timeout=300)))
    said += [str(host.ckpt("clean")) for host in (group.here, group.there)]
    return said


@pytest.mark.parametrize("loss", chosen(), ids=str)
def test_migrate_loss_of_a_machine_ends_with_one_copy_or_one_image(
    run: Run, client: Start, faulty: None, loss: Loss
) -> None:
    group = run(*REDIS, number=110)
    counting = client("redis_client.py", group.address)
    counting.progress()
    said = [strike(group, loss), *repair(group)]
    hosts = (group.here, group.there)
    copies = [host for host in hosts if group.name in host.groups()]
    images = [(host, image) for host in hosts for image in host.images()]
    print(*said, copies, images, sep="\n")
    assert [host.records() for host in hosts] == [[], []]
    if not copies and not images:
        assert loss.do != "cut" and loss.step.lost
        return
    assert len(copies) + len(images) == 1
    if images:
        ((host, image),) = images
        host.must("restore", image)
        host.sh(f"rm {image}")
    counting.progress()
    counting.finish()
