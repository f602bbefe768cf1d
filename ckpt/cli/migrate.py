"""``ckpt migrate``: a group to another host, with its connections."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt.cli import render
from ckpt.cli.file_options import carrying_options, replacing_option
from ckpt.cli.host_options import host_options
from ckpt.cli.mapping_options import mapping_options
from ckpt.cli.options import Target, common, require_root, settings
from ckpt.errors import UsageError

if TYPE_CHECKING:
    from ckpt.mapping import Mapping
    from ckpt.migrate import MigrateOptions


@click.command(name="migrate")
@click.argument("target", required=False, type=Target(), metavar="[PID|NAME]")
@host_options
@click.option("--name", metavar="NAME", help="What the group is called there.  [default: as here]")
@click.option("--dry-run", is_flag=True, help="Say whether it could go on there; touch nothing.")
@click.option(
    "--downtime-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the group may stand still; then it goes on here.",
)
@click.option("--tcp-close", is_flag=True, help="Close the TCP connections that are established.")
@click.option("--skip-in-flight", is_flag=True, help="Drop connections that the program has not accepted yet.")
@click.option(
    "--compress",
    "codec",
    type=click.Choice(["zstd", "lz4", "none"]),
    default="zstd",
    show_default=True,
    help="How the image is compressed on its way.",
)
@carrying_options
@replacing_option
@mapping_options
@click.option("--resume", metavar="ID", is_flag=False, flag_value="", help="Bring a migration to its end.")
@click.option("--source-lost", is_flag=True, help="With --resume, on the target: the source will never answer.")
@click.option("--list", "listing", is_flag=True, help="Show the migrations that have not come to their end.")
@common
def command(
    target: str | int | None,
    host: str | None,
    remote_ckpt: str | None,
    name: str | None,
    dry_run: bool,
    downtime_limit: float,
    tcp_close: bool,
    skip_in_flight: bool,
    codec: str,
    mapping: Mapping,
    with_files: tuple[Path, ...],
    open_files: str,
    replace_files: bool,
    resume: str | None,
    source_lost: bool,
    listing: bool,
) -> None:
    """Move a group to another host, where it goes on with its addresses, sockets and connections.

    Until it is committed a failure leaves the group running here as it was; after that it is the other host's, and
    `--resume` finds out how it went when the connection was lost.
    """
    require_root("ckpt migrate")
    from ckpt.carrying import OpenFiles
    from ckpt.migrate import MigrateOptions

    options = MigrateOptions(
        name=name,
        dry_run=dry_run,
        tcp_close=tcp_close,
        skip_in_flight=skip_in_flight,
        codec=codec,
        downtime_limit=downtime_limit,
        mapping=mapping,
        with_files=with_files,
        open_files=OpenFiles(open_files),
        replace_files=replace_files,
        criu=settings().criu,
        ckpt=remote_ckpt,
    )
    if listing:
        _list()
    elif resume is not None:
        _resume(resume or None, host, source_lost, options)
    elif target is None or host is None:
        raise UsageError("a group and a host are needed", code="usage", hint="ckpt migrate NAME --host HOST")
    else:
        _migrate(target, host, options)


def _migrate(target: str | int, host: str, options: MigrateOptions) -> None:
    from ckpt.migrate import migrate_group
    from ckpt.model.finding import refuse_blocked

    asked = settings()
    with render.progress(asked) as progress:
        report = migrate_group(target, host, options, progress=progress)
    if asked.json:
        render.emit(report)
        return
    if report.dry_run:
        render.findings(report.findings)
        refuse_blocked(report.findings, f"{target} could not go on on {host}")
        click.echo(f"{target} could go on on {host}")
        return
    click.echo(f"{report.name} runs on {host} as PID {report.pid}, with {report.connections} TCP connections")
    away = render.duration(report.away_seconds)
    click.echo(f"{report.processes} processes, {render.size(report.size)}; it stood still for {away}")
    if report.resumed:
        render.warn("the connection was lost on the way, or the group had to be restored a second time there")


def _resume(migration: str | None, host: str | None, source_lost: bool, options: MigrateOptions) -> None:
    from ckpt.migrate import resume

    report = resume(migration, host=host, source_lost=source_lost, options=options)
    if settings().json:
        render.emit(report)
    else:
        click.echo(report.outcome)


def _list() -> None:
    from ckpt.migrations import migrations

    found = migrations()
    if settings().json:
        render.emit(found)
        return
    rows = [(one.id, one.role, one.state, one.group, one.peer, one.image or "") for one in found]
    render.table(("ID", "SIDE", "STATE", "GROUP", "OTHER HOST", "IMAGE"), rows)
