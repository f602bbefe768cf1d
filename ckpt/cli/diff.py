"""``ckpt diff``: what came, went or changed between two images, or since an image was made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt.cli import render
from ckpt.cli.options import Target, common, is_image, require_root, settings
from ckpt.cli.status import DIFFERENT

if TYPE_CHECKING:
    from ckpt.diff import Difference, FieldChange

_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}

# A process alone has dozens of fields; what is cut is to be had with -v.
_VALUE_WIDTH = 100


@click.command(name="diff")
@click.argument("before", type=Target(), metavar="BEFORE")
@click.argument("after", type=Target(), metavar="AFTER")
@click.option("--all", "everything", is_flag=True, help="Show also what differs between any two reads.")
@common
def command(before: str | int, after: str | int, everything: bool) -> None:
    """Show what differs between two images, an image and a live group, or two live groups.

    BEFORE and AFTER are each an image, the name of a group, or the PID of the root of any process tree. A live group
    is neither frozen nor touched. The exit status is 0 when there are no differences, and 14 when there are some.
    """
    from ckpt.diff import diff
    from ckpt.live import read_checkpoint

    sides = [_side(word) for word in (before, after)]
    old, new = (read_checkpoint(side, settings().criu) for side in sides)
    found = diff(old, new, everything=everything)
    if settings().json:
        render.emit({"before": sides[0], "after": sides[1], "equal": not found, "differences": found})
    else:
        _show(found)
    if found:
        click.get_current_context().exit(DIFFERENT)


def _side(word: str | int) -> str | int | Path:
    if isinstance(word, str) and is_image(word):
        return Path(word)
    require_root("ckpt diff of a live group")
    return word


def _show(found: Sequence[Difference]) -> None:
    if not found:
        click.echo("no differences")
    for section, differences in groupby(found, key=lambda item: item.section):
        click.echo(click.style(f"{section}:", bold=True))
        for difference in differences:
            sign, colour = _SIGNS[difference.change]
            click.echo(click.style(f"  {sign} {render.printable(difference.name)}", fg=colour))
            for line in _lines(difference):
                click.echo(f"      {line}")


def _lines(difference: Difference) -> Iterator[str]:
    """What there is to say below an object's name."""
    for field in difference.fields:
        yield from _field(field)
    record = difference.after if difference.before is None else difference.before
    if record is None:
        return
    if text := _fields(record, known=difference.name):
        yield _cut(text)
    for name, value in _texts(record):
        sign, colour = _SIGNS[difference.change]
        yield f"{name}:"
        for line in value.splitlines():
            yield click.style(f"  {sign}{render.printable(line.expandtabs(4))}", fg=colour)


def _field(change: FieldChange) -> Iterator[str]:
    place = render.printable(change.field)
    if change.lines:
        yield f"{place}:"
        for line in change.lines:
            colour = {"+": "green", "-": "red"}.get(line[:1])
            yield click.style(f"  {render.printable(line.expandtabs(4))}", fg=colour)
    elif change.before is None or change.after is None:
        sign, value = ("+", change.after) if change.before is None else ("-", change.before)
        yield f"{sign} {place}: {_cut(_value(value))}"
    else:
        yield f"{place}: {_cut(_value(change.before))} → {_cut(_value(change.after))}"


def _cut(text: str) -> str:
    text = render.printable(text)
    return text if settings().verbose or len(text) <= _VALUE_WIDTH else text[: _VALUE_WIDTH - 1] + "…"


def _value(value: object) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value) if type(value).__str__ is object.__str__ else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return " ".join(map(_value, value)) if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else '""' if value == "" else str(value)


def _fields(record: Any, known: str = "") -> str:
    """The fields of ``record`` that say something which neither their default nor its name ``known`` says."""
    if not dataclasses.is_dataclass(record):
        return "" if record == known else _value(record)
    long = {name for name, _ in _texts(record)}
    words = []
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name in long or value in (None, "", (), {}) or value == field.default:
            continue
        if not known or str(value) not in known.split():
            words.append(f"{field.name} {_value(value)}")
    return ", ".join(words)


def _texts(record: Any) -> list[tuple[str, str]]:
    """The fields of ``record`` that are text of several lines."""
    if not dataclasses.is_dataclass(record):
        return []
    found = [(field.name, getattr(record, field.name)) for field in dataclasses.fields(record)]
    return [(name, value) for name, value in found if isinstance(value, str) and "\n" in value]
