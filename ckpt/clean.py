"""`ckpt clean`: find what a ckpt that was killed has left, and end it as that ckpt would have.

A ckpt writes down what it is about to make before it makes it (`registry.Operation`), so what is left of a dead one
is found by its note; a few things carry a mark of their own as well: the name of a lock table, the alias of a bridge,
the cover over a /proc. First a CRIU that a dead ckpt left at work is given the time to undo its work, which it does
by itself. Then everything is looked up, and only then is anything done, so that a dry run says what a real one does.

Work of a ckpt that lives is never touched, nor is anything that a living group or an image still needs: a group that
runs is only freed of what holds it, and a dump that was committed is finished.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckpt import held, registry, stop
from ckpt.errors import CkptError, NotFoundError
from ckpt.image import Reader
from ckpt.kernel import ending, lock, mntns, netns, outside, proc, remains, takedown
from ckpt.registry import OperationEntry

CRIU_SECONDS = 15.0
"""How long a CRIU whose ckpt is gone is waited for. It notices when it next asks, between two steps of its work."""

LOG_SECONDS = 24 * 3600.0
"""How long CRIU's log of a failure is kept."""

_DIRECTORY = re.compile(r"\..+\.criu-[A-Za-z0-9_]+")
"""The name of the directory beside an image that only a dump or a restore under way has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanAction:
    """One thing that was found. ``done`` says whether it is gone now; with a dry run, whether it would be."""

    kind: str
    subject: str
    done: bool
    reason: str


@dataclass(frozen=True, slots=True)
class _Found:
    """Something that was left; ``end`` does away with it, or puts it in order when it ``stays``."""

    kind: str
    subject: str
    reason: str
    end: Callable[[], object] | None
    stays: bool = False


def clean(*, dry_run: bool = False) -> tuple[CleanAction, ...]:
    """Take away what dead ckpts have left on this host; with ``dry_run`` only say what that is."""
    timeout = 0.0 if dry_run else CRIU_SECONDS
    # Before the registry is locked: who wants to finish a dump or a restore shall not have to wait as well.
    busy = {work.id: remains.wait_for_crius(_directories(work), timeout) for work in _dead()}
    with registry.locked():
        found = tuple(_find({work: pids for work, pids in busy.items() if pids}))
        return tuple(_act(one, dry_run) for one in found)


def _act(found: _Found, dry_run: bool) -> CleanAction:
    """A failure is said, and does not keep the rest from being done."""
    done, reason = not found.stays, found.reason
    if found.end is not None and not dry_run:
        try:
            found.end()
        except NotFoundError:
            pass  # It went by itself meanwhile.
        except (CkptError, OSError) as error:
            done, reason = False, f"{reason}; it stays: {error}"
    return CleanAction(kind=found.kind, subject=found.subject, done=done, reason=reason)


def _find(busy: dict[str, tuple[int, ...]]) -> Iterator[_Found]:
    """Everything that was left; ``busy`` are the dead operations whose CRIU still works."""
    dead = []
    for work in _dead():
        if work.id not in busy:
            dead.append(work)
            continue
        pids = ", ".join(map(str, busy[work.id]))
        yield _Found(
            "CRIU", f"PID {pids}", f"still undoes the {_what(work)}; clean again when it has ended", None, stays=True
        )
    with remains.locked_namespaces({name for work in dead for name in work.texts("lock_tables")}) as namespaces:
        for work in dead:
            yield from _operation(work, [one for one in namespaces if set(one.locks) & set(work.texts("lock_tables"))])
    yield from _locks_of_groups()
    yield from _locks_of_the_host(dead)
    yield from _groups()
    yield from _bridges(dead)
    yield from _files()


def _dead() -> list[OperationEntry]:
    return [work for work in registry.operations() if not work.alive]


def _living() -> list[OperationEntry]:
    return [work for work in registry.operations() if work.alive]


def _what(work: OperationEntry) -> str:
    return f"{work.kind} of {work.group}, whose ckpt (PID {work.pid}) is gone"


def _directories(work: OperationEntry) -> list[Path]:
    """The directories of CRIU's files that an operation has noted."""
    return [path for path in map(Path, work.texts("directories")) if _DIRECTORY.fullmatch(path.name)]


# -- what the notes of dead ckpts name -----------------------------------------------------------------------------


def _operation(work: OperationEntry, namespaces: list[remains.LockedNamespace]) -> Iterator[_Found]:
    what = _what(work)
    yield from _task(work, what)
    for namespace in namespaces:
        yield from _namespace(namespace, what)
    for directory in _directories(work):
        yield from _partial_images(directory, what)
        if directory.is_dir():
            yield _Found("directory", str(directory), what, partial(shutil.rmtree, directory))
    used = {link for entry in registry.entries() if entry.alive for link in entry.links}
    used |= {link for other in _living() for link in other.texts("links")}
    for ifname in work.texts("links"):
        if ifname not in used and outside.find(ifname):
            yield _Found("link", ifname, what, partial(outside.delete, ifname))
    for name in work.texts("netns_names"):
        if remains.is_empty_pin(takedown.NETNS_NAMES / name):
            yield _Found("namespace", name, f"a name without a namespace: {what}", partial(takedown.unpin, [name]))
    yield _Found("note", work.id, what, partial(registry.forget, work.id))


def _task(work: OperationEntry, what: str) -> Iterator[_Found]:
    """The group that was being dumped: if it runs, CRIU let it go on, and nothing of ours may be left on it."""
    pid, started = work.number("task"), work.number("task_start_time")
    if pid is None or started is None or not registry.alive(pid, started):
        return
    if any(other.number("task") == pid for other in _living()):
        return
    yield from _locks_of(pid, what)
    with contextlib.suppress(CkptError, OSError):
        processes = proc.read_tree(pid)
        if takedown.in_repair(processes):
            subject = f"connections of PID {pid}"
            yield _Found("repair mode", subject, what, partial(takedown.leave_repair, processes))
        if remains.is_covered(pid):
            yield _Found("mount", f"/proc of PID {pid}", what, partial(mntns.uncover, pid))


def _locks_of(pid: int, why: str) -> Iterator[_Found]:
    """The lock tables in the namespace of its own that ``pid`` is in."""
    try:
        namespace = netns.open_of(pid)
    except CkptError:
        return
    try:
        if not remains.is_in(namespace, os.getpid()):
            for name in lock.find(namespace):
                yield _Found("lock", f"{name} (PID {pid})", why, partial(_unlock, pid, name))
    finally:
        os.close(namespace)


def _unlock(pid: int, name: str) -> None:
    namespace = netns.open_of(pid)
    try:
        lock.remove(namespace, name)
    finally:
        os.close(namespace)


def _namespace(namespace: remains.LockedNamespace, what: str) -> Iterator[_Found]:
    """A namespace that a dead ckpt had locked, and in which no group lives: it goes as it would have gone."""
    if any(entry.alive and entry.pid in namespace.pids for entry in registry.entries()):
        return
    if any(remains.is_in(namespace.descriptor, task) for task in _tasks_of_dumps()):
        return
    for pid in namespace.pids:
        yield _Found("process", f"PID {pid}", f"half restored: {what}", partial(ending.end_tree, pid, timeout=0))
    for name in namespace.pins:
        # Its links go first: the kernel takes a namespace down some time after its name.
        yield _Found("namespace", name, what, partial(_take_down, name))


def _tasks_of_dumps() -> Iterator[int]:
    """The root tasks of groups that somebody dumps, or was dumping, and that run."""
    for work in registry.operations():
        pid, started = work.number("task"), work.number("task_start_time")
        if pid is not None and started is not None and registry.alive(pid, started):
            yield pid


def _take_down(name: str) -> None:
    namespace = os.open(takedown.NETNS_NAMES / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        takedown.remove_links(namespace)
    finally:
        os.close(namespace)
    takedown.unpin([name])


def _partial_images(directory: Path, what: str) -> Iterator[_Found]:
    """The unfinished image beside a directory of CRIU's files: both carry the image's name."""
    stem = directory.name.rpartition(".criu-")[0]
    if any(other.name.startswith(f"{stem}.criu-") for work in _living() for other in _directories(work)):
        return
    unfinished = re.compile(re.escape(stem) + r"\.partial-[0-9a-f]+")
    for path in sorted(directory.parent.iterdir()) if directory.parent.is_dir() else ():
        if unfinished.fullmatch(path.name):
            yield _Found("unfinished image", str(path), what, partial(path.unlink, missing_ok=True))


# -- what is found by its mark -------------------------------------------------------------------------------------


def _locks_of_groups() -> Iterator[_Found]:
    """Locks in the namespaces of groups that nobody works on."""
    busy = {work.group for work in _living()}
    done = {work.number("task") for work in _dead()}
    for entry in registry.entries():
        if entry.alive and entry.name not in busy and entry.pid not in done:
            yield from _locks_of(entry.pid, f"no ckpt works on {entry.name}")


def _locks_of_the_host(dead: list[OperationEntry]) -> Iterator[_Found]:
    """Locks in the host's namespace: kept while an image waits that needs them."""
    waiting = set()
    for one in held.held():
        subject = f"{', '.join(one.names)} (host)"
        waiting |= set(one.names)
        if _is_image(Path(one.image), one.image_id):
            yield _Found(
                "lock", subject, f"keeps the peers of {one.image} waiting until it is restored", None, stays=True
            )
        else:
            yield _Found("lock", subject, f"its image {one.image} is gone", partial(held.release, one.image_id))
    if _living():
        return
    own = netns.open_own()
    try:
        found = [name for name in lock.find(own) if name not in waiting]
    finally:
        os.close(own)
    for name in found:
        image = _awaited_image(name, dead)
        if image is None:
            yield _Found("lock", f"{name} (host)", "no ckpt works here", partial(_unlock, os.getpid(), name))
            continue
        reason = f"keeps the peers of {image} waiting until it is restored"
        hold = partial(held.hold, [name], image, _image_id(image))
        yield _Found("lock", f"{name} (host)", reason, hold, stays=True)


def _awaited_image(name: str, dead: list[OperationEntry]) -> Path | None:
    """The image that a dump had finished when its ckpt died, before it could note that the lock is to stay."""
    for work in dead:
        image = next(map(Path, work.texts("image")), None)
        pid, started = work.number("task"), work.number("task_start_time")
        gone = pid is not None and started is not None and not registry.alive(pid, started)
        if gone and image is not None and work.notes.get("committed") and name in work.texts("lock_tables"):
            return image if _is_image(image) else None
    return None


def _is_image(path: Path, wanted: str | None = None) -> bool:
    """Whether ``path`` is an image, with the id ``wanted``."""
    with contextlib.suppress(CkptError):
        return wanted in (None, _image_id(path))
    return False


def _image_id(image: Path) -> str:
    with Reader(image) as reader:
        return reader.header.id


def _groups() -> Iterator[_Found]:
    busy = {work.group for work in _living()}
    for entry in registry.entries():
        if not entry.alive and entry.name not in busy:
            reason = f"its first process (PID {entry.pid}) is gone"
            yield _Found("group", entry.name, reason, partial(stop.clear, entry))


def _bridges(dead: list[OperationEntry]) -> Iterator[_Found]:
    """Bridges that ckpt made and nobody uses: no port, no address, no group."""
    used = {entry.bridge for entry in registry.entries() if entry.alive}
    used |= {bridge for work in _living() for bridge in work.texts("bridge")}
    going = {link for entry in registry.entries() if not entry.alive for link in entry.links}
    going |= {link for work in dead for link in work.texts("links")}
    for ifname in outside.made_bridges():
        left = set(outside.ports(ifname)) - going
        addressed = any(one.ifname == ifname and one.scope != "link" for one in outside.addresses())
        if ifname not in used and not left and not addressed:
            yield _Found("bridge", ifname, "made by ckpt, and unused", partial(outside.delete, ifname))


def _files() -> Iterator[_Found]:
    """Files of the registry that were being written, and logs that nobody has asked for."""
    for path in registry.unwritten():
        yield _Found("file", str(path), "its ckpt was killed while writing it", partial(path.unlink, True))
    for path in sorted(registry.state_dir().glob("*.log")):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LOG_SECONDS:
                yield _Found("log", str(path), "CRIU's log of a failure, a day old", partial(path.unlink, True))
