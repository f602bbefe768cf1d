"""``ckpt verify``: whether an image is whole."""

from __future__ import annotations

from pathlib import Path

import click

from ckpt.cli import render
from ckpt.cli.options import common, settings


@click.command(name="verify")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@common
def command(images: tuple[Path, ...]) -> None:
    """Read every byte of each IMAGE and hold it against its digests."""
    from ckpt.image import Reader, Summary

    asked = settings()
    summaries: dict[str, Summary] = {}
    with render.progress(asked) as progress:
        for image in images:

            def report(done: int, total: int, name: str = image.name) -> None:
                if progress is not None:
                    progress(name, done, total)

            with Reader(image) as reader:
                summaries[str(image)] = reader.verify(report)
    if asked.json:
        render.emit([{"path": path} | render.plain(summary) for path, summary in summaries.items()])
        return
    for path, summary in summaries.items():
        click.echo(f"{path}: whole, {render.size(summary.size)}, {summary.files} files, id {summary.id}")
