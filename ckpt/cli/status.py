"""The table of exit statuses, made from the error classes themselves so that it cannot differ from them."""

from __future__ import annotations

from ckpt import errors

DIFFERENT = 14
"""What ``ckpt diff`` ends with when there are differences: no failure, and no other command's."""

SIGNALS = "128+N: ended by signal N (of `ckpt run --wait` and `ckpt exec`: the command was)"


def table() -> list[tuple[int, str, str]]:
    """Exit status, class and meaning of each error, by status."""
    classes: list[type[errors.CkptError]] = [errors.CkptError, *errors.CkptError.__subclasses__()]
    known = {kind.status: kind for kind in reversed(classes) if kind.__module__ == errors.__name__}
    return [(status, known[status].__name__, _meaning(known[status])) for status in sorted(known)]


def _meaning(kind: type[errors.CkptError]) -> str:
    return (kind.__doc__ or "").partition("\n")[0].rstrip(".")


def epilog() -> str:
    """The table as the last words of ``ckpt --help``."""
    meanings = {status: meaning for status, _, meaning in table()} | {
        0: "done",
        DIFFERENT: "`ckpt diff` found differences",
    }
    lines = ["Exit statuses:", *(f"{status}: {meanings[status]}" for status in sorted(meanings)), SIGNALS]
    # \b keeps click from rewrapping the paragraph.
    return "\b\n" + "\n".join(f"  {line}" if place else line for place, line in enumerate(lines))
