"""CRIU's own image files, read and changed through pycriu: the few things that CRIU would restore wrongly.

Each amendment is made on the unpacked files, before CRIU reads them; the image of ours stays as it was dumped. pycriu's
codec is loaded only when there is something to amend, because loading it takes longer than a small restore.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckpt.kernel.criu import Criu

FILES = "files.img"
"""Every open file of every process, one entry each (images/fdinfo.proto)."""


def amend(criu: Criu, path: Path, change: Callable[[dict[str, Any]], bool]) -> int:
    """Let ``change`` edit the entries of the CRIU image at ``path``; how many of them it said it has changed."""
    images = criu.pycriu("images")
    with warnings.catch_warnings():
        # pycriu asks protobuf for labels in a way that newer ones call deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        with path.open("rb") as source:
            content = images.load(source)
        changed = sum(change(entry) for entry in content["entries"])
        if changed:
            with path.open("r+b") as target:
                target.truncate()
                images.dump(content, target)
    return changed


def rearm_timer(entry: dict[str, Any]) -> bool:
    """Let a periodic timerfd that had expired unread tick on.

    The kernel shows no time to the next expiry for one (fs/timerfd.c: it is armed again by the read), CRIU writes that
    down, and to set a timer to zero is to stop it.
    """
    timer = entry.get("tfd")
    if timer is None or timer["vsec"] or timer["vnsec"] or not (timer["isec"] or timer["insec"]):
        return False
    timer["vnsec"] = 1
    return True


def accept_growth(entry: dict[str, Any]) -> bool:
    """Let a file that is open for appending be larger than it was.

    CRIU does so itself only for those that cannot be read as well (should_check_size, criu/files-reg.c).
    """
    file = entry.get("reg")
    if file is None or "size" not in file:
        return False
    flags = _flags(file["flags"])
    path = file["name"] if file["name"].startswith("/") else f"/{file['name']}"
    try:
        grown = os.stat(path).st_size > file["size"]
    except OSError:
        return False
    if not (flags & os.O_APPEND and flags & os.O_ACCMODE != os.O_RDONLY and grown):
        return False
    del file["size"]
    return True


def _flags(value: int | str) -> int:
    """pycriu gives flags as a number; as text when it was asked for a readable form."""
    return int(value, 0) if isinstance(value, str) else value
