"""The network namespaces of a group: the root task's, and those that tasks below it have made.

Each has a key, by which CRIU's images name it and by which links say where they lead; the kernel's number for it (the
inode) holds on one host and for one life only. A group in the host's namespace has none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ckpt.errors import CkptError, NetworkError
from ckpt.kernel import netns, takedown
from ckpt.model.checkpoint import NestedNetwork
from ckpt.model.network import Network
from ckpt.model.process import GroupFacts, Isolation, Process
from ckpt.model.socket import Socket
from ckpt.records import dataclass

NETNS_KEY = "ckpt-netns"
"""The key of the root task's namespace; the others are numbered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """One of them, held open by ``netns``; ``names`` are those of ``ip netns``."""

    key: str
    inode: int
    netns: int
    names: tuple[str, ...] = ()


def opened(facts: GroupFacts, stack: ExitStack) -> tuple[Space, ...]:
    """The namespaces of the group, its root task's first, open until ``stack`` closes.

    Raises NetworkError (`netns-changed`) when the tasks are not where ``facts`` say.
    """
    if facts.isolation is not Isolation.NETNS:
        return ()
    places = [(facts.netns, facts.root, facts.netns_pins), *((one.inode, one.pid, one.pins) for one in facts.nested)]
    spaces = []
    for number, (inode, pid, pins) in enumerate(places):
        descriptor = netns.open_of(pid)
        stack.callback(os.close, descriptor)
        if netns.inode(descriptor) != inode:
            raise _changed(f"PID {pid} has left {inode}")
        key = f"{NETNS_KEY}-{number}" if number else NETNS_KEY
        spaces.append(Space(key=key, inode=inode, netns=descriptor, names=_names(pins)))
    return tuple(spaces)


def require_all(spaces: Sequence[Space], processes: Iterable[Process], sockets: Iterable[Socket]) -> None:
    """NetworkError (`netns-changed`) unless the group lives in ``spaces``, in all of them and in no others."""
    known = {space.inode for space in spaces}
    lived_in = {one.namespaces["net"] for one in processes if "net" in one.namespaces}
    if lived_in != known or not {one.netns for one in sockets} <= known:
        raise _changed("a task or a socket is in another network namespace than before")


def nested_of(spaces: Sequence[Space], networks: Mapping[str, Network]) -> tuple[NestedNetwork, ...]:
    """The records of all but the first of ``spaces``, from what was read of each by its key."""
    return tuple(
        NestedNetwork(key=one.key, inode=one.inode, netns_names=one.names, network=networks[one.key])
        for one in spaces[1:]
    )


def _changed(details: str) -> CkptError:
    return NetworkError(
        "the group changed its network namespaces while they were looked at",
        code="netns-changed",
        details=details,
        hint="try again",
    )


def _names(pins: Sequence[str]) -> tuple[str, ...]:
    paths = map(Path, pins)
    return tuple(path.name for path in paths if path.parent.resolve() == takedown.NETNS_NAMES)
