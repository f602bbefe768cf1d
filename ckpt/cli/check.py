"""``ckpt check``: what works, whether a group would dump, whether an image would restore; here or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt.cli import render
from ckpt.cli.file_options import replacing_option
from ckpt.cli.host_options import host_options, pages_of
from ckpt.cli.mapping_options import mapping_options
from ckpt.cli.options import Target, common, is_image, require_root, settings
from ckpt.errors import RefusedError, UsageError
from ckpt.model.finding import Finding, Severity, blocking

if TYPE_CHECKING:
    from ckpt.mapping import Mapping


@click.command(name="check")
@click.argument("target", required=False, type=Target(), metavar="[PID|NAME|IMAGE]")
@click.option("--name", metavar="NAME", help="IMAGE: what the group would be called there.  [default: as in the image]")
@click.option("--tcp-close", is_flag=True, help="IMAGE: its TCP connections would be closed.")
@replacing_option
@mapping_options
@host_options
@common
def command(
    target: str | int | None,
    name: str | None,
    tcp_close: bool,
    mapping: Mapping,
    replace_files: bool,
    host: str | None,
    remote_ckpt: str | None,
) -> None:
    """Say what works on this host; whether a group would dump; whether an image would restore here.

    With --host the same there; IMAGE is a file of this host all the same. Of an IMAGE it says what `ckpt restore
    --dry-run` does with the same options. Nothing is touched. The exit status is 0 when nothing stands in the way, else
    that of a refusal.
    """
    image = isinstance(target, str) and is_image(target)
    if not image and (name or tcp_close or mapping or replace_files):
        raise UsageError(
            "only of an image it can be asked how it would be restored",
            code="usage",
            hint="ckpt check IMAGE, or `ckpt migrate NAME --host HOST --dry-run` for a group that runs",
        )
    if host is None and target is not None:
        require_root(f"ckpt check {'IMAGE' if image else 'PID|NAME'}")
    from ckpt.remote.host import RestoreWanted, host_at

    with host_at(host, ckpt=remote_ckpt) as asked:
        if not image:
            found = asked.check(target, criu=settings().criu)
        else:
            wanted = RestoreWanted(
                name=name,
                dry_run=True,
                tcp_close=tcp_close,
                mapping=mapping,
                replace_files=replace_files,
                criu=settings().criu,
                pages=pages_of(Path(str(target))),
            )
            with Path(str(target)).open("rb", buffering=0) as stream:
                found = asked.restore(stream, str(target), wanted).findings
    _show(found, str(target) if target is not None else host or "this host")


def _show(found: Sequence[Finding], subject: str) -> None:
    blocks = blocking(tuple(found))
    if settings().json:
        render.emit({"subject": subject, "ok": not blocks, "findings": found})
    else:
        render.findings(found)
        warnings = sum(finding.severity is Severity.WARN for finding in found)
        if not found:
            click.echo(f"{subject}: nothing stands in the way")
        elif blocks or warnings:
            click.echo(f"{subject}: {len(blocks)} in the way, {warnings} to be known")
    if blocks:
        click.get_current_context().exit(RefusedError.status)
