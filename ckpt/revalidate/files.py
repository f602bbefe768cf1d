"""Files: are they there, and are they what the group ran with.

CRIU opens every file by its path and compares size, mode and build-id (criu/files-reg.c, validate_file), one file after
the other, late in the restore; here all of them are named at once, before it. What cannot be seen without reading
whole files, a change that keeps size and build-id, is not looked for.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence

from ckpt.model.carried import Placement
from ckpt.model.finding import Finding
from ckpt.model.host import FileFacts, FileNeed, FileRole, Needs, TargetFacts
from ckpt.model.process import FileKind
from ckpt.revalidate.needs import NETNS_NAMES
from ckpt.revalidate.verdict import block, counted, ok, warn

_SETTLED = frozenset({Placement.PLACE, Placement.REPLACE, Placement.REFUSE})
"""What is there now is nothing to the group then, or is spoken of already."""
_PLACEABLE = frozenset(FileRole) - {FileRole.NETNS}

_SAME_VERSION = "install the version of it that the source has"


def check_files(needs: Needs, target: TargetFacts, placed: Mapping[str, Placement]) -> Iterator[Finding]:
    """One finding for each path that is not as it should be, and one that counts the others.

    ``placed`` is what becomes of those in the image.
    """
    good: dict[FileRole, int] = {}
    for need in needs.files:
        facts = target.files.get(need.path)
        if need.role is FileRole.CARRIED or (need.role in _PLACEABLE and placed.get(need.path) in _SETTLED):
            continue
        findings = tuple(_JUDGES[need.role](need, facts))
        yield from findings
        if not findings:
            good[need.role] = good.get(need.role, 0) + 1
    for roles, code, what in _GROUPS:
        number = sum(good.get(role, 0) for role in roles)
        if number:
            yield ok(code, counted(number, *what), "as on the source")


def _program(need: FileNeed, facts: FileFacts | None) -> Iterator[Finding]:
    """An executable, or a file that is mapped: what runs must be the very same."""
    word = "exe" if need.role is FileRole.EXECUTABLE else "mapped"
    use = "runs it" if need.role is FileRole.EXECUTABLE else "has it mapped"
    if facts is None:
        yield block(
            f"{word}-missing",
            need.path,
            f"{need.user} {use}, and it is not there",
            _SAME_VERSION,
            needed=_version(need),
        )
        return
    differs = tuple(_differences(need, facts))
    if differs:
        yield block(
            f"{word}-differs",
            need.path,
            f"{need.user} {use}, and {'; '.join(differs)}",
            _SAME_VERSION,
            needed=_version(need),
            there=_version(facts),
        )


def _version(one: FileNeed | FileFacts) -> str:
    """What tells a program from another build of it."""
    parts = [f"{one.size} bytes", f"mode {_mode(one.mode or 0)}"]
    parts += [f"build-id {one.build_id}"] if one.build_id else []
    return ", ".join(parts + ([f"BLAKE2b {one.digest}"] if one.digest else []))


def _differences(need: FileNeed, facts: FileFacts) -> Iterator[str]:
    if facts.kind is not need.kind:
        yield f"it is a {facts.kind} here"
        return
    if need.build_id is not None and facts.build_id != need.build_id:
        yield f"its build-id is {facts.build_id or 'missing'} here instead of {need.build_id}"
    if need.size is not None and facts.size != need.size and not _has_grown(need, facts):
        yield f"its size is {facts.size} here instead of {need.size}"
    if need.digest is not None and facts.digest != need.digest and facts.size == need.size:
        yield "its content is another one"
    if need.mode is not None and facts.mode != need.mode:
        yield f"its mode is {_mode(facts.mode)} here instead of {_mode(need.mode)}"


def _open(need: FileNeed, facts: FileFacts | None) -> Iterator[Finding]:
    """A file, directory or device that is open by its path."""
    if facts is None:
        yield block(
            "file-missing",
            need.path,
            f"{need.user} has it open, and it is not there",
            _make(need),
        )
    elif facts.kind is not need.kind:
        yield block(
            "file-kind",
            need.path,
            f"{need.user} has a {need.kind} open there, and here it is a {facts.kind}",
            _make(need),
        )
    elif need.special != facts.special:
        yield block(
            "file-kind",
            need.path,
            f"{need.user} has the device {need.special} open there, and here it is {facts.special}",
            f"make it the device {need.special}, with mknod",
        )
    elif need.role is FileRole.OPEN:
        yield from _content(need, facts)


def _content(need: FileNeed, facts: FileFacts) -> Iterator[Finding]:
    if need.mode is not None and facts.mode != need.mode:
        # CRIU is told not to compare modes (skip_file_rwx_check): what was open is open again all the same.
        yield warn(
            "file-mode",
            need.path,
            f"its mode is {_mode(facts.mode)} here instead of {_mode(need.mode)}",
            f"chmod {_mode(need.mode)} {need.path}",
        )
    if need.size is None or facts.size == need.size:
        return
    if _has_grown(need, facts):
        yield ok(
            "file-grown",
            need.path,
            f"{need.user} appends to it; it has {facts.size} bytes instead of {need.size}, and it goes on at the end",
        )
        return
    code = "file-shrunk" if facts.size < need.size else "file-differs"
    yield block(
        code,
        need.path,
        f"{need.user} has it open, and it has {facts.size} bytes here instead of {need.size}",
        "bring back the file as it was when the image was made",
        needed=f"{need.size} bytes",
        there=f"{facts.size} bytes",
    )


def _directory(need: FileNeed, facts: FileFacts | None) -> Iterator[Finding]:
    """A working directory, or the root of a process."""
    code, what = (
        ("cwd-missing", "works in it") if need.role is FileRole.WORKDIR else ("root-missing", "has it as its root")
    )
    if facts is None:
        yield block(code, need.path, f"{need.user} {what}, and it is not there", f"mkdir -p {need.path}")
    elif facts.kind is not FileKind.DIRECTORY:
        yield block(
            code, need.path, f"{need.user} {what}, and it is no directory here", f"make {need.path} a directory"
        )


def _socket(need: FileNeed, facts: FileFacts | None) -> Iterator[Finding]:
    """The name that a unix socket is bound to, and the directory of it."""
    if need.kind is FileKind.DIRECTORY:
        if facts is None or facts.kind is not FileKind.DIRECTORY:
            yield block(
                "socket-directory-missing",
                need.path,
                f"{need.user} is a unix socket bound in it, and there is no such directory",
                f"mkdir -p {need.path}",
            )
    elif facts is not None and facts.bound:
        yield block(
            "socket-path-taken",
            need.path,
            f"{need.user} is a unix socket bound to it, and another process receives there",
            "stop the server that uses it; `ss -xlp` names it",
        )
    elif facts is not None and facts.kind is not FileKind.SOCKET:
        yield block(
            "socket-path-taken",
            need.path,
            f"{need.user} is a unix socket bound to it, and here it is a {facts.kind}",
            f"move {posixpath.basename(need.path)} out of the way",
        )


def _netns(need: FileNeed, facts: FileFacts | None) -> Iterator[Finding]:
    """A name of the group's network namespace, as `ip netns` gives them."""
    directory, name = posixpath.split(need.path)
    if posixpath.normpath(need.path) != need.path or directory != NETNS_NAMES or not name:
        yield block("netns-name-invalid", need.path, f"{need.user} cannot have such a name", "do not trust this image")
    elif facts is not None:
        yield block(
            "netns-name-taken",
            need.path,
            f"{need.user} had this name, and another one has it here",
            f"ip netns delete {name}, if nobody needs it",
        )


def _has_grown(need: FileNeed, facts: FileFacts) -> bool:
    return need.append and need.size is not None and facts.size > need.size


def _make(need: FileNeed) -> str:
    if need.kind is FileKind.DIRECTORY:
        return f"mkdir -p {need.path}"
    if need.kind is FileKind.FIFO:
        return f"mkfifo {need.path}"
    if need.special is not None:
        return f"make it the device {need.special}, with mknod"
    return "bring the file here from the source, or back to where it was"


def _mode(mode: int) -> str:
    return f"{mode & 0o7777:04o}"


_JUDGES: dict[FileRole, Callable[[FileNeed, FileFacts | None], Iterator[Finding]]] = {
    FileRole.EXECUTABLE: _program,
    FileRole.MAPPED: _program,
    FileRole.OPEN: _open,
    FileRole.INHERITED: _open,
    FileRole.WORKDIR: _directory,
    FileRole.ROOT: _directory,
    FileRole.SOCKET: _socket,
    FileRole.NETNS: _netns,
}

_GROUPS: Sequence[tuple[Sequence[FileRole], str, tuple[str, str]]] = (
    ((FileRole.EXECUTABLE, FileRole.MAPPED), "programs", ("program or library", "programs and libraries")),
    ((FileRole.OPEN, FileRole.INHERITED), "files", ("open file", "open files")),
    ((FileRole.WORKDIR, FileRole.ROOT), "directories", ("directory", "directories")),
)
