"""The three ways to say what was found, and the words for lists in it."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.model.finding import Finding, Severity

_NAMED = 4


def ok(code: str, subject: str, reason: str) -> Finding:
    """It is as it should be, or ckpt gets round it."""
    return Finding(severity=Severity.OK, code=code, subject=subject, reason=reason)


def warn(code: str, subject: str, reason: str, remedy: str) -> Finding:
    """It may turn out wrong."""
    return Finding(severity=Severity.WARN, code=code, subject=subject, reason=reason, remedy=remedy)


def block(code: str, subject: str, reason: str, remedy: str) -> Finding:
    """It would fail."""
    return Finding(severity=Severity.BLOCK, code=code, subject=subject, reason=reason, remedy=remedy)


def listed(items: Sequence[object]) -> str:
    """``71, 72, 73, 74 and 9 more``."""
    named = ", ".join(str(item) for item in items[:_NAMED])
    return named if len(items) <= _NAMED else f"{named} and {len(items) - _NAMED} more"


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 address``, ``3 addresses``."""
    return f"{number} {one if number == 1 else many or one + 's'}"
