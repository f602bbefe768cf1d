"""scripts/try-criu: what decides whether a CRIU is good enough must say no to one that is not, and leave nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ckpt.kernel import criu

TRY = Path(__file__).parents[2] / "scripts/try-criu"


def attempt(path: Path | str, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Try one CRIU with ``scratch`` for its temporary files, which must be empty again."""
    done = subprocess.run(
        [TRY, path], env={"PATH": "/usr/sbin:/usr/bin", "TMPDIR": str(scratch)}, capture_output=True, text=True
    )
    assert list(scratch.iterdir()) == []
    return done


def test_try_criu_the_one_that_ckpt_uses_works(tmp_path: Path) -> None:
    done = attempt(criu.find().path, tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 0", "dump: it reported success, and the process runs on"),
        ("echo 'no such kernel' >&2; exit 1", "dump: no such kernel"),
        ("exit 1", "dump: it failed without a word"),
        (
            r"cd $4; printf 'Error (a): RLIMIT_NOFILE\nError (criu/b.c:2): no\nError (criu/c.c:3)\n' >$6; exit 1",
            "dump: Error (criu/b.c:2): no",
        ),
    ],
)
def test_try_criu_one_that_fails_is_told_why(script: str, reason: str, tmp_path: Path) -> None:
    fake = tmp_path / "criu"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = attempt(fake, scratch)
    assert (done.returncode, done.stdout) == (1, reason + "\n")


def test_try_criu_absent_is_told_so(tmp_path: Path) -> None:
    done = attempt("/nonexistent/criu", tmp_path)
    assert (done.returncode, done.stdout) == (1, "cannot be run: No such file or directory\n")
