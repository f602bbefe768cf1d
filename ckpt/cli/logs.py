"""``ckpt logs``: what a group has written to its standard output and error."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

import click

from ckpt import registry
from ckpt.cli.options import common, require_root
from ckpt.errors import NotFoundError

_BLOCK = 64 * 1024

_POLL_SECONDS = 0.2


@click.command(name="logs")
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is written, until the group has exited.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Print the last lines only, this many.")
@common
def command(name: str, follow: bool, lines: int | None) -> None:
    """Print the log of a group."""
    require_root("ckpt logs")
    entry = registry.get(name)
    if entry.log is None:
        raise NotFoundError(
            f"{name} has no log", code="log-none", details="its output goes where it went before ckpt knew it"
        )
    if not Path(entry.log).exists():
        raise NotFoundError(f"the log of {name} is gone", code="log-missing", details=entry.log)
    with Path(entry.log).open("rb") as stream:
        if lines is not None:
            stream.seek(_start_of_last(stream, lines))
        _copy(stream)
        while follow:
            # Looked at before the copy: what was written before the end is still printed.
            goes_on = registry.find(name) == entry and entry.alive
            _copy(stream)
            if not goes_on:
                break
            time.sleep(_POLL_SECONDS)


def _copy(stream: BinaryIO) -> None:
    """Print from where ``stream`` stands to its end, byte by byte as it is: it is the group's own output."""
    while block := stream.read(_BLOCK):
        sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def _start_of_last(stream: BinaryIO, lines: int) -> int:
    """Where the last ``lines`` lines begin; a last line without an end counts."""
    position = end = stream.seek(0, os.SEEK_END)
    if not lines:
        return end
    wanted = lines
    while position > 0:
        start = max(0, position - _BLOCK)
        stream.seek(start)
        block = stream.read(position - start)
        # The newline that ends the file begins no line.
        place = len(block) - 1 if position == end and block.endswith(b"\n") else len(block)
        while (place := block.rfind(b"\n", 0, place)) >= 0:
            wanted -= 1
            if not wanted:
                return start + place + 1
        position = start
    return 0
