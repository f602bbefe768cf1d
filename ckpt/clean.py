"""`ckpt clean`: find what a ckpt that was killed has left, and end it as that ckpt would have.

A ckpt writes down what it is about to make before it makes it (`registry.Operation`), so what is left of a dead one
is found by its note, and what is not noted anywhere is found by its mark: the name of a lock table, the alias of a
bridge, the cover over a /proc. Work of a ckpt that lives is never touched, nor is anything that a living group or an
image still needs. What comes out of it is one action for each thing found, done or not, with its reason.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckpt import held, registry, stop
from ckpt.errors import CkptError, NotFoundError
from ckpt.kernel import lock, mntns, netns, outside, proc, takedown

_OURS = re.compile(r"\..+\.criu-[A-Za-z0-9_]+|\..+\.partial-[0-9a-f]+")
"""The names of the directories and files beside an image that only a dump or a restore under way has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanAction:
    """One thing that was found. ``done`` says whether it is gone now; with a dry run, whether it would be."""

    kind: str
    subject: str
    done: bool
    reason: str


def clean(*, dry_run: bool = False) -> tuple[CleanAction, ...]:
    """Take away what dead ckpts have left on this host; with ``dry_run`` only say what that is."""
    with registry.locked():
        return (
            *_operations(dry_run),
            *_locks_of_groups(dry_run),
            *_held_locks(dry_run),
            *_own_locks(dry_run),
            *_groups(dry_run),
            *_bridges(dry_run),
        )


def _operations(dry_run: bool) -> Iterator[CleanAction]:
    """What the notes of dead ckpts name."""
    for work in registry.operations():
        if work.alive:
            continue
        what = f"{work.kind} of {work.group}, whose ckpt (PID {work.pid}) is gone"
        yield from _task(work, what, dry_run)
        for directory in map(Path, work.texts("directories")):
            if _OURS.fullmatch(directory.name) and directory.is_dir():
                yield _act("directory", str(directory), what, dry_run, lambda path=directory: shutil.rmtree(path))
            yield from _partial_images(directory, what, dry_run)
        yield from _links(work, what, dry_run)
        if not dry_run:
            registry.forget(work.id)


def _task(work: registry.OperationEntry, what: str, dry_run: bool) -> Iterator[CleanAction]:
    """The group that was being worked on: if it runs, CRIU let it go on, and nothing of ours may be left on it."""
    pid, started = work.number("task"), work.number("task_start_time")
    if pid is None or started is None or not registry.alive(pid, started):
        return
    if any(other.alive and other.number("task") == pid for other in registry.operations()):
        return
    yield from _unlock(pid, what, dry_run)
    with contextlib.suppress(CkptError, OSError):
        if not dry_run and takedown.leave_repair(proc.read_tree(pid)):
            yield CleanAction(kind="connections", subject=f"PID {pid}", done=True, reason=f"in repair mode: {what}")
        if not dry_run and mntns.uncover(pid):
            yield CleanAction(kind="mount", subject=f"/proc of PID {pid}", done=True, reason=what)


def _unlock(pid: int, why: str, dry_run: bool) -> Iterator[CleanAction]:
    """The lock tables in the namespace of its own that ``pid`` is in."""
    try:
        namespace = netns.open_of(pid)
    except CkptError:
        return
    try:
        if netns.inode(namespace) == os.stat("/proc/self/ns/net").st_ino:
            return
        for name in lock.find(namespace):
            yield _act("lock", f"{name} (PID {pid})", why, dry_run, lambda name=name: lock.remove(namespace, name))
    finally:
        os.close(namespace)


def _partial_images(directory: Path, what: str, dry_run: bool) -> Iterator[CleanAction]:
    """The unfinished image beside a directory of CRIU's files: both carry the image's name."""
    stem = directory.name.rpartition(".criu-")[0]
    for path in directory.parent.glob(f"{stem}.partial-*") if stem else ():
        if _OURS.fullmatch(path.name):
            yield _act("unfinished image", str(path), what, dry_run, lambda path=path: path.unlink(missing_ok=True))


def _links(work: registry.OperationEntry, what: str, dry_run: bool) -> Iterator[CleanAction]:
    known = {link for entry in registry.entries() if entry.alive for link in entry.links}
    for ifname in work.texts("links"):
        if ifname not in known and outside.find(ifname):
            yield _act("link", ifname, what, dry_run, lambda ifname=ifname: outside.delete(ifname))


def _locks_of_groups(dry_run: bool) -> Iterator[CleanAction]:
    """Locks in the namespaces of groups that nobody works on."""
    busy = {work.group for work in registry.operations() if work.alive}
    for entry in registry.entries():
        if entry.alive and entry.name not in busy:
            yield from _unlock(entry.pid, f"no ckpt works on {entry.name}", dry_run)


def _held_locks(dry_run: bool) -> Iterator[CleanAction]:
    """Locks that wait for an image: kept as long as there is one."""
    for one in held.held():
        subject = f"{', '.join(one.names)} (host)"
        if Path(one.image).exists():
            reason = f"keeps the peers of {one.image} waiting until it is restored"
            yield CleanAction(kind="lock", subject=subject, done=False, reason=reason)
        else:
            yield _act(
                "lock", subject, f"its image {one.image} is gone", dry_run, lambda one=one: held.release(one.image_id)
            )


def _own_locks(dry_run: bool) -> Iterator[CleanAction]:
    """Locks in the host's namespace that no image and no living ckpt needs."""
    if any(work.alive for work in registry.operations()):
        return
    waiting = {name for one in held.held() for name in one.names}
    own = netns.open_own()
    try:
        for name in lock.find(own):
            if name not in waiting:
                yield _act(
                    "lock", f"{name} (host)", "no ckpt works here", dry_run, lambda name=name: lock.remove(own, name)
                )
    finally:
        os.close(own)


def _groups(dry_run: bool) -> Iterator[CleanAction]:
    for entry in registry.entries():
        if not entry.alive:
            reason = f"its root task (PID {entry.pid}) is gone"
            yield _act("group", entry.name, reason, dry_run, lambda entry=entry: stop.clear(entry))


def _bridges(dry_run: bool) -> Iterator[CleanAction]:
    """Bridges that ckpt made and nobody uses: no port, no address, no group or image that would need them."""
    used = {entry.bridge for entry in registry.entries() if entry.alive or dry_run}
    used |= {note for work in registry.operations() if work.alive for note in work.texts("bridge")}
    for ifname in outside.made_bridges():
        if ifname in used or outside.is_in_use(ifname):
            continue
        yield _act("bridge", ifname, "made by ckpt, and unused", dry_run, lambda ifname=ifname: outside.delete(ifname))


def _act(kind: str, subject: str, reason: str, dry_run: bool, work: object) -> CleanAction:
    """Do ``work`` unless this is a dry run; a failure is said, and does not keep the rest from being done."""
    if not dry_run:
        try:
            assert callable(work)
            work()
        except NotFoundError:
            pass
        except (CkptError, OSError) as error:
            return CleanAction(kind=kind, subject=subject, done=False, reason=f"{reason}; it stays: {error}")
    return CleanAction(kind=kind, subject=subject, done=True, reason=reason)
