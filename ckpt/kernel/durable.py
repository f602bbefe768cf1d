"""Small files that outlive a loss of power: whole or not at all, and on the disk before who writes them goes on.

Each raises OSError, and then the name has what it had before.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def put(path: Path, text: str, *, new: bool = False) -> None:
    """Make the file ``path``, whole and synced; with ``new`` one that is there stays as it is."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if new:
            with contextlib.suppress(FileExistsError):
                os.link(beside, path)
            beside.unlink()
        else:
            beside.replace(path)
        sync(path.parent)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Remove a file for good. Again is nothing."""
    path.unlink(missing_ok=True)
    sync(path.parent)


def sync(directory: str | Path) -> None:
    """Let the names in ``directory`` be on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
