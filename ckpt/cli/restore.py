"""``ckpt restore``: a group back from its file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt.cli import render
from ckpt.cli.mapping_options import mapping_options
from ckpt.cli.options import common, require_root, settings

if TYPE_CHECKING:
    from ckpt.mapping import Mapping


@click.command(name="restore")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="What the group is called here.  [default: as in the image]")
@click.option("--dry-run", is_flag=True, help="Say whether it would be restored here; touch nothing.")
@click.option("--tcp-close", is_flag=True, help="Close the TCP connections that were established.")
@mapping_options
@common
def command(image: Path, name: str | None, dry_run: bool, tcp_close: bool, mapping: Mapping) -> None:
    """Bring a group back from IMAGE, with its addresses, sockets and connections.

    A failure leaves nothing of it behind, and the image as it was.
    """
    require_root("ckpt restore")
    from ckpt.model.finding import Severity, refuse_blocked
    from ckpt.restore import restore_group

    asked = settings()
    with render.progress(asked) as progress:
        report = restore_group(
            image,
            name=name,
            dry_run=dry_run,
            tcp_close=tcp_close,
            mapping=mapping,
            criu_path=asked.criu,
            progress=progress,
        )
    if asked.json:
        render.emit(report)
        return
    if dry_run:
        render.findings(report.findings)
        refuse_blocked(report.findings, f"{image} would not be restored here")
        click.echo(f"{image} would be restored here as {report.name}")
        return
    for finding in report.findings:
        if finding.severity is Severity.WARN:
            render.warn(f"{finding.subject}: {finding.reason}")
    click.echo(
        f"{report.name}: PID {report.pid}, {report.processes} processes, {report.connections} TCP connections kept"
    )
    took, away = render.duration(report.restore_seconds), render.duration(report.away_seconds)
    click.echo(f"restored in {took}, {away} after it was dumped")
