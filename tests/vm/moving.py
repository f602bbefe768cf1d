"""A group that goes from machine to machine, by whichever way."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.conftest import random_name
from tests.vm.machines import Host, Machines

LIMIT = "120"
"""How long a group may stand still: an emulated machine takes its time."""


@dataclass(slots=True)
class Group:
    """``here`` is where it runs, ``there`` where it goes next. ``options`` are those of every move."""

    machines: Machines
    name: str
    address: str
    here: Host
    there: Host
    options: list[str] = field(default_factory=list)

    @classmethod
    def started(
        cls,
        machines: Machines,
        *command: str,
        on: Machines | None = None,
        number: int = 100,
        isolation: str = "netns",
        attached: bool = True,
        link: str = "br0",
        network: str = "",
        gateway: str = "",
    ) -> Group:
        """Run ``command`` as a group of A's, with an address of the private network that ends in ``number``.

        ``link``, ``network`` and ``gateway``: in another network, with that address (and its prefix's length) there.
        ``on``: of another host's, that then goes to A. One that is not ``attached`` has no link, until it is given one.
        """
        machines = on or machines
        prefix = machines.a.address.rpartition(".")[0]
        made = cls(machines, random_name("g"), f"{prefix}.{number}", machines.a, machines.b)
        made.address = network.partition("/")[0] or made.address
        given = ["--isolation", isolation]
        given += ["--link", link, "--address", network or f"{made.address}/24"] if attached else []
        given += ["--gateway", gateway] if gateway else []
        words = [one.format(address=made.address) for one in command]
        machines.a.must("run", "--name", made.name, *given, "--clear-env", "--", *words)
        return made

    @property
    def pid(self) -> int:
        """Its root task, as the host that it runs on sees it."""
        entry = json.loads(self.here.sh(f"cat /run/ckpt/groups/{self.name}.json"))
        return int(entry["pid"])

    def inside(self, script: str) -> str:
        """Run shell within it, where it is."""
        quoted = script.replace("'", "'\\''")
        return self.here.sh(f"ckpt exec {self.name} -- sh -ec '{quoted}'")

    def migrate(self) -> Any:
        """Move it by `ckpt migrate`; what that reports."""
        words = ["--host", self.there.name, "--downtime-limit", LIMIT, *self.options]
        report = self.here.must("migrate", self.name, *words, timeout=300)
        self.moved()
        return report

    def carry(self) -> None:
        """Move it by `ckpt dump` and `ckpt restore --host`: in between it is nowhere, and its clients wait."""
        image = f"/var/tmp/{self.name}.ckpt"
        self.here.must("dump", self.name, "-o", image, timeout=300)
        assert self.name not in self.here.groups()
        self.here.must("restore", image, "--host", self.there.name, *self.options, timeout=300)
        self.here.sh(f"rm {image}")
        self.moved()

    def moved(self) -> None:
        """It is on the other host now, and on no other."""
        self.here, self.there = self.there, self.here
        assert self.name not in self.there.groups()
        assert self.name in self.here.groups()

    def end(self) -> None:
        """Wherever it is."""
        for host in (self.machines.a, self.machines.b):
            if self.name in host.groups():
                host.must("stop", "--timeout", "0", self.name)
            elif host.run(f"test -e /run/ckpt/groups/{self.name}.json").status == 0:
                host.must("clean")  # it has ended by itself
