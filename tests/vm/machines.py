"""The machines of these tests: hosts that ssh reaches, whoever made them.

They are named by the environment: CKPT_VM_HOSTS (two hosts and a client, as ssh knows them), CKPT_VM_SSH_CONFIG (what
`ssh -F` takes, if not the user's own), CKPT_VM_POWER (a command that turns a machine `off`, and `boot`s it again).
``vagrant/lab with a b c -- pytest tests/vm`` sets all three. On each, `ckpt` is installed, the checkout is in
/srv/ckpt, the private network is br0, and a host's name is the same to the others' ssh.

Every command has a limit: emulated machines are slow, and a command that hangs has to end as a failure that says so.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.outcome import Outcome

HOSTS = os.environ.get("CKPT_VM_HOSTS", "").split()
CONFIG = os.environ.get("CKPT_VM_SSH_CONFIG")
POWER = shlex.split(os.environ.get("CKPT_VM_POWER", ""))

CHECKOUT = "/srv/ckpt"
PROGRAMS = f"{CHECKOUT}/tests/vm/programs"
COMMAND_SECONDS = 120.0
PATIENCE = 180.0
# A test of ten moves on machines that an emulator runs.
TEST_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Host:
    """One machine. ``address`` is its own on the private network; ``place`` holds the sockets of its ssh."""

    name: str
    address: str
    place: Path

    def argv(self, command: str, *, shared: bool = True) -> list[str]:
        """What runs a line of its shell, over one connection for all: to make one takes a second."""
        config = ["-F", CONFIG] if CONFIG else []
        if not shared:
            return ["ssh", *config, self.name, command]
        through = [
            "-o",
            "ControlMaster=auto",
            "-o",
            f"ControlPath={self.place}/{self.name}",
            "-o",
            "ControlPersist=600",
        ]
        return ["ssh", *config, *through, self.name, command]

    def run(self, command: str, *, timeout: float = COMMAND_SECONDS) -> Outcome:
        """Run a line of shell to its end."""
        try:
            done = subprocess.run(
                self.argv(command), capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, text=True
            )
        except subprocess.TimeoutExpired:
            pytest.fail(f"on {self.name}, not ended within {timeout:.0f} s: {command}")
        return Outcome(done.returncode, done.stdout, done.stderr)

    def sh(self, command: str, *, timeout: float = COMMAND_SECONDS) -> str:
        """What a line of shell prints, which must not fail."""
        done = self.run(f"set -e; {command}", timeout=timeout)
        assert done.status == 0, f"on {self.name}: {command}: {done.status}\n{done.out}{done.err}"
        return done.out

    def ckpt(self, *words: str, timeout: float = COMMAND_SECONDS) -> Outcome:
        """Run ckpt, for JSON."""
        return self.run(shlex.join(["ckpt", "--json", *words]), timeout=timeout)

    def must(self, *words: str, timeout: float = COMMAND_SECONDS) -> Any:
        """What ckpt prints, which must not fail."""
        done = self.ckpt(*words, timeout=timeout)
        assert done.status == 0, f"ckpt {shlex.join(words)} on {self.name}: {done.status}\n{done.err}"
        return done.json if done.out.strip() else None

    def groups(self) -> list[str]:
        """The groups that run there. Asked of the kernel: to start ckpt takes an emulated processor several seconds."""
        return self.sh(f"python3 -I -S {PROGRAMS}/running_groups.py").split()

    def records(self) -> list[dict[str, Any]]:
        """What is written down there of migrations that have not come to their end."""
        lines = self.sh("for one in /var/lib/ckpt/migrations/*.json; do [ ! -e $one ] || tr -d '\\n' <$one; echo; done")
        return [json.loads(line) for line in lines.splitlines() if line]

    def images(self) -> list[str]:
        """The images that a migration has kept there."""
        return self.sh("ls /var/lib/ckpt/*.ckpt 2>/dev/null || true").split()

    def traces(self) -> list[str]:
        """What a test could leave there, line by line."""
        looked = "ip -o link | cut -d: -f2; nft list tables; ls /run/netns; ls -R /run/ckpt | grep json"
        looked += "; find /var/lib/ckpt -type f ! -name lock; ip -o -4 address show dev br0"
        return sorted(set(self.run(looked).out.splitlines()))

    def hang_up(self) -> None:
        """End the shared connection: one to a machine that has died would hang."""
        shared = self.argv("true")[:-2]
        subprocess.run([*shared, "-O", "exit", self.name], capture_output=True, timeout=30)

    def power(self, do: str) -> None:
        """Have whoever made it do that to it."""
        self.hang_up()
        done = subprocess.run([*POWER, do, self.name], capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{do} {self.name}: {done.stderr}"


@dataclass(frozen=True, slots=True)
class Machines:
    """Two hosts and a client."""

    a: Host
    b: Host
    c: Host

    def __iter__(self) -> Iterator[Host]:
        return iter((self.a, self.b, self.c))


class Client:
    """A program of ``programs/`` on a machine, that checks all that it gets and prints again and again how much it was.

    Its first wrong byte ends it, with a line that says what; whatever is asked of it next raises that.
    """

    def __init__(self, host: Host, program: str, *words: object) -> None:
        self.count = 0
        self._words: list[str] = []
        line = shlex.join(["python3", "-u", f"{PROGRAMS}/{program}", *map(str, words)])
        # It ends when its standard input does: whatever ends the test ends it.
        self._process = subprocess.Popen(
            host.argv(f"PYTHONPATH={CHECKOUT} exec {line}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, name=program, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                self.count = int(line)
            else:
                self._words.append(line.rstrip())

    def progress(self, more: int = 10) -> None:
        """Wait until so much more has come, and was right."""
        wanted, deadline = self.count + more, time.monotonic() + PATIENCE
        while self.count < wanted:
            assert self._process.poll() is None, f"the client ended after {self.count}: {self._words}"
            assert time.monotonic() < deadline, f"the client waits since {self.count}: {self._words}"
            time.sleep(0.05)

    def finish(self) -> list[str]:
        """Tell it to stop; what else than numbers it printed. It fails if anything was wrong until its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.ended()

    def ended(self, seconds: float = PATIENCE) -> list[str]:
        """Wait until it ends by itself, rightly."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the client does not end, after {self.count}: {self._words}")
        self._thread.join()
        assert status == 0, f"the client ended after {self.count}: {self._words}"
        return self._words

    def kill(self) -> None:
        """Whatever state it is in."""
        self._process.kill()
        self._process.wait()
