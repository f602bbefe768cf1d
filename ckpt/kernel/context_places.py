"""Where the cgroups of contexts are, and how one is known by its path.

The name of the cgroup holds the cookie of the context's network namespace. It is a child of the hierarchy's root, in
which processes may stay, or of a scope of its own where systemd has the hierarchy. What is there is found by looking,
so that a context from before systemd could be asked, or of a ckpt that was killed, is found as well.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from ckpt.errors import UnsupportedError
from ckpt.kernel import cgroup2, scope

_log = logging.getLogger(__name__)

_SO_NETNS_COOKIE = 71
_CGROUP = re.compile(r"ckpt-[0-9a-f]+-")


def netns_cookie() -> int:
    """The number of the caller's network namespace that is never given again while the host runs (Linux 5.14)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
        except OSError as error:
            raise UnsupportedError(
                "this kernel has no SO_NETNS_COOKIE",
                code="context-unsupported",
                details=str(error),
                hint="Linux 5.14 has it",
            ) from error


def cgroup_of(name: str, otherwise: Path | None = None) -> Path:
    """The cgroup that the context called ``name`` has, or would have; see ``cgroup2.root`` for ``otherwise``."""
    root, directory = cgroup2.root(otherwise), f"{_prefix()}{name}"
    scoped = root / scope.SLICE / f"{directory}{scope.SUFFIX}" / directory
    return scoped if scoped.exists() else root / directory


def make(name: str, otherwise: Path, undo: ExitStack) -> Path:
    """Make the cgroup of the context called ``name``; undone by ``undo``."""
    cgroup = cgroup_of(name, otherwise)
    if scope.is_wanted() and not cgroup.exists():
        try:
            parent = scope.start(cgroup.name)
        except UnsupportedError as error:
            _log.warning("the context %s has a cgroup without a scope of systemd's: %s", name, error.details)
        else:
            cgroup = parent / cgroup.name
    undo.callback(remove, cgroup)
    cgroup2.create(cgroup)
    return cgroup


def remove(cgroup: Path) -> None:
    """Remove the cgroup of a context whose last process has gone, and its scope."""
    cgroup2.remove(cgroup)
    if cgroup.parent.name == f"{cgroup.name}{scope.SUFFIX}":
        scope.end(cgroup.parent)


def found() -> Iterator[tuple[str, Path]]:
    """The contexts of the caller's namespace: name and cgroup, also of one that was only half made."""
    with contextlib.suppress(UnsupportedError):
        prefix, root = _prefix(), cgroup2.root()
        for path in sorted([*root.glob(f"{prefix}*"), *root.glob(f"{scope.SLICE}/{prefix}*{scope.SUFFIX}/{prefix}*")]):
            yield path.name.removeprefix(prefix), path


def is_context(cgroup: str) -> bool:
    """Whether a path within the hierarchy is in a context of ckpt's, of any network namespace."""
    return _CGROUP.match(_directory(cgroup)) is not None


def name_of(cgroup: str) -> str | None:
    """The name of the context of the caller's namespace that a path within the hierarchy is in; None for none."""
    prefix, directory = _prefix(), _directory(cgroup)
    return directory.removeprefix(prefix) if directory.startswith(prefix) else None


def _prefix() -> str:
    """What the names of the cgroups of the caller's namespace begin with."""
    return f"ckpt-{netns_cookie():x}-"


def _directory(cgroup: str) -> str:
    """The part of a path within the hierarchy that would be the name of a context's cgroup."""
    parts = cgroup.strip("/").split("/")
    scoped = parts[0] == scope.SLICE and len(parts) > 2 and parts[1].endswith(scope.SUFFIX)
    return parts[2] if scoped else parts[0]
