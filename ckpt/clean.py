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
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from ckpt import context, held, migrations, placed, registry, stop
from ckpt.errors import CkptError, NetworkError, NotFoundError
from ckpt.image import Reader
from ckpt.image.publish import PARTIAL
from ckpt.kernel import carried, datagrams, ending, link_remaps, lock, mntns, netns, outside, proc, remains, takedown
from ckpt.model.checkpoint import ConnectedDatagram
from ckpt.places import IMAGES
from ckpt.records import dataclass
from ckpt.registry import OperationEntry

CRIU_SECONDS = 15.0
"""How long a CRIU whose ckpt is gone is waited for. It notices when it next asks, between two steps of its work."""

HOLDER_SECONDS = 2.0
"""How long a lock may take to go with the ckpt that owned it."""

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
    # First of all what is another host's by now: until its tasks are gone, its lock has to stay.
    moved = () if dry_run else tuple(_moved(record) for record in migrations.end_committed())
    # Before the registry is locked: who wants to finish a dump or a restore shall not have to wait as well.
    dead = [work for work in registry.operations() if not work.alive]
    crius = {work.id: remains.wait_for_crius(_directories(work), timeout) for work in dead}
    for pid in filter(None, map(_living_task, dead)):
        remains.wait_for_dying(pid, timeout)
    with registry.locked():
        found = tuple(_Search(crius).found())
        return moved + tuple(_act(one, dry_run) for one in found)


def _moved(record: migrations.Migration) -> CleanAction:
    reason = f"it was committed to {record.peer}, and its ckpt died before it had ended it here"
    return CleanAction(kind="group", subject=record.group, done=True, reason=reason)


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


class _Search:
    """One look at the host. ``crius`` are the operations of dead ckpts, with the CRIUs that still work for each.

    The kernel is asked before the journal: what a living ckpt has made by then, it has written down before.
    """

    def __init__(self, crius: Mapping[str, remains.Crius]) -> None:
        self._links = {link.ifname for link in outside.links()}
        with _netns_of(os.getpid()) as own:
            self._locks = lock.find(own)
        operations = registry.operations()
        self._crius = [(work, crius[work.id]) for work in operations if work.id in crius and crius[work.id].pids]
        settled = {work.id for work in operations if work.id in crius and not crius[work.id].pids}
        # Of a restore nothing is lost when what hangs is ended; the tasks of a dump hang on their CRIU.
        settled |= {work.id for work, found in self._crius if found.stuck and work.kind == "restore"}
        self._dead = [work for work in operations if work.id in settled]
        # A ckpt that died just now counts as living: its CRIU was not waited for.
        self._living = [work for work in operations if work.id not in settled]
        self._entries = registry.entries()

    def found(self) -> Iterator[_Found]:
        """Everything that was left."""
        for work, crius in self._crius:
            if work in self._dead:
                for pid in crius.pids:
                    yield _half_restored(pid, _what(work))
                continue
            reason = f"still undoes the {_what(work)}; clean again when it has ended"
            yield _Found("CRIU", f"PID {', '.join(map(str, crius.pids))}", reason, None, stays=True)
        for work in self._dead:
            yield from self._operation(work)
        yield from self._locks_of_groups()
        yield from self._groups()
        # Their addresses go before the locks: the host would answer for what has no socket.
        yield from self._contexts()
        yield from self._locks_of_the_host()
        yield from self._bridges()
        yield from _migrations()
        yield from _placed()
        yield from _of_earlier_boots()
        yield from _files()

    # -- what the notes of dead ckpts name -------------------------------------------------------------------------

    def _operation(self, work: OperationEntry) -> Iterator[_Found]:
        what = _what(work)
        yield from self._task(work, what)
        yield from self._unresumed(work, what)
        if work.kind == "change" and work.group in context.names():
            end = partial(context.end_change, work.group)
            yield _Found("processes", f"of the context {work.group}", f"stood still: {what}", end)
        for pin in map(Path, work.texts("netns_pins")):
            yield from self._namespace(work, pin, what)
        for directory in _directories(work):
            yield from self._unfinished_images(directory, what)
            if directory.is_dir():
                yield _Found("directory", str(directory), what, partial(shutil.rmtree, directory))
        used = {link for entry in self._entries if entry.alive for link in entry.links}
        used |= {link for other in self._living for link in other.texts("links")}
        for ifname in work.texts("links"):
            if ifname in self._links - used:
                yield _Found("link", ifname, what, partial(outside.delete, ifname))
        yield _Found("note", work.id, what, partial(registry.forget, work.id))

    def _task(self, work: OperationEntry, what: str) -> Iterator[_Found]:
        """The group that was being dumped: if it runs, CRIU let it go on, and nothing of ours may be left on it."""
        pid = _living_task(work)
        if pid is None or any(other.number("task") == pid for other in self._living):
            return
        yield from _locks_of(pid, what)
        with contextlib.suppress(CkptError, OSError):
            processes = proc.read_tree(pid)
            if takedown.in_repair(processes):
                subject = f"of PID {pid}, in repair mode"
                yield _Found("connections", subject, what, partial(takedown.leave_repair, processes))
            for one in _disconnected(work, {process.pid for process in processes}):
                subject = f"of PID {one.pid} to {one.path}"
                yield _Found("connection", subject, f"dissolved: {what}", partial(datagrams.reconnect, [one]))
            for path in link_remaps.find(processes):
                yield _Found("file", str(path), what, partial(link_remaps.remove, [path]))
            if remains.is_covered(pid):
                yield _Found("mount", f"/proc of PID {pid}", what, partial(mntns.uncover, pid))

    def _unresumed(self, work: OperationEntry, what: str) -> Iterator[_Found]:
        """The group that was all but restored: without its CRIU, which is gone as well, it stands still for ever."""
        for entry in self._entries:
            if entry.alive and entry.pid in _unresumed(work):
                yield _half_restored(entry.pid, what)
                yield _Found("group", entry.name, f"half restored: {what}", partial(stop.clear, entry))

    def _namespace(self, work: OperationEntry, pin: Path, what: str) -> Iterator[_Found]:
        """The namespace that a dead ckpt has kept alive: unless a group lives in it, it goes as it would have gone."""
        inode = remains.netns_of_pin(pin)
        pids = remains.pids_in(inode) if inode is not None else ()
        roots = {entry.pid for entry in self._entries if entry.alive} - set(_unresumed(work))
        roots |= {pid for work in (*self._dead, *self._living) if (pid := _living_task(work)) is not None}
        dead = inode is not None and not {pid for root in roots for pid in proc.tree_pids(root)} & set(pids)
        if dead:
            for pid in pids if work.kind == "restore" else ():
                yield _half_restored(pid, what)
            for name in work.texts("netns_names"):
                if remains.netns_of_pin(takedown.NETNS_NAMES / name) == inode:
                    yield _Found("namespace", name, what, partial(takedown.unpin, [name]))
        if pin.exists():
            yield _Found("namespace", str(pin), what, partial(_take_down if dead else takedown.let_go, pin))

    def _unfinished_images(self, directory: Path, what: str) -> Iterator[_Found]:
        """The unfinished image beside a directory of CRIU's files: both carry the image's name."""
        stem = directory.name.rpartition(".criu-")[0]
        if any(other.name.startswith(f"{stem}.criu-") for work in self._living for other in _directories(work)):
            return
        unfinished = re.compile(re.escape(stem) + r"\.partial-[0-9a-f]+")
        for path in sorted(directory.parent.iterdir()) if directory.parent.is_dir() else ():
            if unfinished.fullmatch(path.name):
                yield _Found("unfinished image", str(path), what, partial(path.unlink, missing_ok=True))

    # -- what is found by its mark ---------------------------------------------------------------------------------

    def _locks_of_groups(self) -> Iterator[_Found]:
        """Locks in the namespaces of groups that nobody works on."""
        busy = {work.group for work in self._living}
        done = {work.number("task") for work in self._dead} | {pid for work in self._dead for pid in _unresumed(work)}
        for entry in self._entries:
            if entry.alive and entry.name not in busy and entry.pid not in done:
                yield from _locks_of(entry.pid, f"no ckpt works on {entry.name}")

    def _locks_of_the_host(self) -> Iterator[_Found]:
        """Locks in the host's namespace: kept while an image waits that needs them."""
        waiting = set()
        for one in held.held():
            waiting |= set(one.names)
            subject = f"{', '.join(one.names)} (host)"
            why = self._needless(one)
            if why is not None:
                yield _Found("lock", subject, why, partial(held.release, one.image_id))
            else:
                reason = f"keeps the peers of {one.image} waiting until it is restored"
                yield _Found("lock", subject, reason, None, stays=True)
        for name in () if self._living else self._locks:
            image = self._awaited_image(name)
            if image is not None and name not in waiting:
                reason = f"keeps the peers of {image} waiting until it is restored"
                hold = partial(held.hold, [name], image, _image_id(image))
                yield _Found("lock", f"{name} (host)", reason, hold, stays=True)
            elif name not in waiting:
                yield _Found("lock", f"{name} (host)", "no ckpt works here", partial(_unlock, os.getpid(), name))

    def _needless(self, one: held.HeldLock) -> str | None:
        """Why nobody needs a lock that was to wait for an image; None when somebody does."""
        for work in self._dead:
            if set(one.names) & set(work.texts("lock_tables")) and _living_task(work) is not None:
                return f"the group runs on: {_what(work)}"
            entry = registry.find(work.group)
            if entry is None or not entry.alive or entry.pid in _unresumed(work):
                continue
            if one.image_id in work.texts("image_id"):
                return f"the group is restored: {_what(work)}"
        if any(one.image_id in work.texts("image_id") for work in self._living):
            return None
        return None if _is_image(Path(one.image), one.image_id) else f"its image {one.image} is gone"

    def _awaited_image(self, name: str) -> Path | None:
        """The image that a dump had finished when its ckpt died, before it could note that the lock is to stay."""
        for work in self._dead:
            image = next(map(Path, work.texts("image")), None)
            committed = work.notes.get("committed") and _living_task(work) is None
            if committed and image is not None and name in work.texts("lock_tables"):
                return image if _is_image(image) else None
        return None

    def _groups(self) -> Iterator[_Found]:
        busy = {work.group for work in self._living}
        for entry in self._entries:
            if not entry.alive and entry.name not in busy:
                reason = f"its first process (PID {entry.pid}) is gone"
                yield _Found("group", entry.name, reason, partial(stop.clear, entry))

    def _contexts(self) -> Iterator[_Found]:
        """Contexts without a group, whole or half made, the addresses put on links for them, and what all stand on."""
        kept = {entry.context for entry in self._entries} | {work.group for work in self._living}
        names = context.names()
        for name in names:
            if name not in kept:
                yield _Found("context", name, "no group is in it", partial(context.discard, name))
        known = {given for entry in self._entries for given in entry.given}
        for work in self._dead:
            for given in sorted(set(work.texts("given")) - known):
                ifname, _, address = given.partition(" ")
                yield _Found("address", address, _what(work), partial(context.take_address, ifname, address))
        if not self._living and not names and context.has_floor():
            yield _Found("programs", "of contexts", "there is no context", context.release_floor)
        for claim in context.leaked_bookings() if not self._living else ():
            yield _Found("booking", str(claim), "no socket has it", partial(context.strike_booking, claim))

    def _bridges(self) -> Iterator[_Found]:
        """Bridges that ckpt made and nobody uses: no port, no address, no group."""
        used = {entry.bridge for entry in self._entries if entry.alive}
        used |= {bridge for work in self._living for bridge in work.texts("bridge")}
        going = {link for entry in self._entries if not entry.alive for link in entry.links}
        going |= {link for work in self._dead for link in work.texts("links")}
        addressed = {one.ifname for one in outside.addresses() if one.scope != "link"}
        for ifname in outside.made_bridges():
            if ifname not in used | addressed and not set(outside.ports(ifname)) - going:
                yield _Found("bridge", ifname, "made by ckpt, and unused", partial(outside.delete, ifname))


def _files() -> Iterator[_Found]:
    """Files of the registry that were being written, and logs that nobody has asked for."""
    for path in registry.unwritten():
        yield _Found("file", str(path), "its ckpt was killed while writing it", partial(path.unlink, True))
    for path in sorted(registry.state_dir().glob("*.log")):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LOG_SECONDS:
                yield _Found("log", str(path), "CRIU's, of a failure more than a day ago", partial(path.unlink, True))


def _migrations() -> Iterator[_Found]:
    """Moves that have not come to their end: what only the other host can tell is named, the rest goes."""
    for record in migrations.migrations():
        subject = f"{record.id} of {record.group}"
        resume = f"`ckpt migrate --resume {record.id}`"
        if record.role is migrations.Role.SOURCE:
            if not record.under_way:
                reason = f"{record.state}; {record.peer} does not know it, or we not how it ended: {resume}"
                yield _Found("migration", subject, reason, None, stays=True)
        elif record.under_way:
            if record.state is migrations.State.READY:
                reason = f"held until {record.peer} has its say: there {resume}, or here with --host"
                yield _Found("migration", subject, reason, None, stays=True)
        elif record.state is migrations.State.RUNNING or (record.state is migrations.State.TOLD and record.group_lives):
            reason = f"it ran here, and {record.peer} does not know it: there {resume}, or here with --host"
            yield _Found("migration", subject, reason, None, stays=True)
        else:
            forget = partial(migrations.forget, record.id, migrations.Role.TARGET)
            yield _Found("migration", subject, f"nothing of it is here, {record.peer} has it", forget)


def _placed() -> Iterator[_Found]:
    """Files of images that were put into their places, for groups that never ran; also before the host went down."""
    for journal in placed.left():
        reason = f"placed for {journal.group}, which was not restored to the end"
        for making in filter(carried.is_left, journal.files):
            yield _Found("file", making.path, reason, partial(carried.take_back, making))
        yield _Found("note", str(journal.path), reason, partial(placed.forget, journal))


def _of_earlier_boots() -> Iterator[_Found]:
    """What lay beside images when the host lost its power, and with it every note: it holds the memory of processes."""
    with contextlib.suppress(OSError):
        since = (registry.state_dir() / "lock").stat().st_mtime
        for path in sorted((*IMAGES.glob(".*"), *IMAGES.glob("migrations/.*"), *IMAGES.glob("placed/.*"))):
            ours = _DIRECTORY.fullmatch(path.name) or PARTIAL in path.name or path.parent != IMAGES
            if not ours or path.stat().st_mtime >= since or remains.is_held(path):
                continue
            end = partial(shutil.rmtree, path) if path.is_dir() else partial(path.unlink, missing_ok=True)
            yield _Found("directory" if path.is_dir() else "file", str(path), "left when the host went down", end)


def _half_restored(pid: int, what: str) -> _Found:
    return _Found("process", f"PID {pid}", f"half restored: {what}", partial(ending.end_tree, pid, timeout=0))


def _what(work: OperationEntry) -> str:
    return f"{work.kind} of {work.group}, whose ckpt (PID {work.pid}) is gone"


def _directories(work: OperationEntry) -> list[Path]:
    """The directories of CRIU's files that an operation has noted."""
    return [path for path in map(Path, work.texts("directories")) if _DIRECTORY.fullmatch(path.name)]


def _living_task(work: OperationEntry) -> int | None:
    """The root task of the group that was to be dumped, if it runs."""
    pid, started = work.number("task"), work.number("task_start_time")
    return pid if pid is not None and started is not None and registry.alive(pid, started) else None


def _unresumed(work: OperationEntry) -> Iterator[int]:
    """The root task of the group that a restore had complete, but not yet told to go on."""
    pid, started = work.number("restored"), work.number("restored_start_time")
    if pid is not None and started is not None and not work.notes.get("resumes") and registry.alive(pid, started):
        yield pid


def _disconnected(work: OperationEntry, pids: Collection[int]) -> Iterator[ConnectedDatagram]:
    """The datagram sockets of ``pids`` that a dump has disconnected for the time of its work."""
    for pid, fd, path in work.notes.get("disconnected", ()):
        if pid in pids:
            yield ConnectedDatagram(pid=pid, ns_pid=0, fd=fd, path=path)


def _locks_of(root: int, why: str) -> Iterator[_Found]:
    """The lock tables in the namespaces of their own that ``root`` and all below it are in."""
    for pid in remains.one_in_each_netns(proc.tree_pids(root)):
        with contextlib.suppress(CkptError), _netns_of(pid) as namespace:
            for name in lock.find(namespace):
                yield _Found("lock", f"{name} (PID {pid})", why, partial(_unlock, pid, name))


def _unlock(pid: int, name: str) -> None:
    deadline = time.monotonic() + HOLDER_SECONDS
    with _netns_of(pid) as namespace:
        while True:
            try:
                return lock.remove(namespace, name)
            except NetworkError:
                # The nft that held it for a ckpt which was killed just now is on its way out.
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.01)


@contextlib.contextmanager
def _netns_of(pid: int) -> Iterator[int]:
    namespace = netns.open_of(pid)
    try:
        yield namespace
    finally:
        os.close(namespace)


def _take_down(pin: Path) -> None:
    """End a namespace: its links first, or it would answer while the kernel takes it down."""
    namespace = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
    try:
        takedown.remove_links(namespace)
    finally:
        os.close(namespace)
    takedown.let_go(pin)


def _is_image(path: Path, wanted: str | None = None) -> bool:
    """Whether ``path`` is an image, with the id ``wanted`` if that is given."""
    with contextlib.suppress(CkptError):
        return wanted in (None, _image_id(path))
    return False


def _image_id(image: Path) -> str:
    with Reader(image) as reader:
        return reader.header.id
