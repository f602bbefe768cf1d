"""A group, an image or a process tree as a checkpoint: what `diff` compares.

A live group is read as a dump reads it, but without a freeze or a lock: it notices nothing, and it may change while
it is read. The network is read as of one moment, the processes and the sockets one after the other.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from ckpt import context_record, sections, spaces
from ckpt.dump import find_root
from ckpt.errors import CkptError, RefusedError
from ckpt.image import Reader
from ckpt.kernel import criu, host, mntns, proc, rtnl_group, takedown
from ckpt.model.checkpoint import Checkpoint, CriuNotes, Group
from ckpt.model.process import GroupFacts, Isolation
from ckpt.registry import GroupEntry
from ckpt.spaces import NETNS_KEY


def read_checkpoint(target: str | int | Path, criu_path: str | None = None) -> Checkpoint:
    """The image at a Path, the live group of a name, or the live process tree below a PID.

    Raises what is said of a missing or damaged image, a missing group, and a network that never stands still.
    """
    if isinstance(target, Path):
        with Reader(target, known=sections.KNOWN) as reader:
            return sections.read(reader)
    entry, root = find_root(target)
    facts = proc.read_group(root)
    with ExitStack() as stack:
        opened = spaces.opened(facts, stack)
        networks = rtnl_group.read_networks({space.key: space.netns for space in opened})
    confined = None if networks else context_record.of_process(facts.root)
    return Checkpoint(
        group=_group(target, entry, facts, confined=confined is not None),
        source=host.read_host(_criu_version(criu_path)),
        processes=facts.processes,
        sockets=facts.sockets,
        network=networks.get(NETNS_KEY),
        criu=_notes(facts),
        nested=spaces.nested_of(opened, networks),
        context=None if confined is None else context_record.read(confined, entry),
    )


def _group(target: str | int, entry: GroupEntry | None, facts: GroupFacts, *, confined: bool) -> Group:
    root = facts.processes[0]
    pins = map(Path, facts.netns_pins)
    return Group(
        name=entry.name if entry else str(target),
        isolation=Isolation.IPSET if confined else facts.isolation,
        root_pid=facts.root,
        pid_namespace=facts.root_is_init,
        command=entry.command if entry else root.cmdline,
        log=entry.log if entry else None,
        netns_names=tuple(pin.name for pin in pins if pin.parent.resolve() == takedown.NETNS_NAMES),
        bridge_made=bool(entry and entry.bridge_made),
        connections=sum(socket.holds_connection for socket in facts.sockets),
    )


def _notes(facts: GroupFacts) -> CriuNotes:
    root = facts.processes[0]
    try:
        mounts = mntns.read_mounts(facts.root)
    except RefusedError:
        mounts = None  # it could not be dumped; it can be looked at
    return CriuNotes(
        netns_key=NETNS_KEY if facts.isolation is Isolation.NETNS else None,
        mounts=mounts,
        files=mntns.foreign_files(facts.processes),
        shell_job=root.ns_sids[-1:] != (root.ns_pid,),
    )


def _criu_version(criu_path: str | None) -> tuple[int, ...]:
    """That of the CRIU here; nothing where there is none, as none is needed to look at a group."""
    try:
        return criu.version(criu.find(criu_path))
    except CkptError:
        return ()
