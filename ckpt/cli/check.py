"""``ckpt check``: what works, whether a group would dump, whether an image would restore; here or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt.cli import render
from ckpt.cli.host_options import host_options, pages_of
from ckpt.cli.mapping_options import mapping_options
from ckpt.cli.options import Target, common, is_image, require_root, settings
from ckpt.errors import RefusedError
from ckpt.model.finding import Finding, Severity, blocking

if TYPE_CHECKING:
    from ckpt.mapping import Mapping


@click.command(name="check")
@click.argument("target", required=False, type=Target(), metavar="[PID|NAME|IMAGE]")
@host_options
@mapping_options
@common
def command(target: str | int | None, host: str | None, remote_ckpt: str | None, mapping: Mapping) -> None:
    """Say what works on this host; whether a group would dump; whether an image would restore here.

    With --host the same there; IMAGE is a file of this host all the same. Nothing is touched. The exit status is 0 when
    nothing stands in the way, else that of a refusal.
    """
    image = isinstance(target, str) and is_image(target)
    if host is None and target is not None:
        require_root(f"ckpt check {'IMAGE' if image else 'PID|NAME'}")
    from ckpt.remote.host import RestoreWanted, host_at

    with host_at(host, ckpt=remote_ckpt) as asked:
        if not image:
            found = asked.check(target, criu=settings().criu)
        else:
            wanted = RestoreWanted(
                dry_run=True, mapping=mapping, criu=settings().criu, pages=pages_of(Path(str(target)))
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
