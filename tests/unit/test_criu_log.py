"""Which line of a CRIU log decides: against what CRIU wrote when each failure was provoked (``criu_logs.txt``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.model.criu_log import LogVerdict, decisive_line

RLIMIT = "(00.000391) Error (criu/rlimit.c:23): Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
WAY_OUT = {
    "dump": "(00.048792) Error (criu/cr-dump.c:1545): Dump files (pid: 9167) failed with -1\n"
    "(00.049305) Error (criu/cr-dump.c:1975): Dumping FAILED.\n",
    "restore": "(00.031917)   6974: Error (criu/files.c:1221): Unable to open fd=3 id=0xd\n"
    "(00.031991) Error (criu/cr-restore.c:2331): Restoring FAILED.\n",
}


def seen_logs() -> Iterator[tuple[str, str, str]]:
    """Kind of run, the code expected, and the error lines of each log."""
    blocks = Path(__file__).with_name("criu_logs.txt").read_text().split("== ")[1:]
    for block in blocks:
        head, _, lines = block.partition("\n")
        kind, _, code = head.partition(" ")
        yield kind, code, lines


SEEN = list(seen_logs())


@pytest.mark.parametrize(("kind", "code", "lines"), SEEN, ids=[f"{kind}-{code}" for kind, code, _ in SEEN])
def test_decisive_line_of_a_real_log_is_its_cause(kind: str, code: str, lines: str) -> None:
    verdict = decisive_line(f"{RLIMIT}{lines}{WAY_OUT[kind]}")
    assert verdict is not None
    assert verdict.code == code


def test_decisive_line_fills_the_brief_from_the_line() -> None:
    line = "(00.030182)   7114: Error (criu/files-reg.c:2175): File tmp/file has bad size 6 (expect 3)\n"
    assert decisive_line(RLIMIT + line + WAY_OUT["restore"]) == LogVerdict(
        code="file-differs",
        brief="/tmp/file has another size here (6) than when it was dumped (3)",
        line="File tmp/file has bad size 6 (expect 3) (files-reg.c:2175)",
        remedy="install the same version on both sides, or bring the file along",
    )


def test_decisive_line_unknown_takes_the_first_error_that_could_be_a_cause() -> None:
    log = (
        RLIMIT
        + "(00.010000) Warn  (criu/kerndat.c:1): something minor\n"
        + "(00.020000) Error (criu/moon.c:7): moon: wrong phase\n"
        + "(00.021000) Error (criu/moon.c:9): moon: cannot go on\n"
        + WAY_OUT["dump"]
    )
    assert decisive_line(log) == LogVerdict(
        code="criu-failed",
        brief="CRIU failed for a reason that ckpt does not know",
        line="moon: wrong phase (moon.c:7)",
    )


def test_decisive_line_of_only_a_way_out_shows_its_first_line() -> None:
    log = (
        RLIMIT
        + "(00.030636) Error (compel/src/lib/infect.c:417): Unable to detach from 10481: No such process\n"
        + "(00.030736) Error (criu/cr-dump.c:1975): Dumping FAILED.\n"
    )
    verdict = decisive_line(log)
    assert verdict is not None
    assert verdict.line == "Unable to detach from 10481: No such process (infect.c:417)"


@pytest.mark.parametrize("log", ["", RLIMIT, "(00.000001) Version: 4.2.1 (gitid 0)\n", "\0\0garbage Error\n"])
def test_decisive_line_without_a_cause_is_none(log: str) -> None:
    assert decisive_line(log) is None
