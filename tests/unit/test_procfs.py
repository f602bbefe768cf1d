"""The texts of /proc: what the kernel writes, whatever a program calls itself or its files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt.kernel import elf
from ckpt.kernel.files import FileReader, parse_lock, split_deleted
from ckpt.kernel.multicast import Membership, parse_igmp, parse_igmp6
from ckpt.kernel.procfs import PF_KTHREAD, parse_stat, read_process
from ckpt.model.process import FileKind, FileLock, MountPlace
from tests.conftest import require


@pytest.mark.parametrize("name", ["sh", "a) R 1 (b", "two words", "))((", "tab\tbed"])
def test_parse_stat_takes_any_name(name: str) -> None:
    fields = "S 1 70 60 34820 71 4194560 1 2 3 4 5 6 7 8 20 0 3 0 12345 99 88 77"
    found = parse_stat(f"71 ({name}) {fields}\n")
    assert (found.pid, found.name, found.state, found.ppid, found.pgid, found.sid) == (71, name, "S", 1, 70, 60)
    assert (found.tty, found.flags, found.start_time) == (34820, 4194560, 12345)


def test_parse_stat_tells_a_kernel_thread() -> None:
    line = "2 (kthreadd) S 0 0 0 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 1 0 2 0 0 18446744073709551615\n"
    assert parse_stat(line.format(flags=2129984)).flags & PF_KTHREAD
    assert not parse_stat(line.format(flags=4194560)).flags & PF_KTHREAD


def test_parse_lock_of_posix_and_of_one_that_waits() -> None:
    assert parse_lock("1: POSIX  ADVISORY  WRITE 71 08:01:1234 0 EOF") == FileLock(
        kind="POSIX", access="WRITE", pid=71, inode=1234, start=0, end=None
    )
    assert parse_lock("1: -> FLOCK  ADVISORY  WRITE 71 08:01:1234 0 EOF") is None


def test_split_deleted_tells_a_name_from_a_mark(tmp_path: Path) -> None:
    odd = tmp_path / "x (deleted)"
    odd.touch()
    assert split_deleted(str(odd), 1) == (str(odd), False)
    assert split_deleted(f"{tmp_path}/y (deleted)", 0) == (f"{tmp_path}/y", True)
    assert split_deleted(f"{tmp_path}/y (deleted)", 1) == (f"{tmp_path}/y", True)
    assert split_deleted(f"{tmp_path}/y", 1) == (f"{tmp_path}/y", False)


def test_parse_igmp_reads_links_and_groups() -> None:
    text = (
        "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n"
        "1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"
    )
    expected = "224.0.0.1" if sys.byteorder == "little" else "1.0.0.224"
    assert parse_igmp(text) == (Membership(family=2, address=expected, ifindex=1, ifname="lo"),)
    assert parse_igmp6("4    eth0            ff020000000000000000000000001234     1 00000004 0\n") == (
        Membership(family=10, address="ff02::1234", ifindex=4, ifname="eth0"),
    )


def test_build_id_is_what_the_linker_wrote() -> None:
    require(Path("/usr/bin/readelf").exists(), "readelf")
    notes = subprocess.run(["readelf", "-n", "/bin/sh"], check=True, capture_output=True, text=True).stdout
    wanted = re.search(r"Build ID: ([0-9a-f]+)", notes)
    assert elf.build_id("/bin/sh") == (wanted[1] if wanted else None)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x02\x01\x01" + b"\xff" * 200])
def test_build_id_of_no_or_a_damaged_elf_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert elf.build_id(str(path)) is None
    assert elf.build_id(str(tmp_path / "absent")) is None


def test_read_process_of_itself_finds_what_it_holds(tmp_path: Path) -> None:
    with (tmp_path / "held").open("w+b") as file:
        file.write(b"12345")
        file.flush()
        os.unlink(file.name)
        process = read_process(os.getpid(), FileReader())
        assert process is not None
        (held,) = (one for one in process.files if one.fd == file.fileno())
        assert (held.kind, held.path, held.deleted, held.size) == (FileKind.REGULAR, file.name, True, 5)
        assert (held.position, held.flags & os.O_ACCMODE, held.mount) == (5, os.O_RDWR, MountPlace.INSIDE)
    assert process.pid == os.getpid() == process.threads[0].tid
    assert process.exe is not None
    assert os.path.samefile(process.exe.path, "/proc/self/exe")
    assert process.exe.path in {mapped.path for mapped in process.maps if mapped.executable}
    assert process.namespaces["net"] == Path("/proc/thread-self/ns/net").stat().st_ino
    assert process.memory.total >= process.memory.rss > 0


def test_read_process_shows_undecodable_arguments() -> None:
    with subprocess.Popen([b"/bin/cat", b"-", b"\xff\xfe"], stdin=subprocess.PIPE) as process:
        try:
            # While it begins, it has the name before the arguments.
            while (
                (found := read_process(process.pid, FileReader())) is None or found.name != "cat" or not found.cmdline
            ):
                assert process.poll() is None
            assert found.cmdline == ("/bin/cat", "-", "\\xff\\xfe")
        finally:
            process.kill()


def test_read_process_of_none_is_none() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert read_process(gone.pid, FileReader()) is None
