"""``ckpt clean``: take away what a ckpt that was killed has left."""

from __future__ import annotations

import click

from ckpt.cli import render
from ckpt.cli.options import common, require_root, settings


@click.command(name="clean")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; touch nothing.")
@common
def command(dry_run: bool) -> None:
    """Remove what a killed ckpt left: locks, links, directories, entries of groups that are gone.

    Never touches what is in use or was not made by ckpt.
    """
    require_root("ckpt clean")
    from ckpt.clean import clean

    actions = clean(dry_run=dry_run)
    if settings().json:
        render.emit(actions)
        return
    rows = [(action.kind, action.subject, "removed" if action.done else "kept", action.reason) for action in actions]
    if rows:
        render.table(("KIND", "SUBJECT", "OUTCOME", "REASON"), rows)
    else:
        click.echo("nothing to clean")
