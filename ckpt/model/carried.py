"""Files that travel in an image, as records: what lies at a path of the source, and where in the image its content is.

The kind says what is made where nothing is: a regular file with its content, a directory, a symbolic link. Owners are
numbers, times nanoseconds since 1970; ``attributes`` are extended ones, by their full names.
"""

from __future__ import annotations

import enum
import posixpath
from collections.abc import Mapping
from dataclasses import field

from ckpt.model.process import FileKind
from ckpt.records import dataclass

MEMBER_PREFIX = "carried-"
"""What the names of files in an image begin with that hold the content of carried ones."""

OUT_OF_BOUNDS = ("/proc", "/sys", "/dev")
"""Where nothing is placed: the kernel's own, and the host's devices."""
SHARED_MEMORY = "/dev/shm/"
"""What of it is all the same a place for files (shm_open(3))."""


def is_out_of_bounds(path: str) -> bool:
    """Whether nothing may be placed at ``path``."""
    return path == "/" or (
        not path.startswith(SHARED_MEMORY)
        and any(path == place or path.startswith(f"{place}/") for place in OUT_OF_BOUNDS)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedFile:
    """One of them. ``path`` is where the target has it: absolute, and in its shortest form.

    Of a regular file ``digest`` is BLAKE2b-256 of its ``size`` bytes, in hexadecimal, and ``member`` the image's file
    that holds them; without a member the file is made empty, as a log may be that nobody reads back. ``inode`` and
    ``device`` (``major:minor``) tell whether the file that is there is the very same. ``named`` is one that the user
    has named, ``append`` one that the group only writes to the end of. ``target`` is a symbolic link's.
    """

    path: str
    kind: FileKind = FileKind.REGULAR
    mode: int = 0
    uid: int = 0
    gid: int = 0
    modified: int = 0
    size: int = 0
    digest: str = ""
    member: str = ""
    target: str = ""
    attributes: Mapping[str, bytes] = field(default_factory=dict)
    inode: int = 0
    device: str = ""
    named: bool = False
    append: bool = False

    @property
    def is_sound(self) -> bool:
        """Whether it may be placed: its path is a plain one, in a place for files, and its kind one of the three."""
        path = self.path
        return (
            path.startswith("/")
            and posixpath.normpath(path) == path
            and not path.startswith("//")
            and "\0" not in path + self.target
            and not is_out_of_bounds(path)
            and self.kind in (FileKind.REGULAR, FileKind.DIRECTORY, FileKind.SYMLINK)
            and (not self.member or self.member.startswith(MEMBER_PREFIX))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedFiles:
    """The section `files`, each directory before what is in it."""

    files: tuple[CarriedFile, ...]


class Placement(enum.StrEnum):
    """What becomes of a carried file on a target.

    ``PLACE`` where nothing is; ``LEAVE`` what is the same, and ``LEAVE_GROWN`` what has only grown; ``LEAVE_CHANGED``
    the very file of the source, which somebody has written to since; ``REPLACE`` another, which was asked for;
    ``REFUSE`` another, or what is no file.
    """

    PLACE = "place"
    LEAVE = "leave"
    LEAVE_GROWN = "leave-grown"
    LEAVE_CHANGED = "leave-changed"
    REPLACE = "replace"
    REFUSE = "refuse"
