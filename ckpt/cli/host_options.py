"""The options that name another host: one decorator, for every command that works there as it does here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def host_options(command: _Command) -> _Command:
    """Give a command ``--host`` and ``--remote-ckpt``, as its arguments ``host`` and ``remote_ckpt``."""
    for option in (_ckpt, _host):
        command = option(command)
    return command


def on(host: str | None) -> str:
    """Where something was done, for a message: ``here`` or ``on B``."""
    return "here" if host is None else f"on {host}"


def pages_of(image: Path) -> int:
    """How much memory an image holds. Raises what is said of an image that is none."""
    from ckpt.image import Reader

    with Reader(image) as reader:
        return sum(file.length for file in reader.files.values() if file.name.startswith("pages-"))


_host = click.option("--host", metavar="[USER@]HOST", help="Do it on another host, whatever `ssh` takes.")
_ckpt = click.option(
    "--remote-ckpt", metavar="PATH", help="The ckpt of the other host.  [default: $CKPT_REMOTE, then ckpt on PATH]"
)
