"""What a restore is about to place on this host, on disk before any of it is placed: so that it can be taken back.

One small file for each restore that places files, in ``/var/lib/ckpt/placed``: unlike the registry it outlives a
reboot, as the files do. It goes when the group may use them, or when all of it was taken back; until then its ckpt
holds a lock on it, which ends with that ckpt, however it ends. So a journal that nobody holds is one of a restore that
came to no end, and `ckpt clean` takes back what it names; but not what somebody has put there after the reboot.

Nothing here places or takes back.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ckpt.errors import StorageError
from ckpt.kernel import durable
from ckpt.kernel.carried import Making
from ckpt.migrations import boot_id
from ckpt.places import IMAGES
from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A journal of a restore that came to no end: what it was about to make, the last first."""

    path: Path
    group: str
    files: tuple[Making, ...]


class Journal:
    """The journal of one restore. Without `begin` there is none, and nothing to end."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._path: Path | None = None
        self._held = -1

    def begin(self, files: Sequence[Making]) -> None:
        """Write down what is about to be made; on return it outlives a loss of power."""
        path = _directory() / f"{secrets.token_hex(6)}.json"
        content = {"group": self._group, "boot": boot_id(), "files": [asdict(one) for one in files]}
        try:
            # Who cleans may find it before it is held, and take it for one that was left.
            while self._held < 0:
                durable.put(path, json.dumps(content, indent=1))
                self._held = _hold(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written", code="journal-unwritable", details=str(error)) from error
        self._path = path

    def end(self) -> None:
        """What was made is the group's, or nothing of it is there any more. Again is nothing."""
        if self._path is not None:
            _remove(self._path)
            os.close(self._held)
            self._path = None


def left() -> tuple[Left, ...]:
    """The journals of restores that came to no end, on this boot or an earlier one."""
    return tuple(_left())


def _left() -> Iterator[Left]:
    for path in sorted((IMAGES / "placed").glob("*.json")):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            with os.fdopen(descriptor) as stream:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                raw = json.load(stream)
                files = [Making(**one) for one in reversed(raw["files"])]
                if raw["boot"] != boot_id():
                    files = [one for one in files if not _has_changed_since(_booted_at(), one.path)]
                yield Left(path=path, group=str(raw["group"]), files=tuple(files))
        except (FileNotFoundError, BlockingIOError):
            continue  # its restore has ended just now, or lives
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StorageError(
                f"{path} is damaged",
                code="journal-damaged",
                details=str(error),
                hint="look whether it names files that a restore has left, then remove it",
            ) from error


def forget(journal: Left) -> None:
    """All that it names was taken back."""
    _remove(journal.path)


def _has_changed_since(moment: float, path: str) -> bool:
    try:
        return os.lstat(path).st_ctime >= moment
    except OSError:
        return False


def _booted_at() -> float:
    """When this boot began, in seconds since 1970."""
    lines = Path("/proc/stat").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("btime ")))


def _remove(path: Path) -> None:
    try:
        durable.remove(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be removed", code="journal-unwritable", details=str(error)) from error


def _directory() -> Path:
    path = IMAGES / "placed"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be made", code="journal-unwritable", details=str(error)) from error
    return path


def _hold(path: Path) -> int:
    """A descriptor that locks the file; -1 when it is not there any more."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    if os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)
    return -1
