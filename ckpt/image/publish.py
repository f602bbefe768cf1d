"""Puts a new file under its name only when it is whole.

The bytes go into ``.NAME.partial-XXXX`` beside it, mode 0600, are synced, and only then get the name, with ``link``,
which never replaces: whoever took the name meanwhile keeps it. Then the directory is synced. A failure removes the
partial file; after ``kill -9`` it stays, and its name tells what it was. What was written is on its way to the disk
long before the end, so that little is left to be synced while a group stands still for it.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from ckpt.errors import CkptError, ExistsError, NotFoundError, PermissionDeniedError
from ckpt.image.defect import Defect, Place
from ckpt.image.writer import storage_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_MAX_NAME = 255
PARTIAL = ".partial-"
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WRITE = 2
_START_BYTES = 8 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


@contextmanager
def created(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[BinaryIO]:
    """A new file, open for writing, that stands at ``path`` once the block has ended without an error.

    With ``force`` it replaces a file there; without, ExistsError(code="image-exists") is raised before any work, and
    again if the name was taken meanwhile. Raises ImageError(code="image-is-directory"), NotFoundError when the
    directory does not exist, PermissionDeniedError, and StorageError (``storage-full``, ``storage-write``).
    """
    target = Path(path)
    with ExitStack() as undo:
        directory = _open_directory(target, undo)
        _refuse_taken(target, directory, force)
        partial = f".{target.name}"[: _MAX_NAME - 16] + PARTIAL + secrets.token_hex(3)
        try:
            fd = os.open(
                partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=directory
            )
        except OSError as error:
            raise _failure(error, target, 0) from error
        undo.callback(_remove, partial, directory)
        out = undo.enter_context(_Flowing(fd, "wb", closefd=True))
        yield cast(BinaryIO, out)
        try:
            os.fsync(fd)
            if force:
                os.rename(partial, target.name, src_dir_fd=directory, dst_dir_fd=directory)
            else:
                _name_new(partial, target.name, directory)
            _sync_name(target.name, directory, force)
        except FileExistsError as error:
            raise _taken(target) from error
        except OSError as error:
            raise _failure(error, target, os.fstat(fd).st_size) from error
        except BaseException:
            # A signal: the caller is not told that it is there.
            if _is_named(target.name, fd, directory):
                _remove(target.name, directory)
            raise


class _Flowing(io.FileIO):
    """A file whose bytes start for the disk as they are written."""

    _written = 0
    _started = 0

    def write(self, data: ReadableBuffer, /) -> int:
        """As any file's."""
        count = super().write(data)
        self._written += count
        if self._written - self._started >= _START_BYTES:
            # A hint: no error of it matters, and none of the disk's is lost, which fsync tells.
            _libc.sync_file_range(self.fileno(), self._started, self._written - self._started, _SYNC_FILE_RANGE_WRITE)
            self._started = self._written
        return count


def _open_directory(target: Path, undo: ExitStack) -> int:
    if not target.name or target.name == "..":
        raise Place(str(target)).error(Defect.IS_DIRECTORY)
    try:
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _failure(error, target, 0) from error
    undo.callback(os.close, directory)
    return directory


def _refuse_taken(target: Path, directory: int, force: bool) -> None:
    try:
        os.stat(target.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _failure(error, target, 0) from error
    if os.path.isdir(target):
        raise Place(str(target)).error(Defect.IS_DIRECTORY)
    if not force:
        raise _taken(target)


def _name_new(partial: str, name: str, directory: int) -> None:
    """Give ``partial`` its name, which must be free: FileExistsError otherwise."""
    try:
        os.link(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_new(partial, name, directory)
    else:
        os.unlink(partial, dir_fd=directory)


def _rename_new(partial: str, name: str, directory: int) -> None:
    # FAT has no hard links but knows RENAME_NOREPLACE (with NFS it is the other way round).
    if _libc.renameat2(directory, os.fsencode(partial), directory, os.fsencode(name), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _is_named(name: str, fd: int, directory: int) -> bool:
    try:
        return os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _sync_name(name: str, directory: int, replaced: bool) -> None:
    """Make the name last. An image that was not there before does not stay when that fails: the caller was told so."""
    try:
        os.fsync(directory)
    except OSError:
        if not replaced:
            _remove(name, directory)
        raise


def _taken(target: Path) -> ExistsError:
    return ExistsError(f"{target} exists", code="image-exists", hint="name another file, or use --force to replace it")


def _failure(error: OSError, target: Path, written: int) -> CkptError:
    brief = f"{target} could not be written"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(brief, code="directory-missing", details=f"there is no directory {target.parent}")
    if isinstance(error, PermissionError):
        return PermissionDeniedError(brief, code="image-permission", details=error.strerror)
    return storage_error(error, brief, written)


def _remove(partial: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=directory)
