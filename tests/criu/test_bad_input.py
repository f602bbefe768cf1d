"""What cannot work is refused with a whole message and its own code, and nothing is lost and nothing is left by it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckpt import registry
from ckpt.dump import dump_group
from ckpt.errors import CkptError
from ckpt.image import Reader
from ckpt.kernel import fuse, outside, syscalls, tmpfs
from ckpt.restore import restore_group
from tests import lab
from tests.conftest import require
from tests.criu.groups import Group, Starter, python

BROKEN = Path(__file__).parents[2] / "images/broken"

PF_KTHREAD = 0x00200000


def refusal(work: Callable[[], object]) -> tuple[int, str, str, str | None]:
    """Exit status, code, message and hint of the error that ``work`` ends with; what is there must be as before."""
    before = lab.traces()
    with pytest.raises(CkptError) as refused:
        work()
    assert lab.traces() == before
    assert registry.operations() == ()
    error = refused.value
    return error.status, error.code, str(error), error.hint


@pytest.fixture
def group(start: Starter) -> Iterator[Group]:
    """A group with a connection that goes on, whatever is done to it in the test."""
    made = start.stream_server()
    with made.stream() as stream:
        stream.progress()
        yield made
        stream.progress()
        stream.finish()


@contextlib.contextmanager
def room(place: Path, size: int) -> Iterator[Path]:
    """A directory with room for so many bytes."""
    place.mkdir()
    syscalls.mount("tmpfs", str(place), kind="tmpfs", data=f"size={size}")
    try:
        yield place
    finally:
        syscalls.umount2(str(place), syscalls.MNT_DETACH)


# -- dump ------------------------------------------------------------------------------------------------------------


def test_dump_pid_that_does_not_exist(directories: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pid = ended.pid
    assert refusal(lambda: dump_group(pid, directories / "x")) == (
        4,
        "process-not-found",
        f"There is no process {pid}",
        "ckpt ps lists the groups that ckpt knows",
    )


def test_dump_kernel_thread(directories: Path) -> None:
    host = lab.HOST_PROC / "3"
    flags = (host / "stat").read_text().split(") ")[1].split()[6] if host.exists() else "0"
    require(bool(int(flags) & PF_KTHREAD), "no thread of the kernel is to be seen here")
    name = (host / "comm").read_text().strip()
    # The lab's own /proc shows none; 3 is not one of the numbers that this session has there.
    script = f'mount --bind {lab.HOST_PROC} /proc && exec "$@"'
    ckpt = [sys.executable, "-c", "from ckpt.cli.main import main; main()", "dump", "3", "-o", str(directories / "x")]
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", *ckpt]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 3
    assert f"3 cannot be dumped\n  PID 3 ({name}): is a thread of the kernel, not a program" in done.stderr


@pytest.mark.parametrize("pid", [os.getpid, os.getppid])
def test_dump_itself_or_an_ancestor(pid: Callable[[], int], directories: Path) -> None:
    name = Path(f"/proc/{pid()}/comm").read_text().strip()
    assert refusal(lambda: dump_group(pid(), directories / "x")) == (
        3,
        "process-self",
        (
            f"{pid()} cannot be dumped: PID {pid()} ({name}): "
            "ckpt itself runs below this process, so it would freeze itself"
        ),
        "run ckpt from a shell that the group did not start, or name a smaller group",
    )


def test_dump_name_that_is_no_group(directories: Path) -> None:
    assert refusal(lambda: dump_group("nosuch", directories / "x")) == (
        4,
        "group-unknown",
        "no group is named nosuch",
        "`ckpt ps` lists the groups of this host",
    )


def test_dump_namespace_shared_with_a_process_outside(group: Group, children: list[int]) -> None:
    stranger = subprocess.Popen(
        ["nsenter", f"--net=/proc/{group.pid}/ns/net", "sleep", "inf"], stdin=subprocess.DEVNULL
    )
    children.append(stranger.pid)
    stranger.returncode = 0
    while Path(f"/proc/{stranger.pid}/comm").read_text() != "sleep\n":
        pass
    inode = os.stat(f"/proc/{group.pid}/ns/net").st_ino
    assert refusal(group.dump) == (
        3,
        "netns-shared",
        (
            f"{group.target} cannot be dumped: network namespace {inode}: is also that of PID {stranger.pid} (sleep), "
            "outside of the group, whose network would be frozen and taken away with it"
        ),
        "end these processes, or name a root task that all of them are below",
    )


def test_dump_file_is_there(group: Group) -> None:
    path = group.images / "there"
    path.write_text("precious")
    assert refusal(lambda: dump_group(group.target, path)) == (
        5,
        "image-exists",
        f"{path} is there already",
        "choose another -o, or give --force",
    )
    assert path.read_text() == "precious"


def test_dump_file_is_a_directory(group: Group) -> None:
    path = group.images
    assert refusal(lambda: dump_group(group.target, path)) == (
        5,
        "image-is-directory",
        f"{path} is a directory",
        "name a file",
    )


def test_dump_directory_is_missing(group: Group) -> None:
    path = group.images / "no"
    assert refusal(lambda: dump_group(group.target, path / "x")) == (
        4,
        "directory-missing",
        f"there is no directory {path}",
        "make it first",
    )


@contextlib.contextmanager
def piped(group: Group) -> Iterator[subprocess.Popen[bytes]]:
    """A dump to a pipe, of which the beginning has been read: it has more to write than the pipe takes."""
    argv = [sys.executable, "-c", "from ckpt.cli.main import main; main()", "dump", str(group.target), "-o", "-"]
    argv += ["--compress", "none"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as ckpt:
        assert ckpt.stdout is not None
        # Its pages come after the records, and nobody takes them.
        assert ckpt.stdout.read(1 << 16)
        yield ckpt
        if ckpt.poll() is None:
            ckpt.kill()


def test_dump_to_a_reader_that_dies_lets_the_group_run_on(group: Group) -> None:
    before = lab.traces()
    with piped(group) as ckpt:
        assert ckpt.stdout is not None and ckpt.stderr is not None
        ckpt.stdout.close()
        said = ckpt.stderr.read().decode()
        assert ckpt.wait() == 11
    wanted = (
        "ckpt: the image could not be written\n  nobody reads the pipe after [0-9]+ bytes\n  {} runs on as it was\n"
    )
    assert re.fullmatch(wanted.format(group.target), said)
    assert lab.traces() == before


def test_dump_to_a_reader_that_stops_is_undone_by_a_signal(group: Group) -> None:
    before = lab.traces()
    with piped(group) as ckpt:
        assert ckpt.stdout is not None
        while _readable(ckpt.stdout.fileno()) < fcntl.fcntl(ckpt.stdout.fileno(), fcntl.F_GETPIPE_SZ) // 2:
            time.sleep(0.01)
        ckpt.send_signal(signal.SIGINT)
        # It ends though its pipe is still full.
        assert ckpt.wait() == 128 + signal.SIGINT
    assert lab.traces() == before


def _readable(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_dump_no_space_left_for_criu(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No machine has that much memory to spare: CRIU's images of a group that is to run on are files on the disk first.
    monkeypatch.setattr(tmpfs, "_SPARE_BYTES", 1 << 60)
    with room(tmp_path / "small", 1 << 20) as small:
        status, code, message, hint = refusal(lambda: dump_group(group.target, small / "x.ckpt", leave_running=True))
        assert list(small.iterdir()) == []
    assert (status, code) == (9, "no-space")
    brief, line = message.split("\n")
    assert brief == f"{group.target} could not be dumped, and runs on: the disk is full"
    assert re.fullmatch(r"CRIU: .*No space left on device \(.*\)", line)
    assert hint is not None and re.fullmatch("make room, or write the image elsewhere; CRIU's log is .*", hint)


def test_dump_no_space_left_for_the_image_of_a_group_that_runs_on(group: Group, tmp_path: Path) -> None:
    with room(tmp_path / "small", 1 << 20) as small:
        path = small / "x.ckpt"
        status, code, message, hint = refusal(lambda: dump_group(group.target, path, codec="none", leave_running=True))
        assert list(small.iterdir()) == []
    assert (status, code, hint) == (11, "storage-full", "make room, or write it elsewhere")
    wanted = f"{path} could not be written: no space is left after [0-9]+ bytes, and more was to come"
    assert re.fullmatch(wanted, message)
    group.round_trip()


def test_dump_no_space_left_for_the_image(group: Group, tmp_path: Path) -> None:
    raw = group.dump(leave_running=True).raw_size
    with room(tmp_path / "small", raw // 2) as small:
        path = small / "x.ckpt"
        status, code, message, hint = refusal(lambda: dump_group(group.target, path, codec="none"))
        assert list(small.iterdir()) == []
    assert (status, code, hint) == (11, "storage-full", "make room, or write it elsewhere")
    first, second = message.split("\n")
    assert re.fullmatch(
        f"{path} could not be written: no space is left after [0-9]+ bytes, and more was to come", first
    )
    assert second == f"{group.target} runs on as it was"


def test_dump_needs_room_for_the_image_alone(group: Group, tmp_path: Path) -> None:
    raw = group.dump(leave_running=True).raw_size
    with room(tmp_path / "enough", raw + raw // 4) as enough:
        group.image = enough / "x.ckpt"
        dump_group(group.target, group.image, codec="none")
        assert os.listdir(enough) == ["x.ckpt"]
        group.image = Path(shutil.copy(group.image, tmp_path))
    group.restore()


def test_dump_connections_that_are_never_accepted(start: Starter) -> None:
    script = (
        "import socket, time; s = socket.create_server(('', 7000)); print('ready', flush=True); time.sleep(3)\n"
        "while True: s.accept()[0].sendall(b'late')"
    )
    group = start([*python("x")[:-1], "-c", script])
    group.wait_for_log("ready")
    with group.segment.connect(group.addresses.v4, 7000) as waiting:
        assert refusal(group.dump) == (
            3,
            "socket-accept-queue",
            f"{group.target} cannot be dumped: 1 connections wait to be accepted, and the program does not accept them",
            "try again when it is less busy, or drop them with --skip-in-flight",
        )
        assert waiting.recv(8) == b"late"


# -- run -------------------------------------------------------------------------------------------------------------


def test_run_name_is_taken(group: Group, start: Starter) -> None:
    assert refusal(lambda: start(["sleep", "inf"], name=group.target)) == (
        5,
        "group-exists",
        f"a group named {group.target} is there already: it runs as PID {group.pid}",
        f"choose another --name, or `ckpt stop {group.target}` first",
    )


@pytest.mark.parametrize("address", ["10.77.0.2", "fd77::2"])
def test_run_address_of_another_machine(start: Starter, address: str) -> None:
    mac = json.loads(start.segment.in_client("ip", "-j", "link", "show", "eth0"))[0]["address"]
    assert refusal(lambda: start(["sleep", "inf"], only=f"{address}/24")) == (
        5,
        "address-in-use",
        f"the address {address} is in use: by {mac} on {start.segment.bridge}",
        "give the group another --address",
    )


def test_run_address_of_the_host(start: Starter) -> None:
    assert refusal(lambda: start(["sleep", "inf"], only="10.77.0.1/24")) == (
        5,
        "address-in-use",
        f"the address 10.77.0.1 is in use: by this host, on {start.segment.bridge}",
        "give the group another --address",
    )


def test_run_address_of_another_group(group: Group, start: Starter) -> None:
    assert refusal(lambda: start(["sleep", "inf"], addresses=group.addresses)) == (
        5,
        "address-in-use",
        f"the address {group.addresses.v4} is in use: by the group {group.target}",
        "give the group another --address",
    )


def test_run_bridge_that_is_not_one(start: Starter) -> None:
    (port,) = outside.ports(start.segment.bridge)
    assert refusal(lambda: start(["sleep", "inf"], link=port)) == (
        12,
        "link-not-bridge",
        f"{port} is not a bridge: it is a link of kind veth",
        "name a bridge, or attach to this link by --kind macvlan",
    )


# -- restore ---------------------------------------------------------------------------------------------------------


def test_restore_name_is_taken(group: Group) -> None:
    group.dump(leave_running=True)
    name, v4, v6 = group.target, group.addresses.v4, group.addresses.v6
    assert refusal(group.restore) == (
        3,
        "group-name-taken",
        (
            f"{group.image} cannot be restored here: {name}: a group of that name is there and "
            f"runs as PID {group.pid}\n"
            f"{v4}: the group {name} has it\n"
            f"{v6}: the group {name} has it"
        ),
        (
            f"choose another name with --name, or `ckpt stop {name}` first; "
            f"`ckpt stop {name}` first, give the group another with --map-address, or restore where it is free"
        ),
    )


def test_restore_address_is_taken(start: Starter) -> None:
    group = start.stream_server()
    with group.stream() as stream:
        stream.progress()
        group.dump()
        squatter = start(["sleep", "inf"], addresses=group.addresses)
        assert refusal(group.restore) == (
            3,
            "address-in-use",
            (
                f"{group.image} cannot be restored here: {group.addresses.v4}: the group {squatter.target} has it\n"
                f"{group.addresses.v6}: the group {squatter.target} has it"
            ),
            (
                f"`ckpt stop {squatter.target}` first, give the group another with --map-address,"
                " or restore where it is free"
            ),
        )


def test_restore_image_cut_or_altered_is_refused_and_the_sound_one_restores(start: Starter) -> None:
    group = start.stream_server()
    with group.stream() as stream:
        stream.progress()
        group.dump()
        sound = group.image.read_bytes()
        bad = group.images / "bad.ckpt"
        for place in range(1, 20, 3):
            cut = len(sound) * place // 20
            for content in (sound[:cut], sound[:cut] + bytes([sound[cut] ^ 1]) + sound[cut + 1 :]):
                bad.write_bytes(content)
                status, code, _, _ = refusal(lambda: restore_group(bad))
                assert (status, code[:6]) == (6, "image-"), place
        bad.unlink()
        assert [path.name for path in group.images.iterdir()] == [group.image.name]
        group.restore()
        stream.progress()
        stream.finish()


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (
            lambda path: path.write_text("Some words, and no image of a group at all.\n"),
            (6, "image-not-ckpt", "{} is not a ckpt image: header at byte 0: it begins with 53 6f 6d 65 20 77", None),
        ),
        (Path.mkdir, (6, "image-is-directory", "{} is a directory", "name an image (*.ckpt) in it")),
        (lambda path: None, (4, "image-missing", "there is no image {}", None)),
        (
            os.mkfifo,
            (6, "image-not-file", "{} is not a regular file", "read it through a pipe, or name the image itself"),
        ),
        (
            lambda path: shutil.copy(BROKEN / "version-2.ckpt", path),
            (
                6,
                "image-version",
                (
                    "{} is of a format version that this ckpt cannot read: header at byte 0: format version 2, "
                    "written by ckpt 3.1.4; this ckpt reads version 1"
                ),
                "use the ckpt that wrote the image, or a newer one",
            ),
        ),
    ],
    ids=["text", "directory", "missing", "fifo", "version"],
)
def test_restore_what_is_no_image(
    make: Callable[[Path], object], wanted: tuple[int, str, str, str | None], directories: Path
) -> None:
    path = directories / "x"
    make(path)
    status, code, message, hint = wanted
    assert refusal(lambda: restore_group(path)) == (status, code, message.format(path), hint)


def test_restore_image_that_cannot_be_read(directories: Path) -> None:
    image = directories / "x.ckpt"
    image.touch(mode=0)

    def as_nobody() -> None:
        os.seteuid(65534)
        try:
            restore_group(image)
        finally:
            os.seteuid(0)

    assert refusal(as_nobody) == (
        7,
        "image-permission",
        f"{image} may not be read: Permission denied",
        "images are mode 0600",
    )


@pytest.fixture
def no_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that serves no files from user space."""

    def refused(device: int) -> int:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(fuse, "_mount", refused)


def restores_beside_nothing(start: Starter, tmp_path: Path) -> None:
    group = start.stream_server()
    with group.stream() as stream:
        stream.progress()
        report = group.dump()
        with room(tmp_path / "small", report.size + (1 << 20)) as small:
            group.image = Path(shutil.copy(group.image, small))
            group.restore()
            assert list(small.iterdir()) == [group.image]
        stream.progress()
        stream.finish()


def test_restore_reads_memory_out_of_the_image(start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of what the image has there is room for nothing but the image.
    monkeypatch.setattr(Reader, "extract", None)
    restores_beside_nothing(start, tmp_path)


@pytest.mark.usefixtures("no_fuse")
def test_restore_unpacks_in_memory_where_there_is_room(start: Starter, tmp_path: Path) -> None:
    restores_beside_nothing(start, tmp_path)


@pytest.mark.usefixtures("no_fuse")
def test_restore_no_space_left_to_unpack(start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No machine has that much memory to spare.
    monkeypatch.setattr(tmpfs, "_SPARE_BYTES", 1 << 60)
    group = start.stream_server()
    with group.stream() as stream:
        stream.progress()
        report = group.dump()
        with room(tmp_path / "small", report.size + (1 << 20)) as small:
            image = small / "x.ckpt"
            shutil.copy(group.image, image)
            status, code, message, hint = refusal(lambda: restore_group(image))
            assert list(small.iterdir()) == [image]
        assert (status, code, hint) == (11, "storage-full", "make room, or write it elsewhere")
        assert re.fullmatch(
            r".* could not be extracted: no space is left after \d+ bytes, and more was to come", message
        )
        group.restore()
        stream.progress()
        stream.finish()
