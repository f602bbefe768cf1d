"""The cgroups that contexts are: directories of the one cgroup2 hierarchy, wherever it is mounted.

That is /sys/fs/cgroup, or /sys/fs/cgroup/unified beside version 1 (hybrid), or nowhere yet; then it is mounted where
the caller says. The directories that ckpt makes are children of the hierarchy's root, in which processes may stay.

There is one hierarchy, whatever mount namespaces see of it, and it has one set of options: those of the mount that was
made last from the first cgroup namespace (apply_cgroup_root_flags, kernel/cgroup/cgroup.c). Whoever mounts it without
any takes them from everybody.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ckpt.errors import NetworkError, UnsupportedError
from ckpt.kernel import syscalls

_REMOVAL_SECONDS = 5.0
_DELEGATION = "nsdelegate"
_NOT_ITS_OWN = {"rw", "ro", "seclabel"}
"""What is told of a mount beside the hierarchy's own options, and is not to be said of another."""
_FREEZING_SECONDS = 5.0


def mount_points(kind: str) -> Iterator[Path]:
    """Where file systems of ``kind`` are mounted, as this process sees it."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        words = fields.split()
        if rest.split()[0] == kind and words[3] == "/":
            yield Path(words[4].encode(errors="surrogateescape").decode("unicode_escape"))


def root(otherwise: Path | None = None) -> Path:
    """The root of the hierarchy; mounted at ``otherwise`` when it is not mounted. UnsupportedError where it cannot."""
    found = next(mount_points("cgroup2"), None)
    if found is not None:
        return found
    reason = "it is mounted nowhere"
    if otherwise is not None:
        try:
            otherwise.mkdir(mode=0o755, parents=True, exist_ok=True)
            syscalls.mount("cgroup2", str(otherwise), kind="cgroup2", data=",".join(sorted(options())))
        except OSError as error:
            reason = str(error)
        else:
            return otherwise
    raise UnsupportedError(
        "there is no cgroup2 hierarchy",
        code="cgroup2-missing",
        details=reason,
        hint="boot a kernel with CONFIG_CGROUPS and CONFIG_CGROUP_BPF, and mount cgroup2",
    )


def options() -> set[str]:
    """What the hierarchy is mounted with: here, or where others have it; or else what it would be mounted with."""
    for process in ("self", *sorted(filter(str.isdecimal, os.listdir("/proc")), key=int)):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/mountinfo").read_text(errors="surrogateescape").splitlines():
                kind, _, said = line.partition(" - ")[2].split(" ", 2)
                if kind == "cgroup2":
                    return set(said.split(",")) - _NOT_ITS_OWN
    return {_DELEGATION}


def is_delegated() -> bool:
    """Whether cgroup namespaces are boundaries, that no process can move itself across: not root either."""
    return _DELEGATION in options()


def create(path: Path) -> bool:
    """Make the cgroup; whether it was not there."""
    try:
        path.mkdir(mode=0o755)
    except FileExistsError:
        return False
    return True


def pids(path: Path, *, below: bool = True) -> tuple[int, ...]:
    """The processes in the cgroup, and in those below it, zombies included; none when it is gone."""
    found = []
    for directory in [str(path)] if not below else [name for name, _, _ in os.walk(path)]:
        try:
            found += [int(word) for word in Path(directory, "cgroup.procs").read_text().split()]
        except OSError:
            continue
    return tuple(found)


def of_process(pid: int) -> str | None:
    """The path of the process's cgroup within the hierarchy; None when there is no such process."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((line[3:] for line in lines if line.startswith("0::")), None)


def enter(path: Path, pid: int) -> None:
    """Move a process, with all its threads."""
    (path / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """The processes of the cgroup stand still for the time of the block."""
    freeze, events = path / "cgroup.freeze", path / "cgroup.events"
    was = freeze.read_text().strip()
    freeze.write_text("1")
    try:
        deadline = time.monotonic() + _FREEZING_SECONDS
        while "frozen 1" not in events.read_text() and "populated 1" in events.read_text():
            if time.monotonic() > deadline:
                raise NetworkError(
                    "the processes of the context do not stand still",
                    code="context-busy",
                    details=f"{events} says that some still run",
                    hint="try again",
                )
            time.sleep(0.001)
        yield
    finally:
        freeze.write_text(was)


def thaw(path: Path) -> None:
    """Let the processes of the cgroup go on, whoever has frozen them."""
    (path / "cgroup.freeze").write_text("0")


def remove(path: Path) -> None:
    """Remove the cgroup and those below it, when their last processes are gone; what is attached goes with them."""
    deadline = time.monotonic() + _REMOVAL_SECONDS
    for directory, _, _ in os.walk(path, topdown=False):
        while True:
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                break
            except OSError as error:
                # A process that has ended counts until it is reaped.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                break
