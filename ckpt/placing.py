"""The files of an image, put where the group expects them, before it is restored.

What becomes of each was decided by revalidation (`revalidate.carried`) and is decided anew from how it is now. Whatever
is made is taken back when the restore fails: what was placed goes, what has made way comes back; `ckpt clean` does it
for a ckpt that was killed. After a restore that succeeded the backups stay, and are named.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection
from pathlib import Path

from ckpt.errors import ExistsError
from ckpt.kernel import carried, durable, host
from ckpt.kernel.carried import Making
from ckpt.model.carried import CarriedFile, Placement
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.host import FileRole, Needs, TargetFacts
from ckpt.model.process import FileKind
from ckpt.placed import Journal
from ckpt.revalidate import needs_of
from ckpt.revalidate.carried import PLACED, placements

_log = logging.getLogger(__name__)


def place(
    checkpoint: Checkpoint, source: Path, undo: contextlib.ExitStack, journal: Journal, *, replace: bool = False
) -> tuple[Path, ...]:
    """Make the carried files that are missing, from the contents in ``source``; the backups of what made way.

    The ``journal`` has all that will be made before any of it is.
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
    if not wanted:
        return ()
    makings = [_making(one, replaces=decided[one.path] is Placement.REPLACE) for one in wanted]
    journal.begin(makings)
    undo.callback(journal.end)
    for one, making in zip(wanted, makings, strict=True):
        _make(one, source, undo, making)
    _sync({os.path.dirname(one.path) for one in wanted})
    return tuple(Path(making.backup) for making in makings if making.backup)


def _making(one: CarriedFile, *, replaces: bool) -> Making:
    regular = one.kind is FileKind.REGULAR
    content = one.digest if one.member or not regular else carried.EMPTY
    return Making(
        path=one.path,
        size=one.size if one.member else 0,
        expected=one.target or content,
        beside=carried.beside(one.path) if regular else "",
        backup=carried.backup_of(one.path) if replaces else "",
    )


def _make(one: CarriedFile, source: Path, undo: contextlib.ExitStack, making: Making) -> None:
    _log.info("%s is made from the image", one.path)
    if one.kind is not FileKind.REGULAR:
        take_back = carried.make_directory(one) if one.kind is FileKind.DIRECTORY else carried.make_link(one)
        if take_back is not None:
            undo.callback(take_back)
        return
    undo.callback(carried.make_file(one, source / one.member if one.member else None, making))
    if making.backup:
        _log.warning("%s made way for the image's, and is %s now", one.path, making.backup)


def _sync(directories: Collection[str]) -> None:
    """What the group may write to from now on is not to lose its name with the power."""
    for directory in directories:
        with contextlib.suppress(OSError):
            durable.sync(directory)
