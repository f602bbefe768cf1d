"""What becomes of files that travel in an image, and which of a group's do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.carrying import OpenFiles, collect
from ckpt.errors import StorageError
from ckpt.kernel.carried import Content, describe
from ckpt.kernel.digests import digest
from ckpt.model.carried import CarriedFile, Placement
from ckpt.model.checkpoint import Checkpoint, CriuNotes
from ckpt.model.finding import Severity
from ckpt.model.host import FileFacts, TargetFacts
from ckpt.model.process import FileKind, MappedFile, OpenFile, Process
from ckpt.revalidate import needs_of, revalidate
from ckpt.revalidate.carried import placements
from tests.unit.test_revalidate import CHECKPOINT, DATA, REGULAR, SERVER, TARGET, WORK, open_file

FILE = CarriedFile(path=DATA, mode=REGULAR, size=50, digest="aa", member="carried-1", inode=3, device="8:1")
THERE = FileFacts(kind=FileKind.REGULAR, size=50, mode=REGULAR, digest="aa", inode=9, device="8:1")
ELSEWHERE = replace(TARGET, host=replace(TARGET.host, hostname="b"))
SAME_HOST = replace(TARGET, host=replace(TARGET.host, hostname="a"))


def decided(
    file: CarriedFile, facts: FileFacts | None, target: TargetFacts = ELSEWHERE, *, replace_: bool = False
) -> Placement:
    files = {key: value for key, value in target.files.items() if key != file.path}
    target = replace(target, files=files if facts is None else {**files, file.path: facts})
    return placements(replace(CHECKPOINT, carried=(file,)), target, replace=replace_)[file.path]


@pytest.mark.parametrize(
    ("file", "facts", "expected"),
    [
        (FILE, None, Placement.PLACE),
        (FILE, THERE, Placement.LEAVE),
        (FILE, replace(THERE, digest="bb"), Placement.REFUSE),
        (FILE, replace(THERE, size=40, digest=None), Placement.REFUSE),
        # Its first bytes are the same; only where the group appends is that as good.
        (FILE, replace(THERE, size=60), Placement.REFUSE),
        (replace(FILE, append=True), replace(THERE, size=60), Placement.LEAVE_GROWN),
        (FILE, replace(THERE, kind=FileKind.DIRECTORY), Placement.REFUSE),
        (replace(FILE, size=0, member="", digest=""), replace(THERE, size=0, digest=None), Placement.LEAVE),
        (replace(FILE, size=0, member="", digest=""), replace(THERE, digest=None), Placement.REFUSE),
        (replace(FILE, member="", digest="", append=True), None, Placement.PLACE),
        (replace(FILE, member="", digest="", append=True), replace(THERE, digest=None), Placement.LEAVE),
        (replace(FILE, kind=FileKind.DIRECTORY), replace(THERE, kind=FileKind.DIRECTORY), Placement.LEAVE),
        (replace(FILE, kind=FileKind.DIRECTORY), THERE, Placement.REFUSE),
        (replace(FILE, kind=FileKind.SYMLINK), THERE, Placement.LEAVE),
    ],
)
def test_placement_on_another_host(file: CarriedFile, facts: FileFacts | None, expected: Placement) -> None:
    assert decided(file, facts) is expected


def test_placement_of_the_very_file_is_to_leave_it() -> None:
    changed = replace(THERE, digest="bb", inode=3)
    assert decided(FILE, changed, SAME_HOST) is Placement.LEAVE_CHANGED
    # Numbers of another host's file say nothing.
    assert decided(FILE, changed, ELSEWHERE) is Placement.REFUSE
    assert decided(FILE, replace(changed, inode=4), SAME_HOST) is Placement.REFUSE


@pytest.mark.parametrize("target", [SAME_HOST, ELSEWHERE])
def test_placement_where_others_shall_make_way(target: TargetFacts) -> None:
    assert decided(FILE, replace(THERE, digest="bb", inode=3), target, replace_=True) is Placement.REPLACE
    assert decided(FILE, THERE, target, replace_=True) is Placement.LEAVE
    assert decided(FILE, replace(THERE, kind=FileKind.DIRECTORY), target, replace_=True) is Placement.REFUSE


def carrying(*files: CarriedFile) -> Checkpoint:
    return replace(CHECKPOINT, carried=files)


def without(target: TargetFacts, *paths: str) -> TargetFacts:
    return replace(target, files={key: value for key, value in target.files.items() if key not in paths})


def test_revalidate_what_is_placed_is_not_missed() -> None:
    directory = CarriedFile(path=WORK, kind=FileKind.DIRECTORY)
    found = revalidate(carrying(FILE, directory), without(ELSEWHERE, DATA, WORK))
    assert [one for one in found if one.severity is not Severity.OK] == []
    assert [one.subject for one in found if one.code == "file-placed"] == [DATA, WORK]


def test_revalidate_program_that_is_placed_is_not_missed() -> None:
    program = replace(FILE, path=SERVER, named=True)
    found = revalidate(
        carrying(program, replace(FILE, path="/dev/shm/x", member="carried-2")), without(ELSEWHERE, SERVER)
    )
    assert [one for one in found if one.severity is not Severity.OK] == []


def test_revalidate_another_file_blocks_once_and_makes_way_when_asked() -> None:
    target = replace(ELSEWHERE, files={**ELSEWHERE.files, DATA: replace(THERE, size=51, digest="bb")})
    found = revalidate(carrying(FILE), target)
    assert [(one.code, one.subject) for one in found if one.severity is Severity.BLOCK] == [("file-differs", DATA)]
    found = revalidate(carrying(FILE), target, replace_files=True)
    assert [(one.code, one.subject) for one in found if one.severity is not Severity.OK] == [("file-replaced", DATA)]


@pytest.mark.parametrize(
    "path", ["relative", "/a/../b", "//a", "/proc/1/mem", "/dev/sda", "/dev/shm", "/", "/a\0b", "/a/"]
)
def test_revalidate_path_that_no_ckpt_writes_blocks(path: str) -> None:
    found = revalidate(carrying(replace(FILE, path=path)), ELSEWHERE)
    assert [one.code for one in found if one.severity is Severity.BLOCK] == ["carried-invalid"]


def test_revalidate_member_that_is_no_content_blocks() -> None:
    found = revalidate(carrying(replace(FILE, member="pages-1.img")), without(ELSEWHERE, DATA))
    assert "carried-invalid" in [one.code for one in found]


def test_revalidate_program_of_another_content_blocks_where_it_has_no_build_id() -> None:
    process = CHECKPOINT.processes[0]
    assert process.exe is not None
    exe = replace(process.exe, build_id=None, digest="aa")
    checkpoint = replace(CHECKPOINT, processes=(replace(process, exe=exe, maps=()),))
    need = next(one for one in needs_of(checkpoint).files if one.path == SERVER)
    assert (need.digest, need.size) == ("aa", 1000)
    same = replace(TARGET.files[SERVER], build_id=None, digest="aa")
    for digest_, codes in (("aa", []), ("bb", ["exe-differs"])):
        target = replace(TARGET, files={**TARGET.files, SERVER: replace(same, digest=digest_)})
        assert [one.code for one in revalidate(checkpoint, target) if one.severity is Severity.BLOCK] == codes


# -- which travel ------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "data").write_bytes(b"data")
    (tmp_path / "log").write_bytes(b"one line\n")
    (tmp_path / "read").write_bytes(b"read")
    return tmp_path


def opened(stack: list[int], path: Path, flags: int) -> OpenFile:
    """The file as our own descriptor has it: it is read through that."""
    fd = os.open(path, flags)
    stack.append(fd)
    return open_file(fd, str(path), flags=flags)


@pytest.fixture
def process(place: Path) -> Iterator[Process]:
    fds: list[int] = []
    files = (
        opened(fds, place / "data", os.O_RDWR),
        opened(fds, place / "log", os.O_WRONLY | os.O_APPEND),
        opened(fds, place / "read", os.O_RDONLY),
        replace(opened(fds, place / "read", os.O_RDWR), deleted=True, path="/gone"),
    )
    pid = os.getpid()
    yield replace(CHECKPOINT.processes[0], pid=pid, files=files, maps=(), cwd="/")
    for fd in fds:
        os.close(fd)


def test_collect_takes_what_is_open_for_writing(process: Process, place: Path) -> None:
    found = collect((process,), (), CriuNotes())
    files = {Path(one.path).name: one for one in found.files if one.kind is FileKind.REGULAR}
    assert files.keys() == {"data", "log"}
    assert (files["data"].size, files["data"].digest) == (4, digest(str(place / "data"), 4))
    assert [files["log"].append, files["data"].append] == [True, False]
    assert {one.member for one in files.values()} == set(found.sources) == {"carried-1", "carried-2"}
    paths = [one.path for one in found.files]
    assert paths.index(str(place)) < paths.index(str(place / "data"))
    assert found.size == 4 + 9


def test_collect_takes_shared_memory_by_its_name(process: Process, place: Path) -> None:
    path = str(place / "data")
    shared = MappedFile(path=path, device="", inode=1, shared=True, writable=True, mode=REGULAR)
    private = MappedFile(path=str(place / "read"), device="", inode=2, writable=True, mode=REGULAR)
    found = collect((replace(process, files=(), maps=(shared, private)),), (), CriuNotes())
    assert [one.path for one in found.files if one.member] == [path]


def test_collect_leaves_out_what_is_large_unless_it_is_asked_for(
    process: Process, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt.carrying.LARGEST", 3)
    found = collect((process,), (), CriuNotes())
    files = {Path(one.path).name: one for one in found.files if one.kind is FileKind.REGULAR}
    assert (list(files), files["log"].member, dict(found.sources)) == (["log"], "", {})
    assert [str(place / "data") in text for text in found.warnings] == [True]
    assert len(collect((process,), (), CriuNotes(), which=OpenFiles.ALL).sources) == 2
    assert len(collect((process,), (), CriuNotes(), [place / "data"]).sources) == 1
    assert collect((process,), (), CriuNotes(), which=OpenFiles.NONE).sources == {}


def test_content_that_has_changed_is_an_error(place: Path) -> None:
    path = str(place / "data")
    file = describe(path, path)
    assert file is not None
    file = replace(file, digest=digest(path, 4) or "")
    with Content(path, file) as content:
        assert (content.read(100), content.read(100)) == (b"data", b"")
    Path(path).write_bytes(b"atad")
    with Content(path, file) as content:
        content.read(100)
        with pytest.raises(StorageError) as caught:
            content.read(100)
    assert caught.value.code == "carried-changed"


def test_digest_of_fewer_bytes_or_no_file_is_none(place: Path) -> None:
    assert digest(str(place / "data"), 5) is None
    assert digest(str(place), 0) is None
    assert digest(str(place / "nowhere"), 0) is None
