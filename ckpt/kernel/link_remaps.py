"""The second names that CRIU gives to files whose own name is gone: link_remap.N, in the directory that it was in.

A file that is open and deleted, but has another name that nobody can know, is linked again for the image to name it
(create_link_remap, criu/files-reg.c); a dump that fails takes these names away. One that is killed does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckpt.kernel.files import device_name
from ckpt.model.process import FileKind, Process


def find(processes: Sequence[Process]) -> tuple[Path, ...]:
    """The names that CRIU has given to files of ``processes``, which run: no image needs them."""
    return tuple(sorted(set(_names(processes))))


def remove(paths: Sequence[Path]) -> None:
    """Take such names away; those that are gone already are no fault."""
    for path in paths:
        path.unlink(missing_ok=True)


def _names(processes: Sequence[Process]) -> Iterator[Path]:
    for process in processes:
        for file in process.files:
            if file.kind is FileKind.REGULAR and file.deleted:
                for path in _near(process.pid, file.path):
                    with contextlib.suppress(OSError):
                        status = path.lstat()
                        if (device_name(status.st_dev), status.st_ino) == (file.device, file.inode):
                            yield path


def _near(pid: int, name: str) -> list[Path]:
    """The candidates in the directory of ``name``, as ``pid`` sees it, or in the nearest above that is left."""
    for parent in Path(name).parents:
        directory = Path(f"/proc/{pid}/root{parent}")
        if directory.is_dir():
            return list(directory.glob("link_remap.*"))
    return []
