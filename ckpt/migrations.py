"""What each side of a migration has written down of it, and what the source's record decides.

One small JSON file for each migration and side, in ``/var/lib/ckpt/migrations``: unlike the registry it outlives a
reboot, because what was committed stays committed. A record is put into its place whole, and synced with its
directory, *before* what it announces is done. The states and the rules by which the source decides are those of
docs/migration.md; `decide` is where they are carried out. A verdict for a target that holds is a file beside its
record, made once and never changed; the ckpt that holds looks for it.

Nothing here speaks to another host.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any

from ckpt import held, registry
from ckpt.errors import CkptError, NotFoundError, RefusedError, StorageError
from ckpt.kernel import durable, ending, proc, takedown
from ckpt.model.process import FileKind
from ckpt.places import IMAGES
from ckpt.records import dataclass

POLL_SECONDS = 0.05

_ID = re.compile(r"[0-9a-f]{12}")


class Role(enum.StrEnum):
    """Which side a record is of."""

    SOURCE = "source"
    TARGET = "target"


class State(enum.StrEnum):
    """The states of docs/migration.md; the first four are a source's, the others a target's."""

    PREPARED = "prepared"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled-back"
    DONE = "done"
    RECEIVING = "receiving"
    READY = "ready"
    TOLD = "told"
    RUNNING = "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task by its PID and its start time, in clock ticks after boot."""

    pid: int
    start_time: int

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return registry.alive(self.pid, self.start_time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One side's record. ``peer`` is the other host, as its user called it.

    ``owner`` is the ckpt that works on it, ``root`` the group's root task on this side, ``tasks`` are all of them (of
    the source, as of the commit). ``image`` is where the source keeps the image. ``boot`` is the boot of all these
    numbers.
    """

    id: str
    role: Role
    state: State
    group: str
    peer: str
    owner: Task
    root: Task | None = None
    tasks: tuple[Task, ...] = ()
    image: str | None = None
    boot: str = field(default_factory=lambda: boot_id())
    started: float = field(default_factory=time.time)

    @property
    def same_boot(self) -> bool:
        """Whether the PIDs in it mean anything."""
        return self.boot == boot_id()

    @property
    def under_way(self) -> bool:
        """Whether the ckpt that works on it lives."""
        return self.same_boot and self.owner.alive

    @property
    def group_lives(self) -> bool:
        """Whether the group's root task runs on this side."""
        return self.same_boot and self.root is not None and self.root.alive

    @property
    def whole_image(self) -> Path | None:
        """The image on the source's disk; one that is there is whole."""
        return Path(self.image) if self.image and Path(self.image).exists() else None


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def new_id() -> str:
    """An id for a migration that nobody else has."""
    return secrets.token_hex(6)


def ourselves() -> Task:
    """This process."""
    return Task(pid=os.getpid(), start_time=registry.start_time(os.getpid()) or 0)


def directory() -> Path:
    """Where the records are, made when it is not there, for its owner alone."""
    path = IMAGES / "migrations"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be made", code="migration-unwritable", details=str(error)) from error
    return path


def store(migration: Migration) -> None:
    """Put a record into its place; on return it outlives a loss of power. StorageError leaves the earlier one."""
    _put(_path(migration.id, migration.role), json.dumps(asdict(migration), indent=1))


def advance(migration: Migration, state: State, **changes: Any) -> Migration:
    """The record in its next state, stored."""
    changed = replace(migration, state=state, **changes)
    store(changed)
    return changed


def find(migration: str, role: Role) -> Migration | None:
    """The record of a side, or None."""
    if _ID.fullmatch(migration) is None:
        return None
    try:
        raw = json.loads(_path(migration, role).read_bytes())
        return _decode(raw)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"the record of the migration {migration} is damaged", code="migration-damaged", details=str(error)
        ) from error


def get(migration: str) -> Migration:
    """The record of either side, the source's first; NotFoundError."""
    found = find(migration, Role.SOURCE) or find(migration, Role.TARGET)
    if found is None:
        raise NotFoundError(
            f"no migration {migration} is known here", code="migration-unknown", hint="`ckpt migrate --list` shows them"
        )
    return found


def migrations() -> tuple[Migration, ...]:
    """Every record of this host, oldest first."""
    names = [path.stem.split(".") for path in (IMAGES / "migrations").glob("*.json")]
    found = (find(name[0], Role(name[1])) for name in names if len(name) == 2 and name[1] in list(Role))
    return tuple(sorted((one for one in found if one is not None), key=lambda one: one.started))


def forget(migration: str, role: Role) -> None:
    """Remove the record of a side, and its verdict. Again is nothing."""
    _path(migration, role).unlink(missing_ok=True)
    if role is Role.TARGET:
        _verdict_path(migration).unlink(missing_ok=True)


# -- the source decides ------------------------------------------------------------------------------------------------


def decide(migration: str, *, holds: bool) -> tuple[bool, Migration]:
    """Whether the target shall go on, by the source's record; what it decides it has written down on return.

    ``holds``: whether the target holds the group. Raises RefusedError (`migration-under-way`), NotFoundError.
    """
    with _locked():
        record = find(migration, Role.SOURCE)
        if record is None:
            raise NotFoundError(
                f"the source has no record of the migration {migration}",
                code="migration-unknown",
                details="it has never committed it, or has forgotten it since it was done",
            )
        if record.state is State.PREPARED:
            if record.under_way:
                raise RefusedError(
                    f"the migration {migration} is under way",
                    code="migration-under-way",
                    details=f"the ckpt with PID {record.owner.pid} works on it",
                    hint="wait until that is done",
                )
            late = holds and not record.group_lives
            record = advance(record, State.COMMITTED if late else State.ROLLED_BACK)
        return record.state is not State.ROLLED_BACK, record


def end_committed() -> tuple[Migration, ...]:
    """End what still runs here of groups that were committed to another host; the migrations that had something left.

    Their ckpt died between the commit and the kill; their lock is in place, so nobody has noticed anything of them.
    """
    ended = []
    for record in migrations():
        if record.role is Role.SOURCE and record.state is State.COMMITTED and not record.under_way and record.same_boot:
            alive = [task for task in record.tasks if task.alive]
            # No FIN, not even into the lock: in the host's network an orphaned connection would go on trying.
            takedown.enter_repair([place for task in alive for place in _sockets(task.pid)])
            for task in alive:
                ending.end_tree(task.pid, timeout=0)
            ended += [record] if alive else []
    return tuple(ended)


def _sockets(pid: int) -> Iterator[tuple[int, int]]:
    """The descriptors of a task's sockets, as far as they can be read."""
    with contextlib.suppress(CkptError, OSError):
        for process in proc.read_tree(pid):
            yield from ((process.pid, file.fd) for file in process.files if file.kind is FileKind.SOCKET)


def take_away_image(record: Migration) -> None:
    """The group runs on the target: its image is of the past, and so is the lock that waited for it (`ckpt.held`)."""
    if record.image is not None:
        Path(record.image).unlink(missing_ok=True)
        for one in held.held():
            if one.image == record.image:
                held.release(one.image_id)


# -- the target is told ------------------------------------------------------------------------------------------------


def tell(migration: str, *, go: bool) -> None:
    """Give the ckpt that holds a group its verdict; the first one counts."""
    _put(_verdict_path(migration), "go" if go else "give up", new=True)


def verdict(migration: str) -> bool | None:
    """What was told; None as long as nothing was."""
    with contextlib.suppress(FileNotFoundError):
        return _verdict_path(migration).read_text() == "go"
    return None


# -- files -------------------------------------------------------------------------------------------------------------


def _path(migration: str, role: Role) -> Path:
    return _named(migration, f"{role}.json")


def _verdict_path(migration: str) -> Path:
    return _named(migration, "verdict")


def _named(migration: str, suffix: str) -> Path:
    """A file of a migration; its id may come from another host, and is never taken for a path."""
    if _ID.fullmatch(migration) is None:
        raise NotFoundError(f"{migration!r} is no migration", code="migration-unknown")
    return IMAGES / "migrations" / f"{migration}.{suffix}"


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    descriptor = os.open(directory() / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _put(path: Path, text: str, *, new: bool = False) -> None:
    """Make the file ``path``, whole and synced; with ``new`` one that is there stays as it is."""
    directory()
    try:
        durable.put(path, text, new=new)
    except OSError as error:
        raise StorageError(f"{path} cannot be written", code="migration-unwritable", details=str(error)) from error


def _decode(raw: Mapping[str, Any]) -> Migration:
    known = {item.name for item in fields(Migration)}
    values = {key: value for key, value in raw.items() if key in known}
    values |= {"role": Role(raw["role"]), "state": State(raw["state"]), "owner": Task(**raw["owner"])}
    values["root"] = Task(**raw["root"]) if raw.get("root") else None
    values["tasks"] = tuple(Task(**one) for one in raw.get("tasks", ()))
    return Migration(**values)
