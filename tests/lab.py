"""The lab: where the test session runs, and how it is seen that nothing of it stays behind.

Tests run as root, so the session leaves the host's world before the first test: the pytest process itself moves into a
network namespace of its own (with nothing but ``lo``, up, as CRIU needs it) and a mount namespace of its own with an
empty ``/run``. Whatever a test calls "the host" (the caller's own namespace of bridges and veth ends, ``/run/ckpt``,
``/run/netns``) is the lab. It is entered from within, not by a wrapping command, so that ``pytest tests/net`` is as
safe as ``scripts/test``, and it vanishes with the last process in it, whatever way the session ends.

PIDs and cgroups are the host's. Every process of the session carries a random word in its environment or is in the
lab's mount namespace; by that its processes are known, and those that outlive the tests are reported and killed.

``sysfs`` shows the namespace it was mounted in: never look for links in ``/sys/class/net`` here, ask netlink.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from pathlib import Path

from ckpt.kernel import syscalls

MARK = "CKPT_LAB"


def enter() -> str | None:
    """Move this process into a fresh lab; the reason why not, where that cannot be. Once, before there are threads."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
    except OSError as error:
        return f"cannot make namespaces ({error.strerror}): needs CAP_SYS_ADMIN"
    # Private first: nothing that is mounted from here on may reach the host.
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("tmpfs", "/run", kind="tmpfs", flags=syscalls.MS_NOSUID | syscalls.MS_NODEV, data="mode=755")
    Path("/run/lock").mkdir(mode=0o1777)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ[MARK] = secrets.token_hex(8)
    return None


def traces() -> set[str]:
    """What the tests could leave behind, each in the words of the report. Empty lab, empty set but for ``lo``."""
    return _links() | _tables() | _entries() | _mounts()


def strays() -> dict[int, str]:
    """Processes of the session other than this one: PID → command line."""
    here = Path("/proc/self/ns/mnt").readlink()
    mark = f"{MARK}={os.environ.get(MARK, '')}".encode()
    found = {}
    for directory in Path("/proc").glob("[1-9]*"):
        pid = int(directory.name)
        try:
            ours = (directory / "ns/mnt").readlink() == here or mark in (directory / "environ").read_bytes().split(
                b"\0"
            )
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # gone meanwhile, or a zombie: its parent's to reap
        if ours and pid != os.getpid():
            found[pid] = command or "?"
    return found


def kill(pids: list[int]) -> None:
    """End what outlived the tests."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _lines(*argv: str) -> list[str]:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()


def _links() -> set[str]:
    # "7: br0@if2: <…>": the kernel's own word for the other end says nothing here.
    return {f"link {line.split(': ')[1].split('@')[0]}" for line in _lines("ip", "-o", "link")}


def _tables() -> set[str]:
    return {f"nft {line}" for line in _lines("nft", "list", "tables")}


def _entries() -> set[str]:
    names = {f"network namespace {path.name}" for path in Path("/run/netns").glob("*")}
    return names | {f"registry entry {path}" for path in Path("/run/ckpt").rglob("*.json")}


def _mounts() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    # /run/netns is ip-netns(8)'s own mount point: it is made with the first name and stays.
    return {f"mount {line.split()[4]}" for line in lines} - {"mount /run/netns"}
