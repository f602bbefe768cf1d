"""Runs one dump or restore and has a process killed in the middle of it, without a hook in what is tested.

    fault_runner.py PLAN            JSON: ``work``, its arguments, and perhaps ``point``, ``passage`` and ``fault``

The interpreter's profiler calls us at every call and return in the package under test; the steps are named by what it
tells, ``call MODULE:FUNCTION`` or ``return MODULE:FUNCTION``, for C functions with ``>`` for ``:`` and the module that
calls them, and for a notification of CRIU with its stage: ``call ckpt.dump:_Dump._notify[post-dump]``. At the n-th
passage of a step the fault strikes: ``ckpt`` is this process, ``criu`` the CRIU that it runs (below whatever wrapper),
``both`` are both, ``nft`` what holds the network lock. What became of the work is printed as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ckpt import dump, restore
from ckpt.cli import main as cli
from ckpt.errors import CkptError
from ckpt.kernel import criu, host
from ckpt.kernel.proc import children

# A test need not wait for the later announcements.
restore.ANNOUNCE_AFTER = ()  # type: ignore[assignment]
host.PROBE_SECONDS = 0.05

_WATCHED = ("ckpt.dump", "ckpt.rebuild", "ckpt.restore", "ckpt.registry", "ckpt.held", "ckpt.kernel.", "ckpt.image")


ANSWERED = "return ckpt.kernel.criu:Swrk._send"
"""CRIU has been answered, and has not looked at it yet: one that is killed then is stopped before it is answered.

A millisecond later it has code of its own in the tasks, and takes them along when it is killed.
"""

_WRAPPERS = ("nsenter", "unshare", "python", "dash", "sh", "env")
"""What CRIU may be started by."""


class Profiler:
    """Names each step, counts its passages, and calls ``strike`` at the one that is wanted."""

    def __init__(self, point: str | None, passage: int, strike: Callable[[], None], trace: list[str] | None) -> None:
        self._point = point
        self._ahead: dict[str, Callable[[], None]] = {}
        self._left = passage
        self._strike = strike
        self._trace = trace

    def prepare(self, point: str, prepare: Callable[[], None]) -> None:
        """Have ``prepare`` called at ``point`` before the fault strikes, when only one passage is left."""
        self._ahead[point] = prepare

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(_WATCHED):
            return
        if event in ("call", "return"):
            name = f"{event} {module}:{frame.f_code.co_qualname}"
            if frame.f_code.co_name == "_notify":
                name += f"[{frame.f_locals['stage']}]"
        else:
            name = f"{event.removeprefix('c_')} {module}>{getattr(argument, '__qualname__', '?')}"
        if self._trace is not None:
            self._trace.append(name)
        if self._left == 1 and name in self._ahead:
            self._ahead[name]()
        if name == self._point:
            self._left -= 1
            if self._left == 0:
                sys.setprofile(None)
                self._strike()


CRIUS: list[criu.Swrk] = []
"""What speaks to each CRIU that was started, the last one last."""


def running_criu() -> int:
    """The PID of the CRIU that runs now, below whatever it was wrapped in."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        pid = CRIUS[-1].pid
        if state(pid) in "ZX":
            return pid
        # A wrapper forks, or becomes what it wraps.
        with contextlib.suppress(OSError):
            while os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith(_WRAPPERS):
                pid = next(iter(children(pid)), 0)
            return pid
        time.sleep(0.001)
    raise SystemExit("CRIU does not run")


def running_nft() -> int:
    """The PID of the nft that holds the network lock: the last that was started, as those before it may be ending."""
    for pid in reversed(children(os.getpid())):
        if Path(f"/proc/{pid}/comm").read_text() == "nft\n" and state(pid) not in "ZX":
            return pid
    raise SystemExit("no nft runs at this step")


def stop_criu() -> None:
    """Have the CRIU that runs now go no further."""
    pid = running_criu()
    os.kill(pid, signal.SIGSTOP)
    while state(pid) not in "ZXT":
        time.sleep(0.001)


def remember_criu() -> None:
    """Have each new CRIU entered in ``CRIUS``; what it does stays as it is."""
    enter = criu.Swrk.__enter__

    def remembered(swrk: criu.Swrk) -> criu.Swrk:
        CRIUS.append(swrk)
        return enter(swrk)

    criu.Swrk.__enter__ = remembered  # type: ignore[method-assign]


def strike(fault: str, delay: float) -> None:
    """Let the fault happen, now or in a moment: VICTIM or VICTIM-SIGNAL, as in ``criu-STOP``."""
    print("struck", file=sys.stderr, flush=True)
    victim, _, name = fault.partition("-")
    number = signal.Signals[f"SIG{name or 'KILL'}"]
    if delay:
        threading.setprofile(None)
        threading.Timer(delay, kill, (victim, number)).start()
    else:
        kill(victim, number)


def kill(victim: str, number: signal.Signals) -> None:
    """Send the signal, and see it arrive."""
    # The commit of a dump has ended its CRIU already.
    if victim == "nft" or (victim != "ckpt" and state(CRIUS[-1].pid) not in "ZX"):
        pid = running_nft() if victim == "nft" else running_criu()
        os.kill(pid, number)
        while state(pid) not in ("ZX" if number is signal.SIGKILL else "ZXT"):
            time.sleep(0.001)
    if victim in ("ckpt", "both"):
        os.kill(os.getpid(), number)


def state(pid: int) -> str:
    """The state letter of a process, X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def work(plan: dict[str, Any]) -> dict[str, Any]:
    """Do what the plan says; the report's essentials. ``cli`` is the command line, with its exit status."""
    if plan["work"] == "cli":
        sys.exit(cli.invoke(plan["arguments"]))
    arguments = plan.get("arguments", {})
    if plan["work"] == "dump":
        dumped = dump.dump_group(plan["target"], Path(plan["image"]), **arguments)
        return {"name": dumped.name}
    restored = restore.restore_group(Path(plan["image"]), **arguments)
    return {"name": restored.name, "pid": restored.pid}


def main() -> None:
    """Do the work with the fault in it."""
    plan = json.loads(sys.argv[1])
    remember_criu()
    trace: list[str] | None = [] if "trace" in plan else None
    profiler = Profiler(
        plan.get("point"), plan.get("passage", 1), lambda: strike(plan["fault"], plan.get("delay", 0.0)), trace
    )
    if plan.get("point") == ANSWERED and plan["fault"] in ("criu", "both"):
        profiler.prepare(ANSWERED.replace("return", "call"), stop_criu)
    outcome: dict[str, Any]
    try:
        threading.setprofile(profiler)
        sys.setprofile(profiler)
        try:
            outcome = work(plan)
        finally:
            sys.setprofile(None)
    except CkptError as error:
        outcome = {"error": error.code, "class": type(error).__name__, "text": str(error)}
    if trace is not None:
        Path(plan["trace"]).write_text("\n".join(trace))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
