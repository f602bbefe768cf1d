"""What is done again later is done without who asked for it, and only for a process that is still there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ckpt.kernel.repeating import repeat

# Has something repeated, and ends. What it writes to comes as its standard input.
ASKS = """
import os, sys
from ckpt.kernel.repeating import repeat
repeat(lambda: os.write(3, b"x"), [0.1, 0.2, 0.3], pid=int(sys.argv[1]), keep=[3])
print("asked")
"""


@pytest.fixture
def subject() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "infinity"]) as process:
        yield process
        process.kill()


def _asked_for(pid: int) -> int:
    """A pipe's reading end; its other end has nobody but what a program has left that has ended."""
    read, write = os.pipe()
    program = f"import os; os.dup2({write}, 3, inheritable=True)\n{ASKS}"
    asking = [sys.executable, "-c", program, str(pid)]
    # Its output ends with it, and not with what it leaves.
    done = subprocess.run(asking, check=True, capture_output=True, pass_fds=[write], timeout=30)
    assert done.stdout == b"asked\n"
    os.close(write)
    return read


def test_repeat_acts_each_time_when_its_caller_has_ended(subject: subprocess.Popen[bytes]) -> None:
    with open(_asked_for(subject.pid), "rb") as told:
        assert told.read() == b"xxx"


def test_repeat_ends_with_the_process_it_is_for(subject: subprocess.Popen[bytes]) -> None:
    told = []
    read, write = os.pipe()
    repeat(lambda: told.append(os.write(write, b"x")), [0, 1000], pid=subject.pid, keep=[write])
    os.close(write)
    with open(read, "rb", buffering=0) as stream:
        assert stream.read(1) == b"x"
        subject.kill()
        assert stream.read(1) == b""
    assert told == []


def test_repeat_refuses_a_process_that_is_not_there() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError):
        repeat(lambda: None, [0], pid=process.pid)
