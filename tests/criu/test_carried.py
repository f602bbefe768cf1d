"""Files that travel in an image: on a host that lacks them, has them, or has others by their names."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt import placed, registry
from ckpt.carrying import OpenFiles
from ckpt.clean import clean
from ckpt.errors import CkptError, NotFoundError, RefusedError, UsageError
from ckpt.image import Reader
from ckpt.model.finding import Severity
from ckpt.restore import RestoreReport
from tests.criu.groups import Group, Starter, python


def asked(group: Group) -> int:
    with group.segment.connect(group.addresses.v4, 7000) as client:
        return int(client.recv(20))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the program's files are."""
    (tmp_path / "srv" / "app").mkdir(parents=True)
    return tmp_path / "srv" / "app"


@pytest.fixture
def group(start: Starter, place: Path) -> Group:
    """The program, having been asked twice."""
    group = start(python("file_writer.py", place, 7000))
    group.wait_for_log("ready")
    assert [asked(group), asked(group)] == [1, 2]
    return group


def codes(report: RestoreReport, path: Path) -> list[str]:
    return [one.code for one in report.findings if one.subject == str(path)]


def alarming(report: RestoreReport) -> list[tuple[str, str]]:
    return [(one.code, one.subject) for one in report.findings if one.severity is not Severity.OK]


def test_restore_where_nothing_of_it_is_makes_all_of_it(group: Group, place: Path) -> None:
    os.chown(place / "log", 33, 34)
    os.setxattr(place / "state", "user.kind", b"counter")
    before = {name: os.stat(place / name) for name in ("log", "state", "run", "work")}
    group.dump()
    shutil.rmtree(place.parent)
    report = group.restore()
    assert codes(report, place / "state") == codes(report, place / "work") == ["file-placed"]
    for name, wanted in before.items():
        found = os.stat(place / name)
        assert (found.st_mode, found.st_uid, found.st_gid) == (wanted.st_mode, wanted.st_uid, wanted.st_gid)
    assert os.getxattr(place / "state", "user.kind") == b"counter"
    assert stat.S_ISSOCK(os.stat(place / "run" / "control").st_mode)
    assert asked(group) == 3
    assert (place / "log").read_text() == "asked 1\nasked 2\nasked 3\n"


def test_round_trip_on_one_host_says_and_changes_nothing(group: Group, place: Path) -> None:
    inode = (place / "state").stat().st_ino
    group.dump()
    (place / "log").open("a").write("somebody else\n")
    report = group.restore()
    assert alarming(report) == []
    assert "file-grown" in codes(report, place / "log")
    assert (asked(group), (place / "state").stat().st_ino) == (3, inode)
    assert "somebody else\nasked 3\n" in (place / "log").read_text()


def test_restore_of_the_very_file_that_was_written_to_since_warns(group: Group, place: Path) -> None:
    group.dump()
    (place / "state").write_text("7")
    report = group.restore()
    assert alarming(report) == [("file-changed", str(place / "state"))]
    assert asked(group) == 8


def another(path: Path, text: str) -> None:
    """Another file by that name, as another host has it."""
    # Made before the first one is gone, whose inode it would have otherwise.
    path.with_name("other").write_text(text)
    path.with_name("other").rename(path)


def test_restore_where_another_file_is_refuses_and_replaces_when_asked(group: Group, place: Path) -> None:
    group.dump()
    another(place / "state", "9")
    another(place / "log", "another log\n")
    with pytest.raises(RefusedError) as caught:
        group.restore()
    assert (caught.value.code, (place / "state").read_text()) == ("file-differs", "9")
    report = group.restore(replace_files=True)
    assert {"file-replaced"} == {code for code, _ in alarming(report)}
    assert sorted(report.backups) == [place / "log.ckpt-backup", place / "state.ckpt-backup"]
    assert asked(group) == 3
    assert (place / "state.ckpt-backup").read_text() == "9"
    assert (place / "log").read_text() == "asked 1\nasked 2\nasked 3\n"


def test_restore_that_fails_takes_back_what_it_made(group: Group, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group.dump()
    another(place / "state", "9")
    (place / "log").unlink()
    shutil.rmtree(place / "work")
    before = sorted(place.rglob("*"))

    def break_it(*_: object, **__: object) -> int:
        raise CkptError("broken for the test", code="test")

    with monkeypatch.context() as broken:
        broken.setattr("ckpt.restore.rebuild", break_it)
        with pytest.raises(CkptError, match="broken for the test"):
            group.restore(replace_files=True)
    assert (sorted(place.rglob("*")), (place / "state").read_text()) == (before, "9")
    group.restore(replace_files=True)
    assert asked(group) == 3


def test_dump_carries_what_was_named_and_nothing_that_was_not_to_be(group: Group, place: Path, tmp_path: Path) -> None:
    config = tmp_path / "conf"
    (config / "parts").mkdir(parents=True)
    (config / "parts" / "one").write_text("1" * 3_000_000)
    (config / "empty").touch()
    (config / "link").symlink_to("parts/one")
    os.mkfifo(config / "fifo")
    group.dump(with_files=[config], open_files=OpenFiles.NONE)
    shutil.rmtree(config)
    with Reader(group.image) as reader:
        assert sum(name.startswith("carried-") for name in reader.files) == 1
    report = group.restore()
    assert asked(group) == 3
    assert (config / "parts" / "one").read_text() == "1" * 3_000_000
    assert (config / "empty").read_bytes() == b""
    assert os.readlink(config / "link") == "parts/one"
    assert not (config / "fifo").exists()
    assert codes(report, place / "state") == []


def test_dump_of_what_cannot_be_named_is_refused_beforehand(group: Group, place: Path) -> None:
    with pytest.raises(NotFoundError) as missing:
        group.dump(with_files=[place / "nowhere"])
    assert missing.value.code == "carried-missing"
    for path in ("/", "/proc/self", "/dev/null"):
        with pytest.raises(UsageError) as caught:
            group.dump(with_files=[Path(path)])
        assert caught.value.code == "carried-kind"
    assert asked(group) == 3


def test_dump_leaves_a_large_file_out_and_says_so(group: Group, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt.carrying.LARGEST", 0)
    report = group.dump(leave_running=True)
    assert [text for text in report.warnings if str(place / "state") in text]
    # All of it when that was asked for; and what runs on is carried as it was.
    group.dump(open_files=OpenFiles.ALL, leave_running=True)
    assert asked(group) == 3
    state = (place / "state").read_text()
    group.dump()
    (place / "log").unlink()
    report_ = group.restore()
    assert "file-begun" in codes(report_, place / "log")
    assert (state, asked(group), (place / "log").read_text()) == ("3", 4, "asked 4\n")


def test_dump_that_leaves_running_holds_what_was_there_then(group: Group, place: Path) -> None:
    group.dump(leave_running=True)
    image = group.image
    assert asked(group) == 3
    group.dump()
    shutil.rmtree(place)
    group.image = image
    group.restore()
    assert (place / "log").read_text() == "asked 1\nasked 2\n"
    assert asked(group) == 3


NOTE = b"\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00"


def test_restore_with_another_program_of_the_same_size_blocks(start: Starter, tmp_path: Path) -> None:
    program = tmp_path / "program"
    content = Path("/bin/sleep").read_bytes()
    assert content.count(NOTE) == 1
    # Without the note that is its build-id only the content tells it from another.
    program.write_bytes(content.replace(NOTE, NOTE.replace(b"\x03\x00\x00\x00GNU", b"\x7f\x00\x00\x00GNU")))
    program.chmod(0o755)
    group = start([str(program), "inf"])
    group.dump()
    original = program.read_bytes()
    other = bytearray(original)
    other[-1] ^= 1
    program.write_bytes(other)
    with pytest.raises(RefusedError) as caught:
        group.restore()
    assert caught.value.code == "exe-differs"
    assert "its content is another one" in (caught.value.details or "")
    program.write_bytes(original)
    group.restore()


KILLED = """
import os, signal, sys
from pathlib import Path
import ckpt.restore
from ckpt.kernel import carried
def end(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "placed":
    ckpt.restore.rebuild = end
elif sys.argv[2] == "second name":
    os.rename = end
elif sys.argv[2] == "half written":
    carried._dress = end
ckpt.restore.restore_group(Path(sys.argv[1]), replace_files=True)
"""


@pytest.mark.parametrize(("moment", "reboot"), [("placed", False), ("second name", True), ("half written", True)])
def test_clean_takes_back_what_a_killed_restore_has_made(group: Group, place: Path, moment: str, reboot: bool) -> None:
    group.dump()
    another(place / "state", "9")
    (place / "log").unlink()
    shutil.rmtree(place / "work")
    before = sorted(place.rglob("*"))
    done = subprocess.run([sys.executable, "-c", KILLED, str(group.image), moment])
    assert done.returncode == -signal.SIGKILL
    assert sorted(place.rglob("*")) != before
    if reboot:
        # What is below /run is gone then.
        for note in registry.state_dir().glob("ops/*"):
            note.unlink()
    found = clean()
    if moment == "placed":
        assert {str(place / name) for name in ("state", "log", "work")} <= {one.subject for one in found}
    assert (sorted(place.rglob("*")), (place / "state").read_text()) == (before, "9")
    assert clean() == ()
    group.restore(replace_files=True)
    assert asked(group) == 3
    # What runs is not touched.
    clean()
    assert (asked(group), (place / "state.ckpt-backup").read_text()) == (4, "9")


def test_clean_leaves_what_a_living_restore_has_placed(group: Group, place: Path) -> None:
    group.dump()
    shutil.rmtree(place.parent)
    code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "print(flush=True); sys.stdin.read()")
    words = [sys.executable, "-c", code, str(group.image), "placed"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as restore:
        assert restore.stdout is not None and restore.stdin is not None
        restore.stdout.readline()
        assert clean() == ()
        assert (place / "state").exists()
        restore.kill()
    clean()
    assert not place.exists()
    place.mkdir(parents=True)
    group.restore()


def test_clean_leaves_what_was_put_there_after_a_reboot(
    group: Group, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group.dump()
    shutil.rmtree(place.parent)
    subprocess.run([sys.executable, "-c", KILLED, str(group.image), "placed"])
    monkeypatch.setattr(placed, "boot_id", lambda: "another")
    monkeypatch.setattr(placed, "_booted_at", lambda: (place / "log").stat().st_ctime)
    os.chmod(place / "log", 0o600)
    clean()
    assert (place / "log").exists()
    group.restore(replace_files=True)
