"""``ckpt ps``: the groups of this host."""

from __future__ import annotations

import time

import click

from ckpt import registry
from ckpt.cli import render
from ckpt.cli.options import common, require_root, settings


@click.command(name="ps")
@click.option("-q", "--quiet", is_flag=True, help="Print the names alone.")
@common
def command(quiet: bool) -> None:
    """List the groups that ckpt started or restored here; with -v, with their whole commands."""
    require_root("ckpt ps")
    entries = registry.entries()
    if settings().json:
        render.emit([render.plain(entry) | {"state": state(entry)} for entry in entries])
    elif quiet:
        for entry in entries:
            click.echo(entry.name)
    else:
        render.table(("NAME", ">PID", "STATE", ">AGE", "ADDRESSES", "COMMAND"), [_row(entry) for entry in entries])


def state(entry: registry.GroupEntry) -> str:
    """``running``, ``exited``, or what a ckpt is doing to it (``dump``)."""
    if not entry.alive:
        return "exited"
    busy = next((work.kind for work in registry.operations() if work.group == entry.name and work.alive), None)
    return busy or "running"


def _row(entry: registry.GroupEntry) -> tuple[object, ...]:
    return (
        entry.name,
        entry.pid,
        state(entry),
        render.duration(time.time() - entry.created),
        " ".join(address for address in entry.addresses if not address.startswith("fe80:")),
        render.command_line(entry.command, settings()),
    )
