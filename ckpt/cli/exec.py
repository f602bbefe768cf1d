"""``ckpt exec``: run a command inside a group's namespaces."""

from __future__ import annotations

import sys

import click

from ckpt import registry
from ckpt.cli.options import common, require_root
from ckpt.errors import NotFoundError


@click.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND [ARGUMENTS]...")
@common
def command(name: str, argv: tuple[str, ...]) -> None:
    """Run COMMAND in the namespaces of the group NAME, with the terminal that ckpt has, and exit as it does.

    It does not become part of the group: a dump leaves it out, and ends it.
    """
    require_root("ckpt exec")
    from ckpt.context import run_inside

    entry = registry.get(name)
    if not entry.alive:
        raise NotFoundError(f"{name} has exited", code="group-exited", hint=f"`ckpt logs {name}` may say why")
    # After NAME, `--` only ends the options.
    words = argv[1:] if argv[0] == "--" else argv
    sys.stdout.flush()
    click.get_current_context().exit(run_inside(entry, words))
