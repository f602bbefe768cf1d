"""``ckpt agent``: the other end of ``--host``."""

from __future__ import annotations

import os
import sys

import click

from ckpt.cli.options import common, require_root
from ckpt.errors import UsageError


@click.command(name="agent")
@common
def command() -> None:
    """Serve one session of another ckpt on standard input and output. `ckpt --host` starts it, by ssh.

    It ends with its input, unless it holds a group that is moving here: see `ckpt migrate`.
    """
    if sys.stdin.isatty():
        raise UsageError("an agent is not for a terminal", code="usage", hint="another ckpt starts it, with --host")
    require_root("ckpt agent")
    from ckpt.remote.agent import serve

    # What is printed by mistake must not come between the messages.
    incoming, outgoing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    serve(incoming, outgoing)
