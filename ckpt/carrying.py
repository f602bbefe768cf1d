"""Which files travel in an image, and their way into it.

While the group stands still it is gone through what it has open or mapped for writing, and what the user has named is
walked;
each file is described and digested, so that a target can be asked for it before anything of it is sent. The contents
follow CRIU's own files, straight from where they lie. Of a group that is to run on they are copied beside CRIU's images
first, since by the time the image is written they may be others.

A file that is open for writing travels by itself when it is small (``LARGEST``, and ``ALTOGETHER`` in sum): logs, PID
files, the state of small programs. A database's files may be as large as its disk, and the group stands still while
they are read, so they are carried when that was asked for; otherwise the dump says that they are not. A log that is too
large, and that nobody in the group reads, begins anew. Working directories, the directories of sockets and those above
the files are made again with their owners, where they are missing; their content stays.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path

from ckpt.errors import NotFoundError, UsageError
from ckpt.image import Writer
from ckpt.kernel import carried as kernel
from ckpt.kernel import digests
from ckpt.model.carried import MEMBER_PREFIX, CarriedFile, is_out_of_bounds
from ckpt.model.checkpoint import CriuNotes
from ckpt.model.process import FileKind, MountPlace, OpenFile, Process
from ckpt.model.socket import Socket
from ckpt.records import dataclass
from ckpt.revalidate.needs import is_named, on_target

MIB = 1 << 20
LARGEST = 64 * MIB
ALTOGETHER = 256 * MIB
MOST = 60_000
"""So many files at most: an image holds 65536, and CRIU's are among them."""


class OpenFiles(enum.StrEnum):
    """Which of the files that the group has open for writing travel."""

    SMALL = "small"
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What travels: the records, where the content of each member lies, and what of it has to be said."""

    files: tuple[CarriedFile, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The bytes of all contents."""
        return sum(one.size for one in self.files if one.member)


def check_named(paths: Sequence[Path]) -> tuple[Path, ...]:
    """What the user has named, as absolute paths. NotFoundError and UsageError for what cannot be carried."""
    found = []
    for path in paths:
        whole = Path(os.path.normpath(path.absolute()))
        if not os.path.lexists(whole):
            raise NotFoundError(f"there is no file {path} to be carried", code="carried-missing")
        if kernel.describe(str(whole), str(whole)) is None:
            raise UsageError(f"{path} is neither a file nor a directory nor a link", code="carried-kind")
        if is_out_of_bounds(str(whole)):
            raise UsageError(f"{path} cannot be carried", code="carried-kind", hint="name what is the group's own")
        found.append(whole)
    return tuple(found)


def collect(
    processes: Sequence[Process],
    sockets: Sequence[Socket],
    notes: CriuNotes,
    named: Sequence[Path] = (),
    which: OpenFiles = OpenFiles.SMALL,
) -> Carried:
    """Describe and digest what travels of a group that stands still."""
    found: dict[str, tuple[CarriedFile, str]] = {}
    for source in (source for path in named for source in _walk(str(path))):
        one = kernel.describe(source, source)
        if one is not None:
            found.setdefault(source, (dataclasses.replace(one, named=True), source))
    warnings: list[str] = []
    if which is not OpenFiles.NONE:
        for opened, source in (*_open_files(processes, notes), *_shared_memory(processes, notes)):
            found.setdefault(opened.path, (opened, source))
        warnings = list(_leave_out(found, which))
    for path in _directories(processes, sockets, notes, found):
        one = kernel.describe(path, path, follow=True)
        if one is not None and one.kind is FileKind.DIRECTORY:
            found.setdefault(path, (one, path))
    return _numbered((found[path] for path in sorted(found)[:MOST]), tuple(warnings))


def _numbered(found: Iterable[tuple[CarriedFile, str]], warnings: tuple[str, ...]) -> Carried:
    files: list[CarriedFile] = []
    sources: dict[str, str] = {}
    for one, source in found:
        if one.kind is FileKind.REGULAR and one.size and not (one.append and one.digest == _NOT_CARRIED):
            member = f"{MEMBER_PREFIX}{len(sources) + 1}"
            digest = digests.digest(source, one.size)
            if digest is None:
                continue  # it is gone, or no file any more
            one = dataclasses.replace(one, member=member, digest=digest)
            sources[member] = source
        else:
            one = dataclasses.replace(one, digest="")
        if one.is_sound:
            files.append(one)
    kept = {one.member for one in files}
    return Carried(
        files=tuple(files), sources={key: value for key, value in sources.items() if key in kept}, warnings=warnings
    )


_NOT_CARRIED = "-"


def _walk(path: str) -> Iterator[str]:
    """The path, and all below it; links are not followed."""
    yield path
    if os.path.isdir(path) and not os.path.islink(path):
        for directory, names, files in os.walk(path):
            yield from (posixpath.join(directory, name) for name in sorted((*names, *files)))


def _open_files(processes: Sequence[Process], notes: CriuNotes) -> Iterator[tuple[CarriedFile, str]]:
    """The regular files that the group has open for writing, by the paths that the target has, and how to read them."""
    held: dict[str, list[tuple[OpenFile, int]]] = {}
    for process in processes:
        for file in process.files:
            if file.kind is FileKind.REGULAR and not file.deleted and file.mount is not MountPlace.INTERNAL:
                held.setdefault(file.path, []).append((file, process.pid))
    foreign = {file.path for file in notes.files}
    for path, uses in held.items():
        if not any(file.flags & os.O_ACCMODE != os.O_RDONLY for file, _ in uses):
            continue
        # What was opened in another mount namespace has the name that it has there.
        target = path if path in foreign else on_target(path, notes.mounts)
        file, pid = uses[0]
        source = f"/proc/{pid}/fd/{file.fd}"
        one = kernel.describe(source, target, follow=True) if target is not None else None
        if one is not None:
            logs = all(_only_appends(file) for file, _ in uses)
            yield dataclasses.replace(one, append=logs), source


def _shared_memory(processes: Sequence[Process], notes: CriuNotes) -> Iterator[tuple[CarriedFile, str]]:
    """The files that the group writes to by mapping them, as it does with named shared memory."""
    for process in processes:
        for file in process.maps:
            target = on_target(file.path, notes.mounts) if file.shared and file.writable and is_named(file) else None
            source = f"/proc/{process.pid}/root{file.path}"
            one = kernel.describe(source, target, follow=True) if target is not None else None
            if one is not None and one.kind is FileKind.REGULAR:
                yield one, source


def _only_appends(file: OpenFile) -> bool:
    return bool(file.flags & os.O_APPEND) and file.flags & os.O_ACCMODE == os.O_WRONLY


def _leave_out(found: dict[str, tuple[CarriedFile, str]], which: OpenFiles) -> Iterator[str]:
    """Take out what is too large to travel unasked, and say so."""
    total = 0
    for path in sorted(found, key=lambda path: found[path][0].size):
        one, source = found[path]
        if one.named or one.kind is not FileKind.REGULAR:
            continue
        total += one.size
        if which is OpenFiles.ALL or (one.size <= LARGEST and total <= ALTOGETHER):
            continue
        if one.append:
            found[path] = (dataclasses.replace(one, digest=_NOT_CARRIED), source)
        else:
            del found[path]
            yield (
                f"{path}: it is open for writing and has {one.size // MIB} MiB, so it does not travel in the image"
                " (--open-files all, or --with-file, carries it to another host)"
            )


def _directories(
    processes: Sequence[Process], sockets: Sequence[Socket], notes: CriuNotes, found: Iterable[str]
) -> Iterator[str]:
    """The directories that have to be there: what is worked in, what sockets are in, and all above and above files."""
    wanted = {process.cwd for process in processes if not process.zombie}
    wanted |= {posixpath.dirname(one.path or "") for one in sockets if one.family == "unix"}
    places = {on_target(path, notes.mounts) for path in wanted if path.startswith("/")}
    places |= {posixpath.dirname(path) for path in found}
    for place in places:
        while place not in (None, "", "/"):
            yield str(place)
            place = posixpath.dirname(str(place))


def write(writer: Writer, carried: Carried) -> None:
    """Write the contents into an image. StorageError when one is not what was described any more."""
    for one in carried.files:
        if one.member in carried.sources:
            with kernel.Content(carried.sources[one.member], one) as content:
                writer.add_file(one.member, content)


def spool(carried: Carried, directory: Path) -> Carried:
    """Copy the contents into ``directory``, under their members' names; what is left has nothing more to be written."""
    for one in carried.files:
        if one.member in carried.sources:
            with (
                kernel.Content(carried.sources[one.member], one) as content,
                (directory / one.member).open("xb") as out,
            ):
                while data := content.read(MIB):
                    out.write(data)
    return dataclasses.replace(carried, sources={})
