"""Programs that hold one thing each that CRIU takes or refuses, and the means to run them and to ask CRIU.

Each program is a few lines of Python that end in ``ready()``: from then on it holds what it made, until it is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckpt.kernel import criu
from ckpt.kernel.proc import tree_pids

PRELUDE = """
import ctypes, fcntl, mmap, os, shutil, signal, socket, struct, subprocess, sys, threading, time
work = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        sys.exit(f"errno {ctypes.get_errno()}")
    return result

def attach(tun, link):
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", link, 0x1001))

def ready():
    os.close(os.open(work + "/ready", os.O_CREAT))
    while True:
        time.sleep(60)
"""
START_SECONDS = 20.0


@contextlib.contextmanager
def running(
    program: str,
    work: Path,
    *,
    unshare: Sequence[str] = ("--net",),
    session: bool = True,
    output: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> Iterator[int]:
    """The PID of ``program``, ready, in namespaces of its own; it and all below it are killed at the end."""
    argv = [sys.executable, "-c", f"{PRELUDE}\n{program}\nready()", str(work)]
    if unshare:
        argv = ["unshare", *unshare, "--", *argv]
    errors = (work / "errors").open("wb")
    with (
        errors,
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=session,
            pass_fds=pass_fds,
            cwd="/",
        ) as process,
    ):
        try:
            wait_ready(process, work)
            yield process.pid
        finally:
            for pid in reversed(tree_pids(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def wait_ready(process: subprocess.Popen[bytes], work: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not (work / "ready").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ProgramFailedError((work / "errors").read_text())
        time.sleep(0.02)


class ProgramFailedError(Exception):
    """The program could not make what it is for: the machine has no such thing."""


def criu_dumps(pid: int, work: Path) -> bool:
    """Whether CRIU dumps the tree of ``pid`` (which runs on), told what a dump of ckpt tells it."""
    images = work / "images"
    images.mkdir()
    argv = [str(criu.find().path), "--no-default-config", "dump", "--tree", str(pid), "--images-dir", str(images)]
    argv += ["--leave-running", "--tcp-established", "--ext-unix-sk", "--file-locks", "--link-remap"]
    argv += ["--network-lock", "skip", "--log-file", "log", "-v4"]
    with contextlib.suppress(OSError):  # a zombie has no namespaces
        argv += ["--external", f"net[{os.stat(f'/proc/{pid}/ns/net').st_ino}]:net"]
    return subprocess.run(argv, check=False, capture_output=True, timeout=60).returncode == 0
