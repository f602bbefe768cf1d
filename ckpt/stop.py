"""``ckpt stop``: end a group, and take away what it had on this host outside of its namespaces.

The namespaces go with the last process. What is ours outside of them is the host's end of each link, a bridge that
ckpt made and that nobody uses any more, and the entry in the registry; the log stays. A dump that took a group away
and a group that ended by itself leave the same things, so both end here as well.
"""

from __future__ import annotations

from ckpt import context, registry
from ckpt.kernel import ending, outside
from ckpt.records import dataclass
from ckpt.registry import GroupEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class StopReport:
    """How a group was stopped: the ``signal`` that ended it, None when it had exited, and what was taken away."""

    name: str
    signal: str | None
    links: tuple[str, ...] = ()
    bridge: str | None = None


def stop_group(name: str, *, timeout: float = 10.0) -> StopReport:
    """End the group called ``name``: SIGTERM, and SIGKILL after ``timeout`` seconds (0: at once)."""
    entry = registry.get(name)
    # Asked before the end: the kernel takes a veth pair down with the namespace, a moment after the last process.
    links = tuple(link for link in entry.links if outside.find(link) is not None)
    used = ending.end_tree(entry.pid, timeout=timeout) if entry.alive else None
    return StopReport(name=name, signal=used, links=links, bridge=clear(entry))


def clear(entry: GroupEntry) -> str | None:
    """Forget a group that has ended and remove its links from the host; the name of the bridge when that went too.

    Does nothing twice, and nothing to a group of the same name that was restored meanwhile: it has another PID.
    """
    with registry.locked():
        known = registry.find(entry.name)
        if known is None or (known.pid, known.start_time) != (entry.pid, entry.start_time):
            return None
        for link in entry.links:
            outside.delete(link)
        context.release(entry)
        registry.remove(entry.name)
        return entry.bridge if entry.bridge is not None and release_bridge(entry.bridge) else None


def release_bridge(bridge: str) -> bool:
    """Remove ``bridge`` when ckpt made it and nobody uses it: no group, no port, no address; whether it went."""
    if bridge not in outside.made_bridges() or outside.is_in_use(bridge):
        return False
    return all(other.bridge != bridge for other in registry.entries()) and outside.delete(bridge)
