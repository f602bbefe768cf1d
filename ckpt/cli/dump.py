"""``ckpt dump``: a group into one file, or to standard output; from here, or from another host."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt.cli import render
from ckpt.cli.file_options import carrying_options
from ckpt.cli.host_options import host_options
from ckpt.cli.options import Target, common, require_root, settings
from ckpt.errors import RolledBackError, UsageError

if TYPE_CHECKING:
    from ckpt.dump import DumpReport
    from ckpt.remote.host import DumpWanted, Host


@click.command(name="dump")
@click.argument("target", type=Target(), metavar="PID|NAME")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The image's file, `-` for standard output.  [default: /var/lib/ckpt/NAME.ckpt]",
)
@click.option("--force", is_flag=True, help="Replace the file when it is there.")
@click.option("--leave-running", is_flag=True, help="Let the group run on after the dump.")
@click.option("--tcp-close", is_flag=True, help="Leave established TCP connections out of the image.")
@click.option(
    "--skip-in-flight", is_flag=True, help="Drop connections that the program has not accepted yet; it must not wait."
)
@click.option(
    "--max-freeze",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="How long the group may stand still; then it goes on, without an image.  [default: any time]",
)
@click.option(
    "--compress",
    "codec",
    type=click.Choice(["zstd", "lz4", "none"]),
    default="zstd",
    show_default=True,
    help="How the image is compressed.",
)
@carrying_options
@host_options
@common
def command(
    target: str | int,
    output: Path | None,
    force: bool,
    leave_running: bool,
    tcp_close: bool,
    skip_in_flight: bool,
    max_freeze: float | None,
    codec: str,
    with_files: tuple[Path, ...],
    open_files: str,
    host: str | None,
    remote_ckpt: str | None,
) -> None:
    """Freeze a group, write it with its network into one file, and take it away.

    TARGET is the name of a group that ckpt started or restored, or the PID of the root of any process tree.
    A failure leaves the group running as it was.
    """
    if host is None:
        require_root("ckpt dump")
    from ckpt.carrying import OpenFiles
    from ckpt.dump import dump_group

    asked = settings()
    piped = output == Path("-")
    if piped and sys.stdout.isatty():
        raise UsageError("an image is nothing for a terminal", code="usage", hint="ckpt dump … -o - | …, or -o FILE")
    if host is not None and output is None:
        raise UsageError("the image of another host needs a place here", code="usage", hint="-o FILE, or -o -")
    with render.progress(asked) as progress:
        if host is None and not piped:
            report = dump_group(
                target,
                output,
                leave_running=leave_running,
                tcp_close=tcp_close,
                skip_in_flight=skip_in_flight,
                codec=codec,
                force=force,
                with_files=with_files,
                open_files=OpenFiles(open_files),
                max_freeze=max_freeze,
                progress=progress,
                criu_path=asked.criu,
            )
        else:
            from ckpt.remote.host import DumpWanted, host_at

            wanted = DumpWanted(
                leave_running=leave_running,
                tcp_close=tcp_close,
                skip_in_flight=skip_in_flight,
                codec=codec,
                criu=asked.criu,
                with_files=with_files,
                open_files=OpenFiles(open_files),
                max_freeze=max_freeze,
            )
            with host_at(host, ckpt=remote_ckpt) as source:
                report = _received(source, target, output or Path("-"), wanted, force, progress)
    for text in report.warnings:
        render.warn(text)
    if asked.json:
        click.echo(render.to_json(report), err=piped)
        return
    fate = "runs on" if report.left_running else "was taken away"
    size, raw = render.size(report.size), render.size(report.raw_size)
    click.echo(f"{'the image' if piped else report.path}: {size} ({raw} before compression)", err=piped)
    kept = f"{report.processes} processes, {report.connections} TCP connections in the image"
    click.echo(f"{report.name} {fate}: {kept}", err=piped)
    click.echo(f"frozen for {render.duration(report.frozen_seconds)}", err=piped)


def _received(
    source: Host, target: str | int, output: Path, wanted: DumpWanted, force: bool, progress: render.Progress | None
) -> DumpReport:
    """Dump to standard output, or into a file here from wherever the group is."""
    if output == Path("-"):
        return source.dump(target, lambda: open(1, "wb", buffering=0, closefd=False), wanted, progress)
    from ckpt.image import created

    stood = output.exists()
    try:
        report = source.dump(target, lambda: created(output, force=force), wanted, progress)
    except RolledBackError:
        # It was stored, but then the group was not given away after all.
        if not stood:
            output.unlink(missing_ok=True)
        raise
    return replace(report, path=output.absolute())
