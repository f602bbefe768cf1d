"""``ckpt restore``: a group back from its file or from standard input, here or on another host."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt.cli import render
from ckpt.cli.file_options import replacing_option
from ckpt.cli.host_options import host_options, on, pages_of
from ckpt.cli.mapping_options import mapping_options
from ckpt.cli.options import common, require_root, settings

if TYPE_CHECKING:
    from ckpt.mapping import Mapping
    from ckpt.remote.host import RestoreWanted
    from ckpt.restore import RestoreReport


@click.command(name="restore")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="What the group is called here.  [default: as in the image]")
@click.option("--dry-run", is_flag=True, help="Say whether it would be restored here; touch nothing.")
@click.option("--tcp-close", is_flag=True, help="Close the TCP connections that were established.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep an image that came by a stream, there in FILE.",
)
@replacing_option
@mapping_options
@host_options
@common
def command(
    image: Path,
    name: str | None,
    dry_run: bool,
    tcp_close: bool,
    keep: Path | None,
    mapping: Mapping,
    replace_files: bool,
    host: str | None,
    remote_ckpt: str | None,
) -> None:
    """Bring a group back from IMAGE, with its addresses, sockets and connections.

    IMAGE may be `-` for standard input; with --host it is streamed to the other host, and not stored there.
    A failure leaves nothing of it behind, and the image as it was.
    """
    if host is None:
        require_root("ckpt restore")
    from ckpt.model.finding import Severity, refuse_blocked

    asked = settings()
    with render.progress(asked) as progress:
        if host is None and image != Path("-"):
            from ckpt.restore import restore_group

            report = restore_group(
                image,
                name=name,
                dry_run=dry_run,
                tcp_close=tcp_close,
                mapping=mapping,
                replace_files=replace_files,
                criu_path=asked.criu,
                progress=progress,
            )
        else:
            from ckpt.remote.host import RestoreWanted

            wanted = RestoreWanted(
                name=name,
                dry_run=dry_run,
                tcp_close=tcp_close,
                keep=keep,
                criu=asked.criu,
                mapping=mapping,
                replace_files=replace_files,
            )
            report = _streamed(image, wanted, host, remote_ckpt, progress)
    if asked.json:
        render.emit(report)
        return
    if dry_run:
        render.findings(report.findings)
        refuse_blocked(report.findings, f"{image} would not be restored {on(host)}")
        click.echo(f"{image} would be restored {on(host)} as {report.name}")
        return
    for finding in report.findings:
        if finding.severity is Severity.WARN:
            render.warn(f"{finding.subject}: {finding.reason}")
    for backup in report.backups:
        render.warn(f"{backup} is what had its place before")
    click.echo(
        f"{report.name}: PID {report.pid}, {report.processes} processes, {report.connections} TCP connections kept"
    )
    took, away = render.duration(report.restore_seconds), render.duration(report.away_seconds)
    click.echo(f"restored in {took}, {away} after it was dumped")


def _streamed(
    image: Path,
    wanted: RestoreWanted,
    host: str | None,
    remote_ckpt: str | None,
    progress: render.Progress | None,
) -> RestoreReport:
    """Restore from a stream: standard input, or a file of this host for another one."""
    from ckpt.remote.host import host_at

    piped = image == Path("-")
    if not piped:
        wanted = dataclasses.replace(wanted, pages=pages_of(image), size=image.stat().st_size)
    with ExitStack() as stack:
        stream = stack.enter_context(open(0 if piped else image, "rb", buffering=0, closefd=not piped))
        target = stack.enter_context(host_at(host, ckpt=remote_ckpt))
        return target.restore(stream, "the image" if piped else str(image), wanted, progress)
