"""The lab itself: what a test leaves behind is seen, and what it makes does not reach the host."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckpt.kernel import cgroup2
from tests import lab


@pytest.fixture
def link(unique: Callable[[str], str]) -> Iterator[str]:
    name = unique("br")
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    yield name
    subprocess.run(["ip", "link", "delete", name], check=True)


@pytest.mark.parametrize("kind", ["net", "mnt", "pid"])
def test_lab_is_not_the_host(kind: str) -> None:
    assert Path(f"/proc/self/ns/{kind}").readlink() != lab.OUTSIDE[kind]


def test_lab_has_lo_up() -> None:
    shown = subprocess.run(["ip", "-br", "link", "show", "up"], check=True, capture_output=True, text=True)
    assert "lo" in [line.split()[0] for line in shown.stdout.splitlines()]


def test_traces_names_a_link(link: str) -> None:
    assert f"link {link}" in lab.traces()


def test_traces_names_an_nft_table(unique: Callable[[str], str]) -> None:
    name = unique("ckpt")
    subprocess.run(["nft", "add", "table", "inet", name], check=True)
    try:
        assert f"nft table inet {name}" in lab.traces()
    finally:
        subprocess.run(["nft", "delete", "table", "inet", name], check=True)


def test_traces_names_a_registry_entry_and_a_mount(unique: Callable[[str], str]) -> None:
    directory = Path("/run/ckpt") / unique("lab")
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
    try:
        (directory / "one.json").touch()
        assert {f"mount {directory}", f"registry entry {directory}/one.json"} <= lab.traces()
    finally:
        subprocess.run(["umount", directory], check=True)
        directory.rmdir()


@pytest.mark.parametrize("unshare", [[], ["unshare", "--mount", "--net"]], ids=["plain", "own-namespaces"])
def test_strays_names_a_process_that_left_the_session(unshare: list[str]) -> None:
    process = subprocess.Popen([*unshare, "setsid", "sleep", "300"], stdin=subprocess.DEVNULL)
    try:
        assert process.pid in lab.strays()
    finally:
        lab.kill([process.pid])
    assert process.wait(30) == -signal.SIGKILL


def test_cgroups_names_one_of_this_session_and_no_other(unique: Callable[[str], str]) -> None:
    names = [f"ckpt-0-{unique('g')}", unique("c"), f"ckpt-0-{secrets.token_hex(4)}"]
    places = [cgroup2.root() / name for name in names]
    for place in places:
        place.mkdir()
    try:
        seen = lab.cgroups()
    finally:
        for place in places:
            place.rmdir()
    assert [f"cgroup {place}" in seen for place in places] == [True, True, False]


# It passes, and leaves each kind of thing behind.
LEAKY = """
import subprocess
from pathlib import Path
from ckpt.kernel import cgroup2
from tests import conftest

def test_that_leaks() -> None:
    subprocess.run(["ip", "link", "add", "leaked", "type", "bridge"], check=True)
    subprocess.run(["ip", "netns", "add", "leaked"], check=True)
    name = conftest.random_name()
    (cgroup2.root() / name).mkdir()
    print("\\nmade", name)
    subprocess.run(["setsid", "--fork", "sleep", "301"], check=True)
    Path("/run/ckpt/groups").mkdir(parents=True)
    Path("/run/ckpt/groups/leaked.json").touch()
"""


def test_session_that_leaves_something_fails_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    argv = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(tmp_path), "-p", "tests.conftest"]
    checkout = Path(__file__).parents[2]
    done = subprocess.run(
        [*argv, "-s", str(tmp_path)], cwd=checkout, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    name = next(line.removeprefix("made ") for line in done.stdout.splitlines() if line.startswith("made "))
    cgroup = cgroup2.root() / name
    cgroup.rmdir()  # the only thing that does not end with that session
    assert done.returncode == 1, done.stdout + done.stderr
    for line in (
        "link leaked",
        f"cgroup {cgroup}",
        "mount /run/netns/leaked",
        "network namespace leaked",
        "registry entry /run/ckpt/groups/leaked.json",
        ": sleep 301",
        "1 passed, 1 error",
    ):
        assert line in done.stdout
