"""How results look: tables, sizes, times, findings, errors and progress, for a reader and as JSON for a program.

Results go to standard output; errors, warnings and progress go to standard error. At a terminal tables are drawn by
rich; into a pipe they are aligned text that other tools can cut. What comes from processes or from an image is
hostile: control characters are shown, never sent to a terminal.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from ckpt.cli.options import Settings
from ckpt.errors import CkptError
from ckpt.model.finding import Finding
from ckpt.model.secret import Secret

_COMMAND_WIDTH = 60

Progress = Callable[[str, int, int | None], None]
"""Called with the stage, and how much of how much (None: not known) is done, in bytes."""


def emit(value: object) -> None:
    """Print ``value`` as JSON on standard output."""
    click.echo(to_json(value))


def to_json(value: object) -> str:
    """``value`` (records, mappings, sequences) as JSON text; bytes as hexadecimal digits, of secrets only a digest."""
    return json.dumps(plain(value), indent=2)


def plain(value: object) -> Any:
    """``value`` made of what JSON has."""
    if isinstance(value, Secret):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table. Columns whose name starts with ``>`` are set to the right."""
    names = [column.lstrip(">") for column in columns]
    cells = [[printable("" if cell is None else str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, names, cells, title)
        return
    if title:
        click.echo(f"{title}:")
    widths = [max(len(line[place]) for line in [names, *cells]) for place in range(len(names))]
    for line in [names, *cells]:
        justified = (
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        )
        click.echo("  ".join(justified).rstrip())
    if title:
        click.echo()


def _rich_table(columns: Sequence[str], names: Sequence[str], cells: list[list[str]], title: str | None) -> None:
    # Imported late: rich takes longer to load than most commands to run.
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False, show_edge=False
    )
    for column, name in zip(columns, names, strict=True):
        drawn.add_column(name, justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


def printable(text: str) -> str:
    """``text`` with every character that a terminal would act on shown as an escape."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


def command_line(words: Sequence[str], settings: Settings) -> str:
    """A command for a table, as a shell would take it; shortened unless more words were asked for."""
    shown = shlex.join(words)
    return shown if settings.verbose or len(shown) <= _COMMAND_WIDTH else shown[: _COMMAND_WIDTH - 1] + "…"


def size(count: int) -> str:
    """A number of bytes for a reader: ``17 B``, ``1.5 KiB``, ``12 MiB``."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"


def duration(seconds: float) -> str:
    """A time span for a reader: ``3.2 ms``, ``1.25 s``, ``4 min``, ``3 h``, ``2 d``."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    for limit, divisor, unit in ((3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def moment(epoch: float) -> str:
    """A point in time for a reader, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def findings(found: Sequence[Finding]) -> None:
    """Print findings, gravest first, each with what to do."""
    order = {"block": 0, "warn": 1, "ok": 2}
    for finding in sorted(found, key=lambda item: order[item.severity]):
        line = f"{finding.severity:<5}  {finding.subject}: {finding.reason}"
        click.echo(printable(line))
        if finding.remedy:
            click.echo(printable(f"       → {finding.remedy}"))


def warn(text: str) -> None:
    """Print a warning on standard error."""
    click.echo(f"ckpt: warning: {printable(text)}", err=True)


def error(failure: CkptError, settings: Settings) -> None:
    """Print an error on standard error: brief, details and hint, or the same fields as JSON."""
    if settings.json:
        fields = {
            "brief": failure.brief,
            "code": failure.code,
            "details": failure.details,
            "hint": failure.hint,
            "status": failure.status,
        }
        click.echo(to_json({"error": fields}), err=True)
        return
    click.echo(f"ckpt: {printable(failure.brief)}", err=True)
    for line in (failure.details or "").splitlines():
        click.echo(f"  {printable(line)}", err=True)
    if failure.hint:
        click.echo(f"  hint: {printable(failure.hint)}", err=True)
    if settings.verbose:
        click.echo(f"  code: {failure.code}, exit status {failure.status}", err=True)


def progress(settings: Settings) -> AbstractContextManager[Progress | None]:
    """A progress bar on standard error while the block runs; None when nobody would see it."""
    if settings.json or not sys.stderr.isatty():
        return nullcontext()
    from ckpt.cli.progress import Bar

    return Bar()
