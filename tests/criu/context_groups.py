"""Groups in contexts under test: an agent that holds sockets there, and a connection to it that travels as well."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ckpt.model.process import Isolation
from tests.criu.groups import Group, Starter, python
from tests.criu.segment import Addresses, Segment

PORT = 7100

ROUNDS = int(os.environ.get("CKPT_TEST_ROUNDS", "2"))
"""How often in a row a group is dumped and restored; what goes wrong on the way back may show when it leaves again."""


@dataclass(slots=True)
class Agent:
    """The agent of ``group``, and a connection to it."""

    group: Group
    connection: socket.socket

    def do(self, code: str) -> Any:
        """Run a statement, or evaluate an expression; the name of the errno with which it fails."""
        self.connection.sendall(code.encode().hex().encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            data = self.connection.recv(1 << 16)
            assert data, "the agent closed its connection"
            answer += data
        return json.loads(answer)

    def make(self, name: str, family: str, kind: str, *steps: str) -> None:
        """A socket called ``name``, and what is done with it: ``bind(("", 80))``."""
        made = self.do(f"{name} = socket.socket(socket.{family}, socket.{kind})")
        assert made is None, made
        for step in steps:
            done = self.do(f"{name}.{step}")
            assert done is None, (name, step, done)

    def names(self, *sockets: str) -> dict[str, Any]:
        """What each socket says of its own name and its peer's."""
        return {one: (self.do(f"{one}.getsockname()"), self.do(f"{one}.getpeername()")) for one in sockets}


def agent(start: Starter, stack: ExitStack, *pairs: Addresses, port: int = PORT, **spec: Any) -> Agent:
    """An agent in a context of these pairs of addresses, which ckpt puts on the segment's bridge where they are not."""
    found = pairs or (start.segment.addresses(), start.segment.addresses())
    settings: dict[str, Any] = {"addresses": tuple(text for pair in found for text in pair), **spec}
    group = start(python("context_agent.py", port), isolation=Isolation.IPSET, **settings)
    group.addresses = found[0]
    group.wait_for_log("ready")
    return Agent(group, connected(start.segment, stack, found[0].v4, port))


def connected(segment: Segment, stack: ExitStack, address: str, port: int = PORT) -> socket.socket:
    """A connection of the client's to an agent."""
    return stack.enter_context(segment.connect(address, port))
