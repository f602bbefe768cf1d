"""The group as ``/proc`` shows it: the tree of processes, and with its surroundings the facts a check judges.

``read_tree`` is cheap enough to be called while a group is frozen. ``read_group`` also looks at every other process
of the host, to find who holds the other end of what the group holds; it is meant for the time before the freeze.
Reading changes nothing in the group.
"""

from __future__ import annotations

from ckpt.errors import NotFoundError
from ckpt.kernel import sockdiag, surroundings
from ckpt.kernel.files import FileReader
from ckpt.kernel.procfs import read_process, read_stat, read_text, thread_ids
from ckpt.model.process import GroupFacts, Process

_TRIES = 5


def children(pid: int) -> tuple[int, ...]:
    """The PIDs of the children of all threads of ``pid``."""
    found: list[int] = []
    for tid in thread_ids(pid):
        found += (int(word) for word in read_text(f"/proc/{pid}/task/{tid}/children").split())
    return tuple(found)


def tree_pids(root: int) -> tuple[int, ...]:
    """``root`` and all below it, each parent before its children."""
    pids = [root]
    for pid in pids:
        pids += children(pid)
    return tuple(pids)


def read_tree(root: int) -> tuple[Process, ...]:
    """The processes of the group, root first; those that end meanwhile are left out. Raises NotFoundError."""
    if read_stat(root) is None:
        raise _not_found(root)
    files = FileReader()
    found = (read_process(pid, files) for pid in tree_pids(root))
    processes = tuple(process for process in found if process is not None)
    if not processes or processes[0].pid != root:
        raise _not_found(root)
    return processes


def read_group(root: int) -> GroupFacts:
    """The facts of the group with root task ``root``. Raises NotFoundError."""
    for _ in range(_TRIES):
        processes = read_tree(root)
        facts = surroundings.read(processes, sockdiag.read_sockets(processes))
        # A child that was forked after the tree was read is no stranger.
        sharers = [*facts.netns_sharers, *(holder for one in facts.nested for holder in one.sharers)]
        born = {holder.pid for holder in sharers} & set(tree_pids(root))
        if not born:
            break
    return facts


def _not_found(root: int) -> NotFoundError:
    return NotFoundError(
        f"There is no process {root}", code="process-not-found", hint="ckpt ps lists the groups that ckpt knows"
    )
