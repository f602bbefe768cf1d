"""The lab: where the test session runs, and how it is seen that nothing of it stays behind.

Tests run as root, so the session leaves the host's world before the first test: pytest moves into namespaces of its
own, for the network (with nothing but ``lo``, up, as CRIU needs it), for mounts (with an empty ``/run`` and an empty
``/var/lib/ckpt``) and for PIDs. Whatever a test calls "the host" (the caller's own namespace of bridges and veth ends,
``/run/ckpt``, ``/run/netns``, the notes that outlive a reboot, all the processes of ``/proc``) is the lab. It is
entered from within, not by a wrapping command, so that ``pytest tests/net`` is as safe as ``scripts/test``, and it
vanishes with its first process, whatever way the session ends. Two sessions on one host see nothing of each other; only
cgroups and the rest of the file system are the host's. Whose a cgroup is its name tells.

``sysfs`` shows the namespace it was mounted in: never look for links in ``/sys/class/net`` here, ask netlink.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from ckpt.kernel import cgroup2, syscalls
from ckpt.model.network import FALLBACK_DEVICES
from ckpt.places import IMAGES

OUTSIDE: dict[str, Path] = {}
"""The host's own namespaces, by kind: what the lab is not."""

given_names: set[str] = set()
"""What the tests of this session have given names to."""

_CONTEXT = re.compile(r"ckpt-[0-9a-f]+-")

HOST_PROC = Path("/run/host-proc")
"""The host's /proc: the lab's own shows no thread of the kernel."""


def enter() -> str | None:
    """Move this process into a fresh lab; the reason why not, where that cannot be. Once, before there are threads."""
    if os.geteuid() != 0:
        return "needs root"
    OUTSIDE.update({kind: Path(f"/proc/self/ns/{kind}").readlink() for kind in ("net", "mnt", "pid")})
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)
    except OSError as error:
        return f"cannot make namespaces ({error.strerror}): needs CAP_SYS_ADMIN"
    _go_on_below_an_init()
    # Private first: nothing that is mounted from here on may reach the host.
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("tmpfs", "/run", kind="tmpfs", flags=syscalls.MS_NOSUID | syscalls.MS_NODEV, data="mode=755")
    Path("/run/lock").mkdir(mode=0o1777)
    # What `ckpt clean` of one session finds there must not be another's.
    IMAGES.mkdir(mode=0o700, parents=True, exist_ok=True)
    syscalls.mount("tmpfs", str(IMAGES), kind="tmpfs", flags=syscalls.MS_NOSUID | syscalls.MS_NODEV, data="mode=700")
    HOST_PROC.mkdir()
    syscalls.mount("/proc", str(HOST_PROC), flags=syscalls.MS_BIND)
    syscalls.mount("proc", "/proc", kind="proc", flags=syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return None


def _go_on_below_an_init() -> None:
    """Return in a grandchild: between it and this process is the first of the PID namespace, which reaps orphans.

    This process only waits for the end, and so ends the lab when it is killed: its child dies with it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    init = os.fork()
    if init:
        _leave_with(init)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    session = os.fork()
    if session:
        _leave_with(session)


def _leave_with(child: int) -> NoReturn:
    """Wait for ``child``, reaping whatever else ends, and end as it did."""
    # ^C is for the session, which then ends by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def traces() -> set[str]:
    """What the tests could leave behind, each in the words of the report. Empty lab, empty set but for ``lo``."""
    return _links() | _tables() | _entries() | _mounts()


def cgroups() -> set[str]:
    """Cgroups of this session's, of contexts and others, in every hierarchy."""
    roots = (*cgroup2.mount_points("cgroup2"), *cgroup2.mount_points("cgroup"))
    found = (path for root in roots for path in root.iterdir() if path.is_dir())
    return {f"cgroup {path}" for path in found if _CONTEXT.sub("", path.name) in given_names}


def strays() -> dict[int, str]:
    """Processes of the lab other than this one and the lab's first: PID → command line."""
    found = {}
    for directory in Path("/proc").glob("[1-9]*"):
        pid = int(directory.name)
        try:
            (directory / "environ").read_bytes()
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # gone meanwhile, or a zombie: its parent's to reap
        if pid not in (1, os.getpid()):
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
    names = {line.split(": ")[1].split("@")[0] for line in _lines("ip", "-o", "link")}
    # A tunnel driver that is loaded meanwhile puts links of its own into every namespace, and nobody can delete them.
    return {f"link {name}" for name in names - FALLBACK_DEVICES.keys()}


def _tables() -> set[str]:
    return {f"nft {line}" for line in _lines("nft", "list", "tables")}


def _entries() -> set[str]:
    names = {f"network namespace {path.name}" for path in Path("/run/netns").glob("*")}
    names |= {f"file {path}" for path in IMAGES.rglob("*") if path.is_file()}
    return names | {f"registry entry {path}" for path in Path("/run/ckpt").rglob("*.json")}


def _mounts() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    # /run/netns is ip-netns(8)'s own mount point: it is made with the first name and stays.
    return {f"mount {line.split()[4]}" for line in lines} - {"mount /run/netns"}
