"""What ckpt remembers on this host: the groups it started or restored, and the work it has under way.

Both are small JSON files below ``/run/ckpt`` (``CKPT_STATE_DIR`` moves it), gone after a reboot as the processes are:
``groups/NAME.json`` for each group and ``ops/ID.json`` for each operation. A file appears whole or not at all, and
who changes one holds the directory's lock. A PID is never trusted alone: next to it stands the start time of the
task, so that a PID that the kernel gave away again is not taken for the group.

An operation writes down what it is about to make *before* it makes it, and removes its file when nothing is left
over. A file whose ckpt is dead therefore tells ``ckpt clean`` where to look. Nothing here touches a process, a link
or an image.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckpt.errors import ExistsError, NotFoundError, PermissionDeniedError, StorageError
from ckpt.kernel.procfs import read_stat
from ckpt.records import dataclass

# The depth to which this process holds the lock: `add` locks for itself, and `run` locks round several steps. The
# lock of the file is the process's, so that its threads take turns by one of their own.
_turn = threading.RLock()
_held = 0

_BESIDE = re.compile(r"\..+\.json\.(\d+)-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEntry:
    """A group known to this host.

    ``pid`` is the root task as the host sees it and ``start_time`` its start in clock ticks after boot. ``links``
    are the ends of its links that lie in the host's namespace; ``bridge_made`` says that ckpt made ``bridge``;
    ``parent`` is the host's link below a macvlan. ``context`` names the IP-set context that the group is confined by,
    and ``given`` the addresses that ckpt put on links of the host for it (``eth0 10.0.0.5/24``). Times are seconds
    since the epoch.
    """

    name: str
    pid: int
    start_time: int
    isolation: str
    netns: int | None = None
    links: tuple[str, ...] = ()
    bridge: str | None = None
    bridge_made: bool = False
    parent: str | None = None
    addresses: tuple[str, ...] = ()
    context: str | None = None
    given: tuple[str, ...] = ()
    root_may_leave: bool = False
    log: str | None = None
    command: tuple[str, ...] = ()
    created: float = field(default_factory=time.time)
    restored_from: str | None = None

    @property
    def alive(self) -> bool:
        """Whether the root task still runs."""
        return alive(self.pid, self.start_time)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationEntry:
    """Work that a ckpt has, or had, under way: ``pid`` and ``start_time`` are that ckpt's own.

    ``notes`` name what it may leave behind. The keys in use are ``directories``, ``links``, ``lock_tables`` (tuples
    of str), ``bridge`` (str), ``netns_pins`` (files that namespaces are bound to), ``task`` with ``task_start_time``
    (the root of a group that is being dumped), ``restored`` with ``restored_start_time`` (that of one being restored,
    as soon as it is complete), and ``resumes`` (bool: it needs nobody any more).
    """

    id: str
    kind: str
    group: str
    pid: int
    start_time: int
    started: float
    notes: Mapping[str, Any]

    @property
    def alive(self) -> bool:
        """Whether the ckpt that does the work still runs."""
        return alive(self.pid, self.start_time)

    def texts(self, key: str) -> tuple[str, ...]:
        """The note ``key`` as a tuple of str; one str counts as a tuple of one, a missing note as none."""
        value = self.notes.get(key)
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else tuple(str(item) for item in value)

    def number(self, key: str) -> int | None:
        """The note ``key`` as an int, or None."""
        value = self.notes.get(key)
        return value if isinstance(value, int) else None


def state_dir() -> Path:
    """The directory that holds the registry."""
    return Path(os.environ.get("CKPT_STATE_DIR") or "/run/ckpt")


def start_time(pid: int) -> int | None:
    """When task ``pid`` started, in clock ticks after boot; None when there is no such task or it is a zombie."""
    stat = read_stat(pid)
    return None if stat is None or stat.state in ("Z", "X") else stat.start_time


def alive(pid: int, started: int) -> bool:
    """Whether task ``pid`` runs and is the one that started at ``started``."""
    return start_time(pid) == started


@contextmanager
def locked() -> Iterator[None]:
    """Hold the registry against every other ckpt; may be nested."""
    global _held
    with _turn, ExitStack() as stack:
        if not _held:
            descriptor = os.open(directory("") / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        _held += 1
        try:
            yield
        finally:
            _held -= 1


def add(entry: GroupEntry, *, replace: bool = False) -> None:
    """Make ``entry`` known; ExistsError when its name is that of another group, unless ``replace``."""
    with locked():
        if not replace:
            require_free(entry.name)
        write(directory("groups") / f"{entry.name}.json", asdict(entry))


def require_free(name: str) -> None:
    """ExistsError when a group is called ``name``, whether it runs or has exited."""
    taken = find(name)
    if taken is None:
        return
    state = f"runs as PID {taken.pid}" if taken.alive else "has exited and was not yet cleared away"
    raise ExistsError(
        f"a group named {name} is there already",
        code="group-exists",
        details=f"it {state}",
        hint=f"choose another --name, or `ckpt stop {name}` first",
    )


def find(name: str) -> GroupEntry | None:
    """The group called ``name``, or None."""
    if not name or "/" in name or name.startswith("."):
        return None
    raw = _read(state_dir() / "groups" / f"{name}.json")
    return None if raw is None else _decode_group(raw)


def get(name: str) -> GroupEntry:
    """The group called ``name``; NotFoundError names those that are called almost so.

    A group that another ckpt is starting just now is waited for: it holds the lock until the group's command runs.
    """
    with locked():
        entry = find(name)
    if entry is None:
        known = [other.name for other in entries()]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        raise NotFoundError(
            f"no group is named {name}",
            code="group-unknown",
            hint=f"did you mean {' or '.join(near)}?" if near else "`ckpt ps` lists the groups of this host",
        )
    return entry


def by_pid(pid: int) -> GroupEntry | None:
    """The living group whose root task is ``pid``, or None."""
    return next((entry for entry in entries() if entry.pid == pid and entry.alive), None)


def entries() -> tuple[GroupEntry, ...]:
    """Every group known to this host, exited ones too, by name."""
    found = (_read(path) for path in sorted((state_dir() / "groups").glob("*.json")))
    return tuple(_decode_group(raw) for raw in found if raw is not None)


def remove(name: str, *, pid: int | None = None) -> bool:
    """Forget the group called ``name`` (with ``pid``, only while that is its root task); say whether it was there."""
    with locked():
        entry = find(name)
        if entry is None or (pid is not None and entry.pid != pid):
            return False
        (state_dir() / "groups" / f"{name}.json").unlink(missing_ok=True)
        return True


class Operation:
    """Work under way on ``group``, written down so that ``ckpt clean`` finds what a crash leaves.

    As a context manager it ends with its body, also when the body raises: by then the body's own undo has run. When
    undo itself failed, call ``abandon`` and the file stays, for ``ckpt clean`` to go by once this process is gone.
    """

    def __init__(self, kind: str, group: str = "") -> None:
        self._entry = OperationEntry(
            id=f"{kind}-{os.getpid()}-{secrets.token_hex(4)}",
            kind=kind,
            group=group,
            pid=os.getpid(),
            start_time=start_time(os.getpid()) or 0,
            started=time.time(),
            notes={},
        )
        self._notes: dict[str, Any] = {}
        self._abandoned = False

    @property
    def id(self) -> str:
        return self._entry.id

    def note(self, **notes: object) -> None:
        """Write ``notes`` down, each in place of an earlier one of its key; on disk when this returns."""
        self._notes.update(notes)
        self._store()

    def abandon(self) -> None:
        """Let the file stay: something that it names is still there."""
        self._abandoned = True

    def __enter__(self) -> Self:
        self._store()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._abandoned:
            forget(self.id)

    def _store(self) -> None:
        write(directory("ops") / f"{self.id}.json", asdict(self._entry) | {"notes": self._notes})


def operations() -> tuple[OperationEntry, ...]:
    """Every operation written down, of living and of dead ckpts, in the order of their start."""
    found = (_read(path) for path in (state_dir() / "ops").glob("*.json"))
    return tuple(sorted((_decode_operation(raw) for raw in found if raw is not None), key=lambda entry: entry.started))


def forget(operation: str) -> None:
    """Remove the file of the operation with this id."""
    (state_dir() / "ops" / f"{operation}.json").unlink(missing_ok=True)


def directory(name: str) -> Path:
    """The directory ``name`` of the registry, made when it is not there, for its owner alone."""
    path = state_dir() / name
    try:
        state_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except PermissionError as error:
        raise PermissionDeniedError(
            f"{path} cannot be made", code="registry-permission", details=str(error), hint="run ckpt as root"
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be made", code="registry-unwritable", details=str(error)) from error
    return path


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Put a file of the registry into its place, whole; what a crash leaves of it carries our PID (``unwritten``)."""
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            json.dump(content, stream, indent=1)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written", code="registry-unwritable", details=str(error)) from error


def unwritten() -> tuple[Path, ...]:
    """Files that a process was about to put into their place when it was killed."""
    found = []
    for path in sorted(state_dir().glob("*/.*.json.*")):
        name = _BESIDE.fullmatch(path.name)
        if name and start_time(int(name[1])) is None:
            found.append(path)
    return tuple(found)


def _read(path: Path) -> dict[str, Any] | None:
    """What the file holds; None when it is not there (another ckpt may remove it at any moment)."""
    try:
        raw = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise PermissionDeniedError(
            f"{path} cannot be read", code="registry-permission", details=str(error), hint="run ckpt as root"
        ) from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} is damaged", code="registry-damaged", details=str(error), hint=_DAMAGED) from error
    if not isinstance(raw, dict):
        raise StorageError(f"{path} is damaged", code="registry-damaged", details="not an object", hint=_DAMAGED)
    return raw


_DAMAGED = "remove the file; the processes of the group are not touched by that"


def _decode_group(raw: dict[str, Any]) -> GroupEntry:
    known = {item.name for item in fields(GroupEntry)}
    lists = ("links", "addresses", "given", "command")
    values: dict[str, Any] = {
        key: tuple(value) if key in lists else value for key, value in raw.items() if key in known
    }
    try:
        return GroupEntry(**values)
    except TypeError as error:
        raise StorageError(
            f"the registry's entry of {raw.get('name')} is damaged",
            code="registry-damaged",
            details=str(error),
            hint=_DAMAGED,
        ) from error


def _decode_operation(raw: dict[str, Any]) -> OperationEntry:
    known = {item.name for item in fields(OperationEntry)}
    try:
        return OperationEntry(**{key: value for key, value in raw.items() if key in known})
    except TypeError as error:
        raise StorageError(
            f"the journal's entry {raw.get('id')} is damaged",
            code="registry-damaged",
            details=str(error),
            hint=_DAMAGED,
        ) from error
