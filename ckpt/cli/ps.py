"""``ckpt ps``: the groups of this host, or of another one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ckpt.cli import render
from ckpt.cli.host_options import host_options
from ckpt.cli.options import common, require_root, settings

if TYPE_CHECKING:
    from ckpt.remote.messages import GroupStatus


@click.command(name="ps")
@click.option("-q", "--quiet", is_flag=True, help="Print the names alone.")
@host_options
@common
def command(quiet: bool, host: str | None, remote_ckpt: str | None) -> None:
    """List the groups that ckpt started or restored here; with -v, with their whole commands."""
    if host is None:
        require_root("ckpt ps")
    from ckpt.remote.host import host_at

    with host_at(host, ckpt=remote_ckpt) as asked:
        found = asked.ps()
    if settings().json:
        render.emit([render.plain(one.entry) | {"state": one.state} for one in found])
    elif quiet:
        for one in found:
            click.echo(one.entry.name)
    else:
        render.table(("NAME", ">PID", "STATE", ">AGE", "ADDRESSES", "COMMAND"), [_row(one) for one in found])


def _row(found: GroupStatus) -> tuple[object, ...]:
    entry = found.entry
    return (
        entry.name,
        entry.pid,
        found.state,
        render.duration(time.time() - entry.created),
        " ".join(address for address in entry.addresses if not address.startswith("fe80:")),
        render.command_line(entry.command, settings()),
    )
