"""The `ckpt` of a host in which something can be made to happen, without a hook in what is tested.

It is what /usr/local/bin/ckpt runs there. Where fault.json on its disk names its command it watches its own calls, as
`tests/criu/fault_runner.py` does, and lets the fault happen at the wanted passage of a step: ``ckpt`` is this process
(on a target the agent), ``criu`` its CRIU, ``ssh`` the connection (the client's ssh, or the server's sshd), ``cable``
the host's cable, ``host`` everything on the host at once. ``stop`` and ``pause`` only hold this process there, for good
or for a while, so that whoever waits for it can take the host's power or its cable. The file struck says that it did.
Waits that are only patience are short.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from ckpt.cli.main import invoke

PLAN = Path("/var/lib/ckpt/fault.json")
STRUCK = Path("/var/lib/ckpt/struck")

PAUSE_SECONDS = 12


def hurry() -> None:
    """Let nothing be waited for that will not come."""
    from ckpt import arrival, migrate, restore
    from ckpt.kernel import host
    from ckpt.remote import ssh

    restore.ANNOUNCE_AFTER = ()  # type: ignore[assignment]
    host.PROBE_SECONDS = 0.05
    migrate.RETRY_SECONDS = 1.0
    migrate.RESULT_SECONDS = 5.0
    migrate.TELL_SECONDS = 5.0
    arrival.TELL_SECONDS = 10.0
    ssh.END_SECONDS = 1.0


class Watch:
    """Counts the passages of a step, in everything of ckpt."""

    def __init__(self, point: str, passage: int, fault: str) -> None:
        self._event, _, rest = point.partition(" ")
        self._module, _, self._function = rest.partition(":")
        self._left = passage
        self._fault = fault

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """What the interpreter tells of each call."""
        if event != self._event or frame.f_code.co_qualname != self._function:
            return
        if frame.f_globals.get("__name__") == self._module:
            self._left -= 1
            if self._left == 0:
                sys.setprofile(None)
                threading.setprofile(None)
                strike(self._fault)


def strike(fault: str) -> None:
    """Let it happen."""
    STRUCK.write_text(fault)
    if fault == "ckpt":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "criu":
        from tests.criu.fault_runner import running_criu

        os.kill(running_criu(), signal.SIGKILL)
    elif fault in ("stop", "pause"):
        if fault == "pause":
            words = ["sh", "-c", f"sleep {PAUSE_SECONDS}; kill -CONT {os.getpid()}"]
            subprocess.Popen(words, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "ssh":
        _end_connection()
    else:
        subprocess.run(["ip", "link", "set", "eth0", "nomaster"], check=True)
        if fault == "host":
            os.kill(-1, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def _end_connection() -> None:
    """Kill the ssh that this process has started, or the sshd that has started it."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for pid in children:
        if Path(f"/proc/{pid}/comm").read_text() == "ssh\n":
            os.kill(int(pid), signal.SIGKILL)
            return
    pid = str(os.getppid())
    while Path(f"/proc/{pid}/comm").read_text() != "sshd\n":
        pid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    os.kill(int(pid), signal.SIGKILL)


def main() -> None:
    """Run ckpt, perhaps with a fault in it."""
    arguments = sys.argv[1:]
    if {"agent", "migrate"} & set(arguments):
        hurry()
    if PLAN.exists():
        plan = json.loads(PLAN.read_text())
        if plan["command"] in arguments:
            PLAN.unlink()
            if plan["fault"] == "criu":
                from tests.criu.fault_runner import remember_criu

                remember_criu()
            watch = Watch(plan["point"], plan["passage"], plan["fault"])
            threading.setprofile(watch)
            sys.setprofile(watch)
    sys.exit(invoke(arguments))


if __name__ == "__main__":
    main()
