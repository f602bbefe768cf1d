"""The options about files that travel in an image: which do, and what becomes of others by their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPEN = """Which files that the group has open for writing travel: those up to 64 MiB (and 256 MiB in all), every one,
or none. The group stands still while they are read."""


def carrying_options(command: _Command) -> _Command:
    """Give a command that dumps ``--with-file`` and ``--open-files``, as ``with_files`` and ``open_files``."""
    for option in (_open_files, _with_file):
        command = option(command)
    return command


_with_file = click.option(
    "--with-file",
    "with_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Let a file travel along, or a directory with all that is in it.",
)
_open_files = click.option(
    "--open-files",
    type=click.Choice(["small", "all", "none"]),
    default="small",
    show_default=True,
    help=_OPEN,
)

replacing_option = click.option(
    "--replace-files",
    is_flag=True,
    help="Where another file has the name of one in the image, keep it beside as .ckpt-backup and take the image's.",
)
