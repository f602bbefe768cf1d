"""A scope of systemd's for the cgroup of a context: where systemd has the hierarchy, it gives parts of it to who asks.

Everything else there is its own. It takes controllers from cgroups that it knows nothing of, and their limits with them
(https://systemd.io/CGROUP_DELEGATION). What is below a scope with Delegate=yes is left to whoever asked for it.

A scope lasts for as long as there is a process in it. Until the group runs that is one that does nothing, the holder,
in a cgroup of its own beside the context's: the scope itself may have no process if controllers shall be had below.
The holder ends with ckpt, whatever way that ends, and the scope then with the last process of the group.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

from ckpt.errors import UnsupportedError
from ckpt.kernel import cgroup2

SLICE = "system.slice"
SUFFIX = ".scope"

_BOOTED = Path("/run/systemd/system")
"""Is there where systemd is the first process (sd_booted(3))."""

_HOLD = "hold"
_SECONDS = 10.0

# Says where it is, and waits for the end of its input, which is ckpt's.
_HOLDER = "cat /proc/self/cgroup; echo; read -r nothing"

_holders: dict[str, subprocess.Popen[str]] = {}


def is_wanted() -> bool:
    """Whether systemd has the cgroups of this host, and can be asked."""
    return _BOOTED.is_dir() and shutil.which("systemd-run") is not None


def start(name: str) -> Path:
    """Have systemd make the scope ``name``, without the suffix; its directory. UnsupportedError where it will not."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    command = ["systemd-run", "--scope", "--quiet", "--collect", f"--slice={SLICE}", f"--unit={name}{SUFFIX}"]
    command += ["--property=Delegate=yes", "--", "sh", "-c", _HOLDER]
    try:
        holder = subprocess.Popen(
            command,
            stdin=reader,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except BaseException:
        os.close(writer)
        raise
    finally:
        os.close(reader)
    try:
        scope = _place(holder, name)
        (scope / _HOLD).mkdir(exist_ok=True)
        cgroup2.enter(scope / _HOLD, holder.pid)
    except BaseException:
        holder.kill()
        holder.communicate()
        os.close(writer)
        raise
    _holders[str(scope)] = holder  # and with it the end of the pipe, which is open for as long as this process is
    return scope


def _place(holder: subprocess.Popen[str], name: str) -> Path:
    assert holder.stdout is not None
    said = ""
    if select.select([holder.stdout], [], [], _SECONDS)[0]:
        while line := holder.stdout.readline().strip():
            said = line if line.startswith("0::") else said
    if not said.endswith(f"/{name}{SUFFIX}"):
        holder.kill()
        raise UnsupportedError(
            "systemd gives no scope to a context",
            code="context-scope",
            details=holder.communicate()[1].strip() or f"the process that asked for {name}{SUFFIX} is in {said or '?'}",
            hint="`systemctl status` says how it is",
        )
    return cgroup2.root() / said.removeprefix("0::/")


def end(scope: Path) -> None:
    """End the holder of a scope in which nothing else is, and wait until systemd has seen that."""
    for pid in cgroup2.pids(scope / _HOLD):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    holder = _holders.pop(str(scope), None)
    if holder is not None:
        holder.communicate()
    deadline = time.monotonic() + _SECONDS
    while scope.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
