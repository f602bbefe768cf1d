"""``ckpt dump``: a group into one file."""

from __future__ import annotations

from pathlib import Path

import click

from ckpt.cli import render
from ckpt.cli.options import Target, common, require_root, settings


@click.command(name="dump")
@click.argument("target", type=Target(), metavar="PID|NAME")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The image's file.  [default: /var/lib/ckpt/NAME.ckpt]",
)
@click.option("--force", is_flag=True, help="Replace the file when it is there.")
@click.option("--leave-running", is_flag=True, help="Let the group run on after the dump.")
@click.option("--tcp-close", is_flag=True, help="Leave established TCP connections out of the image.")
@click.option(
    "--skip-in-flight", is_flag=True, help="Drop connections that the program has not accepted yet; it must not wait."
)
@click.option(
    "--compress",
    "codec",
    type=click.Choice(["zstd", "lz4", "none"]),
    default="zstd",
    show_default=True,
    help="How the image is compressed.",
)
@common
def command(
    target: str | int,
    output: Path | None,
    force: bool,
    leave_running: bool,
    tcp_close: bool,
    skip_in_flight: bool,
    codec: str,
) -> None:
    """Freeze a group, write it with its network into one file, and take it away.

    TARGET is the name of a group that ckpt started or restored, or the PID of the root of any process tree.
    A failure leaves the group running as it was.
    """
    require_root("ckpt dump")
    from ckpt.dump import dump_group

    asked = settings()
    with render.progress(asked) as progress:
        report = dump_group(
            target,
            output,
            leave_running=leave_running,
            tcp_close=tcp_close,
            skip_in_flight=skip_in_flight,
            codec=codec,
            force=force,
            progress=progress,
            criu_path=asked.criu,
        )
    for text in report.warnings:
        render.warn(text)
    if asked.json:
        render.emit(report)
        return
    fate = "runs on" if report.left_running else "was taken away"
    click.echo(f"{report.path}: {render.size(report.size)} ({render.size(report.raw_size)} before compression)")
    click.echo(f"{report.name} {fate}: {report.processes} processes, {report.connections} TCP connections in the image")
    click.echo(f"frozen for {render.duration(report.frozen_seconds)}")
