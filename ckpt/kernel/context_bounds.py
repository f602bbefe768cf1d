"""What keeps a confined group in its context, and bsdjail's limits: capabilities, resources, a cgroup for its tasks.

A root process with every capability could attach programs of its own, read and write packets beside every socket, or
walk into another namespace. So a context's processes are started without the capabilities that do this, and without
those that lift their limits. That is the bounding set: nothing they execute gets them back. Only the group's first
process, which is tini, has them: no other can trace it or write to its memory, for want of what it has.

No capability is needed to write into a file of root's, and such are those by which cgroups are left. What keeps root
in one is its cgroup namespace, where the hierarchy was mounted with nsdelegate. Nothing else would: a mount namespace
without these files is left through the /proc/PID/root of any process whose user root may become.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from ckpt.errors import CkptError, UnsupportedError
from ckpt.kernel import cgroup2
from ckpt.kernel.spawn import Bounds
from ckpt.model.context import Context, Limits
from ckpt.records import dataclass

DROPPED = {
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_RAWIO": 17,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
    "CAP_MAC_OVERRIDE": 32,
    "CAP_MAC_ADMIN": 33,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
    "CAP_CHECKPOINT_RESTORE": 40,
}
"""By the numbers of include/uapi/linux/capability.h."""

_CAP_IPC_LOCK, _CAP_SYS_NICE, _CAP_SYS_RESOURCE = 14, 23, 24

# The group's first process is tini, which is ours and not the user's.
_OWN_TASKS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Freedom:
    """What a root process could do here though its context forbids it, and what ends that."""

    reason: str
    remedy: str


def freedoms(*, tasks: bool) -> Iterator[Freedom]:
    """What this host does not keep root from in a context; ``tasks`` says whether these are to be limited."""
    if not cgroup2.is_delegated():
        try:
            place = str(cgroup2.root())
        except CkptError:
            place = "…"
        yield Freedom(
            reason="a root process may move itself out of its context: cgroup2 is mounted without nsdelegate",
            remedy=f"mount -o remount,nsdelegate {place}",
        )
    if tasks and _version_1_of_pids() is not None:
        yield Freedom(
            reason="a root process may lift the limit of its tasks: version 1 of cgroups counts them, which has no "
            "boundaries",
            remedy="boot with cgroup_no_v1=pids",
        )


def capabilities(limits: Limits) -> tuple[int, ...]:
    """Those that nobody in a context of these limits shall have."""
    dropped = set(DROPPED.values())
    if limits.nice is not None:
        dropped.add(_CAP_SYS_NICE)
    if limits.memlock is not None:
        dropped.add(_CAP_IPC_LOCK)
    if limits != Limits():
        dropped.add(_CAP_SYS_RESOURCE)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return tuple(sorted(number for number in dropped if number <= last))


def bounds(context: Context, limits: Limits) -> Bounds:
    """What the first process of a group in ``context`` is kept in."""
    values = {}
    if limits.data is not None:
        values[resource.RLIMIT_DATA] = limits.data
    if limits.memlock is not None:
        values[resource.RLIMIT_MEMLOCK] = limits.memlock
    if limits.nice is not None:
        # getrlimit(2): the ceiling of a nice value is 20 less the limit
        values[resource.RLIMIT_NICE] = 20 - limits.nice
    tasks = tasks_cgroup(Path(context.cgroup)) if limits.tasks is not None else None
    return Bounds(
        cgroups=(context.cgroup,) if tasks is None or str(tasks) == context.cgroup else (context.cgroup, str(tasks)),
        capabilities=capabilities(limits),
        limits=values,
        nice=limits.nice,
    )


def dropping(bounds: Bounds, environment: Mapping[str, str]) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The command that executes another without the capabilities of ``bounds``, of which root's exec gets the rest.

    And the environment for it: no library of the other's choice may be loaded into what still has them.
    """
    program = shutil.which("setpriv", path="/usr/bin:/bin:/usr/sbin:/sbin")
    if program is None:
        raise UnsupportedError("setpriv is not installed", code="tool-missing", hint="apt-get install util-linux")
    command: tuple[str, ...] = (program, "--bounding-set", ",".join(f"-cap_{one}" for one in bounds.capabilities), "--")
    of_linker = [f"{name}={value}" for name, value in environment.items() if name.startswith("LD_")]
    if of_linker:
        command += ("/usr/bin/env", *of_linker)
    return command, {name: value for name, value in environment.items() if not name.startswith("LD_")}


def limit_tasks(context: Context, tasks: int) -> None:
    """Let the context have ``tasks`` tasks at most, by the pids controller of whichever version has it."""
    try:
        root = Path(context.cgroup).parent
        if "pids" in (root / "cgroup.controllers").read_text().split():
            (root / "cgroup.subtree_control").write_text("+pids")
        directory = tasks_cgroup(Path(context.cgroup))
        if directory is None:
            raise FileNotFoundError("no pids controller is mounted")
        directory.mkdir(mode=0o755, exist_ok=True)
        (directory / "pids.max").write_text(str(tasks + _OWN_TASKS))
    except OSError as error:
        raise UnsupportedError(
            "tasks cannot be limited here",
            code="limit-tasks",
            details=str(error),
            hint="the pids controller of cgroups is needed (CONFIG_CGROUP_PIDS)",
        ) from error


def tasks_cgroup(cgroup: Path) -> Path | None:
    """Where the tasks of the context with ``cgroup`` are counted: there itself, or in version 1's own hierarchy."""
    if "pids" in (cgroup.parent / "cgroup.controllers").read_text().split():
        return cgroup
    root = _version_1_of_pids()
    return None if root is None else root / cgroup.name


def _version_1_of_pids() -> Path | None:
    """Where version 1 has a hierarchy with the pids controller; no other has it then."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup" and "pids" in options.split(","):
            return Path(fields.split()[4])
    return None


def remove(cgroup: Path) -> None:
    """Remove what only counted tasks."""
    directory = tasks_cgroup(cgroup)
    if directory is not None and directory != cgroup:
        cgroup2.remove(directory)
