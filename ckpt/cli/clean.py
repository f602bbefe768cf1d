"""``ckpt clean``: take away what a ckpt that was killed has left."""

from __future__ import annotations

import click

from ckpt.cli import render
from ckpt.cli.host_options import host_options
from ckpt.cli.options import common, require_root, settings


@click.command(name="clean")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; touch nothing.")
@host_options
@common
def command(dry_run: bool, host: str | None, remote_ckpt: str | None) -> None:
    """Remove what a killed ckpt left: locks, links, directories, entries of groups that are gone.

    Never touches what is in use or was not made by ckpt.
    """
    if host is None:
        require_root("ckpt clean")
    from ckpt.remote.host import host_at

    with host_at(host, ckpt=remote_ckpt) as asked:
        actions = asked.clean(dry_run=dry_run)
    if settings().json:
        render.emit(actions)
        return
    rows = [(action.kind, action.subject, "removed" if action.done else "kept", action.reason) for action in actions]
    if rows:
        render.table(("KIND", "SUBJECT", "OUTCOME", "REASON"), rows)
    else:
        click.echo("nothing to clean")
