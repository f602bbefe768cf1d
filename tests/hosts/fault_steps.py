"""The steps of a migration at which the tests let something happen, by side and in their order.

Named as ``fault_program`` names them; one that is not passed any more fails its test, as its fault never strikes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_DEPARTURE, _ARRIVAL = "ckpt.departure:Departure", "ckpt.arrival:HeldArrival"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of the source's ckpt or of the target's agent; ``criu``: a CRIU is at work there.

    ``lost``: should this side lose its power here, the group may be lost with it, as any program of a host that does.
    ``isolation``: only groups of this kind pass it.
    """

    side: str
    point: str
    passage: int = 1
    criu: bool = False
    lost: bool = False
    isolation: str = ""


SOURCE = (
    Step(side="source", point="return ckpt.migrate:_preflight", lost=True),
    Step(side="source", point="return ckpt.migrate:_prepare", lost=True),
    Step(side="source", point=f"return {_DEPARTURE}.frozen", criu=True, lost=True),
    Step(side="source", point="return ckpt.dump:_Dump._read_frozen", criu=True, lost=True),
    Step(side="source", point="return ckpt.kernel.criu_pages:PagePipes.take", lost=True),
    # What it has given to ssh may not have left the host.
    Step(side="source", point="return ckpt.remote.protocol:Channel.end_data", passage=2, criu=True, lost=True),
    Step(side="source", point=f"call {_DEPARTURE}.agree", criu=True),
    Step(side="source", point=f"return {_DEPARTURE}.agree", criu=True),
    Step(side="source", point=f"call {_DEPARTURE}.commit", criu=True),
    Step(side="source", point=f"return {_DEPARTURE}.commit", criu=True),
    Step(side="source", point="return ckpt.dump:_Dump._commit"),
    Step(side="source", point=f"call {_DEPARTURE}.away"),
    Step(side="source", point=f"return {_DEPARTURE}.away"),
    Step(side="source", point="call ckpt.migrate:_MigrateEnd._done"),
    Step(side="source", point="call ckpt.migrate:_forget"),
    Step(side="source", point="return ckpt.migrate:_forget"),
)

TARGET = (
    Step(side="target", point="return ckpt.restore:_restore"),
    Step(side="target", point=f"return {_ARRIVAL}.__init__"),
    Step(side="target", point="return ckpt.restore:_Restore._unpack"),
    Step(side="target", point="return ckpt.rebuild:furnish", isolation="netns"),
    Step(side="target", point="return ckpt.context_restore:confine", isolation="ipset"),
    Step(side="target", point=f"call {_ARRIVAL}.hold", criu=True),
    Step(side="target", point=f"call {_ARRIVAL}._verdict", criu=True),
    Step(side="target", point=f"return {_ARRIVAL}._verdict", criu=True),
    Step(side="target", point=f"return {_ARRIVAL}.hold", criu=True),
    Step(side="target", point=f"return {_ARRIVAL}.running", criu=True, lost=True),
    Step(side="target", point=f"return {_ARRIVAL}.released", criu=True, lost=True),
    Step(side="target", point="return ckpt.remote.agent:_Agent._restore", lost=True),
    Step(side="target", point="return ckpt.remote.agent:_Agent._forget", lost=True),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at which step."""

    step: Step
    fault: str
    isolation: str = "netns"

    def __str__(self) -> str:
        point = self.step.point.replace("ckpt.", "") + (f" #{self.step.passage}" if self.step.passage > 1 else "")
        return f"{self.isolation}: {self.step.side}: {self.fault}: {point}"

    @property
    def may_lose_the_group(self) -> bool:
        """Whether the host that has the only copy loses its power."""
        return self.fault == "host" and self.step.lost


def faults() -> Iterator[Fault]:
    """Every fault at every step, with a group of each kind."""
    for isolation in ("netns", "ipset"):
        for fault in ("ckpt", "criu", "ssh", "cable", "host"):
            for step in (*SOURCE, *TARGET):
                if step.isolation in ("", isolation) and (fault != "criu" or step.criu):
                    yield Fault(step, fault, isolation)
