"""The files of an image, put where the group expects them, before it is restored.

What becomes of each was decided by revalidation (`revalidate.carried`) and is decided anew from how it is now. Whatever
is made is taken back when the restore fails: what was placed goes, what has made way comes back; `ckpt clean` does it
for a ckpt that was killed. After a restore that succeeded the backups stay, and are named.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ckpt.errors import ExistsError
from ckpt.kernel import carried, host
from ckpt.model.carried import CarriedFile, Placement
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.host import FileRole, Needs, TargetFacts
from ckpt.model.process import FileKind
from ckpt.revalidate import needs_of
from ckpt.revalidate.carried import PLACED, placements

_log = logging.getLogger(__name__)


Entry = tuple[str, int, str, str]
"""A path that is about to be made, and by what it is known to have been made: see `kernel.carried.take_back`."""


def place(
    checkpoint: Checkpoint,
    source: Path,
    undo: contextlib.ExitStack,
    note: Callable[[Sequence[Entry]], object] = lambda entries: None,
    *,
    replace: bool = False,
) -> tuple[Path, ...]:
    """Make the carried files that are missing, from the contents in ``source``; the backups of what made way.

    ``note`` is told of all that will be made before any of it is.
    """
    if not checkpoint.carried:
        return ()
    needs = Needs(files=tuple(one for one in needs_of(checkpoint).files if one.role is FileRole.CARRIED))
    there = TargetFacts(host=host.read_host(()), files=host.read_files(needs.files))
    decided = placements(checkpoint, there, replace=replace)
    for one in checkpoint.carried:
        if decided[one.path] is Placement.REFUSE:
            raise ExistsError(f"{one.path} is another one than in the image", code="file-differs")
    wanted = [one for one in checkpoint.carried if decided[one.path] in PLACED and one.is_sound]
    replaced = {one.path for one in wanted if decided[one.path] is Placement.REPLACE}
    backups = {path: carried.backup_of(path) for path in replaced}
    note(
        [
            (one.path, one.size if one.member else 0, one.target or _content(one), backups.get(one.path, ""))
            for one in wanted
        ]
    )
    for one in wanted:
        _make(one, source, undo, backups.get(one.path))
    return tuple(map(Path, backups.values()))


def _content(one: CarriedFile) -> str:
    return one.digest if one.member or one.kind is not FileKind.REGULAR else carried.EMPTY


def _make(one: CarriedFile, source: Path, undo: contextlib.ExitStack, backup: str | None) -> None:
    _log.info("%s is made from the image", one.path)
    if one.kind is not FileKind.REGULAR:
        take_back = carried.make_directory(one) if one.kind is FileKind.DIRECTORY else carried.make_link(one)
        if take_back is not None:
            undo.callback(take_back)
        return
    undo.callback(carried.make_file(one, source / one.member if one.member else None, backup))
    if backup is not None:
        _log.warning("%s made way for the image's, and is %s now", one.path, backup)


def noted(notes: Mapping[str, object]) -> tuple[Entry, ...]:
    """What a ckpt that died has noted that it would make, the last first; nothing once the group may have used it."""
    found = notes.get("placed")
    if notes.get("resumes") or not isinstance(found, list):
        return ()
    entries = ((str(path), int(size), str(content), str(backup)) for path, size, content, backup in reversed(found))
    return tuple(entry for entry in entries if os.path.lexists(entry[0]))
