"""``ckpt stop``: end groups, and take away what they had on this host."""

from __future__ import annotations

import click

from ckpt.cli import render
from ckpt.cli.options import common, require_root, settings


@click.command(name="stop")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a group may take to end by itself.",
)
@common
def command(names: tuple[str, ...], timeout: float) -> None:
    """End groups: SIGTERM, and SIGKILL when it did not suffice. Their logs stay."""
    require_root("ckpt stop")
    from ckpt import registry
    from ckpt.stop import StopReport, stop_group

    for name in names:  # a name that is not known stops nothing at all
        registry.get(name)
    reports = [stop_group(name, timeout=timeout) for name in names]
    if settings().json:
        render.emit(reports)
        return

    def said(report: StopReport) -> str:
        how = f"ended by {report.signal}" if report.signal else "had exited already"
        removed = [*report.links, *([f"bridge {report.bridge}"] if report.bridge else [])]
        return f"{report.name}: {how}" + (f"; removed {', '.join(removed)}" if removed else "")

    for report in reports:
        click.echo(said(report))
