"""This host as a target: what an image needs is looked up here, with what the registry knows.

The kernel's side of it is `kernel.host`. A remote target does the same on its own side: it is sent the needs, and
answers with the facts.
"""

from __future__ import annotations

from ckpt import registry
from ckpt.kernel import criu, host
from ckpt.model.host import KnownGroup, Needs, TargetFacts


def read_facts(needs: Needs, program: criu.Criu) -> TargetFacts:
    """What this host has of ``needs``; nothing is changed."""
    return host.read_target(needs, criu.version(program), groups=known_groups())


def known_groups() -> tuple[KnownGroup, ...]:
    """The groups in this host's registry."""
    return tuple(
        KnownGroup(
            name=entry.name,
            pid=entry.pid,
            alive=entry.alive,
            addresses=entry.addresses,
            links=tuple(link for link in (entry.bridge, entry.parent) if link),
        )
        for entry in registry.entries()
    )
