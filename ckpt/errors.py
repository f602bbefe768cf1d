"""The one family of errors, and the one table of exit statuses.

Every failure a user can meet is a ``CkptError``: a brief of what happened, details of why, a hint of what to do,
a stable code for programs, and an exit status that its class fixes. Only the command line prints one or exits with
it. An exception of any other type is a bug in ckpt and is shown with its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class CkptError(Exception):
    """A failure with a cause that a user can act on.

    ``brief`` is one line without a full stop; ``details`` may hold several lines (a decisive log line, a kernel's
    message); ``hint`` says what to do. ``code`` is stable, in kebab-case, and narrower than the class.
    """

    status: ClassVar[int] = 1

    def __init__(self, brief: str, *, code: str, details: str | None = None, hint: str | None = None) -> None:
        super().__init__(brief)
        self.brief = brief
        self.code = code
        self.details = details
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.brief}: {self.details}" if self.details else self.brief


class UsageError(CkptError):
    """The command's own words do not fit together."""

    status = 2


class RefusedError(CkptError):
    """A check found what would fail; nothing was touched."""

    status = 3


class NotFoundError(CkptError):
    """No such process, group, image or link."""

    status = 4


class ExistsError(CkptError):
    """A name, a file or an address is already taken."""

    status = 5


class ImageError(CkptError):
    """The image is not one, is damaged, or is of a version that this ckpt cannot read."""

    status = 6


class PermissionDeniedError(CkptError):
    """Root, a capability, or access to a file is missing."""

    status = 7


class UnsupportedError(CkptError):
    """A tool, a CRIU feature or a kernel feature is missing here."""

    status = 8


class RolledBackError(CkptError):
    """A dump failed and was undone: the group runs on where it was."""

    status = 9


class RestoreError(CkptError):
    """A restore failed and was undone: nothing of it runs, the image is untouched."""

    status = 10


class StorageError(CkptError):
    """Reading or writing a file failed: no space left, an I/O error, a pipe that closed."""

    status = 11


class NetworkError(CkptError):
    """The kernel refused a change of the network, or an address is in use."""

    status = 12


class UnknownOutcomeError(CkptError):
    """It cannot be told whether the group runs: the details say where to look."""

    status = 13


class RemoteError(CkptError):
    """The other host cannot be reached, or what answers there is no ckpt that fits this one."""

    status = 15
