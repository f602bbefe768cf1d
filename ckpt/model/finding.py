"""What a check says: one finding for each thing it looked at.

The same findings are printed as a table, emitted as JSON and carried by a refusal, so a finding holds all of it:
how grave it is, what it speaks of, why, and what to do.
"""

from __future__ import annotations

import enum

from ckpt.errors import RefusedError
from ckpt.records import dataclass


class Severity(enum.StrEnum):
    """How grave a finding is: only ``BLOCK`` stops a dump or a restore."""

    OK = "ok"
    WARN = "warn"
    BLOCK = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of a check.

    ``code`` is stable and in kebab-case (``socket-mptcp``); ``subject`` names the object (``PID 71, fd 5``);
    ``reason`` says what was found; ``remedy`` says what to do and is empty only for ``OK``. ``needed`` and ``there``
    are the two sides for a program to compare, where it is about something that a target lacks or has otherwise.
    """

    severity: Severity
    code: str
    subject: str
    reason: str
    remedy: str = ""
    needed: str = ""
    there: str = ""


def blocking(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Those of ``findings`` that stop the work."""
    return tuple(finding for finding in findings if finding.severity is Severity.BLOCK)


def refuse_blocked(findings: tuple[Finding, ...], brief: str) -> None:
    """RefusedError that names every finding that blocks, if there is one."""
    found = blocking(findings)
    if found:
        raise RefusedError(
            brief,
            code=found[0].code,
            details="\n".join(f"{one.subject}: {one.reason}" for one in found),
            hint="; ".join(dict.fromkeys(one.remedy for one in found if one.remedy)) or None,
        )
