"""The files of an image, put where the group expects them, before it is restored.

What becomes of each was decided by revalidation (`revalidate.carried`) and is decided anew from how it is now. Whatever
is made is taken back when the restore fails: what was placed goes, what has made way comes back. After a restore that
succeeded the backups stay, and are named.
"""

from __future__ import annotations

import contextlib
import logging
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


def place(
    checkpoint: Checkpoint, source: Path, undo: contextlib.ExitStack, *, replace: bool = False
) -> tuple[Path, ...]:
    """Make the carried files that are missing, from the contents in ``source``; the backups of what made way."""
    if not checkpoint.carried:
        return ()
    needs = Needs(files=tuple(one for one in needs_of(checkpoint).files if one.role is FileRole.CARRIED))
    there = TargetFacts(host=host.read_host(()), files=host.read_files(needs.files))
    decided = placements(checkpoint, there, replace=replace)
    backups: list[Path] = []
    for one in checkpoint.carried:
        if decided[one.path] in PLACED and one.is_sound:
            backup = _make(one, source, undo, replace=decided[one.path] is Placement.REPLACE)
            backups += filter(None, [backup])
        elif decided[one.path] is Placement.REFUSE:
            raise ExistsError(f"{one.path} is another one than in the image", code="file-differs")
    return tuple(backups)


def _make(one: CarriedFile, source: Path, undo: contextlib.ExitStack, *, replace: bool) -> Path | None:
    _log.info("%s is made from the image", one.path)
    if one.kind is not FileKind.REGULAR:
        take_back = carried.make_directory(one) if one.kind is FileKind.DIRECTORY else carried.make_link(one)
        if take_back is not None:
            undo.callback(take_back)
        return None
    content = source / one.member if one.member else None
    take_back, backup = carried.make_file(one, content, replace=replace)
    undo.callback(take_back)
    if backup is not None:
        _log.warning("%s made way for the image's, and is %s now", one.path, backup)
    return backup
