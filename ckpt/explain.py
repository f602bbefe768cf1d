"""Why CRIU failed, in words: its log's decisive line, translated where it is known, and the log itself kept."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from ckpt import registry
from ckpt.kernel import criu
from ckpt.model.criu_log import decisive_line
from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The parts of an error that come from CRIU."""

    code: str
    details: str | None
    hint: str | None


def explain(error: criu.CriuError, place: Path, operation: registry.Operation) -> Explanation:
    """What ``error`` was about, by the log that CRIU left in ``place``; the log is kept for a closer look."""
    log = place / criu.LOG_NAME
    kept = registry.state_dir() / "logs" / f"{operation.id}.log"
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return Explanation(code=error.code, details=error.details, hint=None)
    with contextlib.suppress(OSError):
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(log, kept)
    verdict = decisive_line(text)
    where = f"CRIU's log is {kept}"
    if verdict is None:
        return Explanation(code=error.code, details=error.details, hint=where)
    return Explanation(
        code=verdict.code,
        details=f"{verdict.brief}\nCRIU: {verdict.line}",
        hint=f"{verdict.remedy}; {where}" if verdict.remedy else where,
    )
