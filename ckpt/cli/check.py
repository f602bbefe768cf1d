"""``ckpt check``: what works here, whether a group would dump, whether an image would restore."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ckpt.cli import render
from ckpt.cli.options import Target, common, is_image, require_root, settings
from ckpt.errors import NotFoundError, RefusedError
from ckpt.model.finding import Finding, Severity, blocking


@click.command(name="check")
@click.argument("target", required=False, type=Target(), metavar="[PID|NAME|IMAGE]")
@common
def command(target: str | int | None) -> None:
    """Say what works on this host; whether a group would dump; whether an image would restore here.

    Nothing is touched. The exit status is 0 when nothing stands in the way, else that of a refusal.
    """
    if target is None:
        _show(_host(), "this host")
    elif isinstance(target, str) and is_image(target):
        require_root("ckpt check IMAGE")
        _show(_image(Path(target)), target)
    else:
        require_root("ckpt check PID|NAME")
        _show(_group(target), str(target))


def _host() -> Sequence[Finding]:
    from ckpt.hostcheck import check_host

    return check_host(settings().criu)


def _group(target: str | int) -> Sequence[Finding]:
    from ckpt import registry
    from ckpt.forecast import findings_of
    from ckpt.kernel.proc import read_group

    if isinstance(target, int):
        return findings_of(read_group(target))
    entry = registry.get(target)
    if not entry.alive:
        raise NotFoundError(f"{target} has exited", code="group-exited", hint=f"`ckpt logs {target}` may say why")
    return findings_of(read_group(entry.pid))


def _image(image: Path) -> Sequence[Finding]:
    from ckpt.restore import restore_group

    return restore_group(image, dry_run=True, criu_path=settings().criu).findings


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
