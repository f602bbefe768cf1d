"""Files of the host that travel in an image: described and digested on one host, made on another.

Reading never waits on what is no regular file. Making is new under the name or not at all: the content is written
beside, with its owner, mode, attributes and times, and gets its name when it is whole; a file that has the name is
kept under another. What is made can be taken back by what the functions return, and by somebody else from a ``Making``
that was written down before.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ckpt.errors import ExistsError, RestoreError, StorageError
from ckpt.kernel import digests, durable
from ckpt.kernel.files import device_name
from ckpt.model.carried import CarriedFile
from ckpt.model.process import FileKind
from ckpt.records import dataclass

_CHUNK = 1 << 20
_KINDS = {stat.S_IFREG: FileKind.REGULAR, stat.S_IFDIR: FileKind.DIRECTORY, stat.S_IFLNK: FileKind.SYMLINK}
_ATTRIBUTES = ("user.", "security.capability", "system.posix_acl_access", "system.posix_acl_default")
_ATTRIBUTE_BYTES = 1 << 16
BACKUP = ".ckpt-backup"
"""What the name of a file begins to end with that has made way for one from an image."""

EMPTY = hashlib.blake2b(digest_size=32).hexdigest()
"""The digest of nothing."""

Undo = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """Something that is about to be made at ``path``, and by what it is known to have been made.

    ``expected`` is the digest of a regular file of ``size`` bytes, a symbolic link's target, or empty for a directory.
    A regular file is written under the name ``beside`` first; what has its name then makes way to ``backup``, if there
    is one.
    """

    path: str
    size: int = 0
    expected: str = ""
    beside: str = ""
    backup: str = ""


def describe(source: str, path: str, *, follow: bool = False) -> CarriedFile | None:
    """What lies at ``source``, to be made at ``path``; None for what cannot be carried or is gone."""
    try:
        status = os.stat(source, follow_symlinks=follow)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return None
        return CarriedFile(
            path=path,
            kind=kind,
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            modified=status.st_mtime_ns,
            size=status.st_size if kind is FileKind.REGULAR else 0,
            target=os.fsdecode(os.readlink(source)) if kind is FileKind.SYMLINK else "",
            attributes={} if kind is FileKind.SYMLINK else dict(_attributes(source)),
            inode=status.st_ino,
            device=device_name(status.st_dev),
        )
    except OSError:
        return None


def _attributes(source: str) -> Iterator[tuple[str, bytes]]:
    with contextlib.suppress(OSError):
        for name in os.listxattr(source):
            if name.startswith(_ATTRIBUTES):
                value = os.getxattr(source, name)
                if len(value) <= _ATTRIBUTE_BYTES:
                    yield name, value


class Content:
    """The content of a file as it was described, as a stream to read from; another one is a StorageError."""

    def __init__(self, source: str, file: CarriedFile) -> None:
        self._file = file
        self._left = file.size
        self._digest = hashlib.blake2b(digest_size=32)
        try:
            self._fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise StorageError(
                f"{file.path} cannot be read", code="storage-read", details=os.strerror(error.errno or 0)
            ) from error

    def __enter__(self) -> Content:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, size: int, /) -> bytes:
        """The next bytes, and nothing when all have been read and were the same."""
        try:
            data = os.read(self._fd, min(size, self._left)) if self._left else b""
        except OSError as error:
            raise StorageError(
                f"{self._file.path} cannot be read", code="storage-read", details=os.strerror(error.errno or 0)
            ) from error
        self._left -= len(data)
        self._digest.update(data)
        if not data and (self._left or self._digest.hexdigest() != self._file.digest):
            raise StorageError(
                f"{self._file.path} has changed while it was read",
                code="carried-changed",
                details="somebody outside of the group writes to it",
                hint="leave it out with --open-files none, or stop who writes to it",
            )
        return data


def make_directory(file: CarriedFile) -> Undo | None:
    """Make a directory; how to take it back, None when it was there."""
    try:
        os.mkdir(file.path, 0o700)
    except FileExistsError:
        return None
    except OSError as error:
        raise _failure(file, error) from error
    try:
        _dress(file.path, file)
    except OSError as error:
        os.rmdir(file.path)
        raise _failure(file, error) from error
    return lambda: _quietly(os.rmdir, file.path)


def make_link(file: CarriedFile) -> Undo | None:
    """Make a symbolic link; how to take it back, None when the name is taken."""
    try:
        os.symlink(file.target, file.path)
        os.chown(file.path, file.uid, file.gid, follow_symlinks=False)
    except FileExistsError:
        return None
    except OSError as error:
        raise _failure(file, error) from error
    return lambda: _quietly(os.unlink, file.path)


def make_file(file: CarriedFile, content: Path | None, making: Making) -> Undo:
    """Make a regular file with ``content``, or empty; how to take it back. One that is there becomes the backup.

    Raises ExistsError when the name has been taken meanwhile, RestoreError when it cannot be made.
    """
    beside, backup = making.beside, making.backup
    try:
        inode = _write(beside, file, content)
        try:
            if not backup:
                os.link(beside, file.path, follow_symlinks=False)
            else:
                os.link(file.path, backup, follow_symlinks=False)
                # On the disk before the name is another's: a loss of power must not leave the image's file alone.
                durable.sync(os.path.dirname(file.path))
                os.rename(beside, file.path)
        finally:
            _quietly(os.unlink, beside)
    except FileExistsError as error:
        raise ExistsError(f"{file.path} has just come into being", code="file-differs") from error
    except OSError as error:
        raise _failure(file, error) from error
    if backup:
        return lambda: _quietly(os.rename, backup, file.path)
    return lambda: _remove(file.path, inode)


def beside(path: str) -> str:
    """A name beside ``path`` that nobody has, for a file that is being written."""
    return os.path.join(os.path.dirname(path), f".ckpt-{secrets.token_hex(6)}")


def is_left(making: Making) -> bool:
    """Whether anything may be there that was made so."""
    return any(os.path.lexists(path) for path in (making.path, making.beside, making.backup) if path)


def take_back(making: Making) -> None:
    """Take back what another ckpt was about to make and did not live to take back itself: if it is still that."""
    path, backup = making.path, making.backup
    if making.beside:
        _quietly(os.unlink, making.beside)
    if os.path.islink(path):
        same = os.readlink(path) == making.expected
    elif os.path.isdir(path):
        _quietly(os.rmdir, path)
        return
    else:
        same = os.path.lexists(path) and os.stat(path).st_size == making.size
        same = same and digests.digest(path, making.size) == making.expected
    if backup and os.path.lexists(backup):
        if os.path.samefile(backup, path):
            _quietly(os.unlink, backup)  # it had a second name, and not yet made way
        elif same:
            _quietly(os.rename, backup, path)
    elif same and not backup:
        _quietly(os.unlink, path)


def _write(beside: str, file: CarriedFile, content: Path | None) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(beside, flags, 0o600)
    try:
        found = hashlib.blake2b(digest_size=32)
        if content is not None:
            with content.open("rb", buffering=0) as source:
                while data := source.read(_CHUNK):
                    found.update(data)
                    _write_all(fd, data)
            if found.hexdigest() != file.digest:
                raise RestoreError(
                    f"{file.path} in the image is not what the image says of it",
                    code="carried-invalid",
                    hint="do not trust this image",
                )
        os.fsync(fd)
        _dress(f"/proc/self/fd/{fd}", file)
        return os.fstat(fd).st_ino
    except BaseException:
        _quietly(os.unlink, beside)
        raise
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _dress(path: str, file: CarriedFile) -> None:
    """Owner before mode, since a change of owner takes set-id bits away; times last."""
    os.chown(path, file.uid, file.gid)
    os.chmod(path, file.mode & 0o7777)
    for name, value in file.attributes.items():
        # A file system without them, or without ACLs, is no reason not to go on.
        with contextlib.suppress(OSError):
            if name.startswith(_ATTRIBUTES):
                os.setxattr(path, name, value)
    os.utime(path, ns=(file.modified, file.modified))


def backup_of(path: str) -> str:
    """A free name beside ``path`` for what makes way."""
    names = (f"{path}{BACKUP}{f'-{number}' if number else ''}" for number in itertools.count())
    return next(name for name in names if not os.path.lexists(name))


def _remove(path: str, inode: int) -> None:
    """Remove what was made, unless another has taken its name."""
    with contextlib.suppress(OSError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)


def _quietly(act: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(OSError):
        act(*arguments)


def _failure(file: CarriedFile, error: OSError) -> RestoreError | StorageError:
    details = os.strerror(error.errno or 0)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{file.path} cannot be written", code="storage-full", details=details, hint="make room")
    return RestoreError(f"{file.path} cannot be made", code="carried-place", details=details)
