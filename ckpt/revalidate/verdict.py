"""The three ways to say what was found, and the words for lists in it."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.model.finding import Finding, Severity

_NAMED = 4


def ok(code: str, subject: str, reason: str, *, needed: object = "", there: object = "") -> Finding:
    """It is as it should be, or ckpt gets round it."""
    return _found(Severity.OK, code, subject, reason, "", needed, there)


def warn(code: str, subject: str, reason: str, remedy: str, *, needed: object = "", there: object = "") -> Finding:
    """It may turn out wrong."""
    return _found(Severity.WARN, code, subject, reason, remedy, needed, there)


def block(code: str, subject: str, reason: str, remedy: str, *, needed: object = "", there: object = "") -> Finding:
    """It would fail."""
    return _found(Severity.BLOCK, code, subject, reason, remedy, needed, there)


def _found(
    severity: Severity, code: str, subject: str, reason: str, remedy: str, needed: object, there: object
) -> Finding:
    return Finding(
        severity=severity,
        code=code,
        subject=subject,
        reason=reason,
        remedy=remedy,
        needed=str(needed),
        there=str(there),
    )


def listed(items: Sequence[object]) -> str:
    """``71, 72, 73, 74 and 9 more``."""
    named = ", ".join(str(item) for item in items[:_NAMED])
    return named if len(items) <= _NAMED else f"{named} and {len(items) - _NAMED} more"


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 address``, ``3 addresses``."""
    return f"{number} {one if number == 1 else many or one + 's'}"
