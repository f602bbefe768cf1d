"""What the commands share on their command lines: settings, options, argument types, and who may do what.

``--json``, ``-v`` and ``--criu`` may stand before or after the command's name and mean the same. Nothing heavy is
imported here: every command loads this.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ckpt.errors import PermissionDeniedError
from ckpt.records import dataclass

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(slots=True)
class Settings:
    """What was asked of ckpt as a whole. ``criu`` is the path of a CRIU program, when one was named."""

    json: bool = False
    verbose: int = 0
    criu: str | None = None


def settings() -> Settings:
    """The settings of the command that runs."""
    return click.get_current_context().ensure_object(Settings)


def common(command: _Command) -> _Command:
    """Give a command ``--json``, ``-v`` and ``--criu``."""
    for option in (_criu, _verbose, _json):
        command = option(command)
    return command


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Settings).json = True


def _set_verbose(context: click.Context, _: click.Parameter, value: int) -> None:
    context.ensure_object(Settings).verbose += value
    if value:
        _show_steps(context.ensure_object(Settings).verbose)


def _show_steps(verbose: int) -> None:
    """Let what the engine logs be seen on standard error: its steps, and with a second -v their details."""
    import logging

    logging.basicConfig(format="ckpt: %(message)s", level=logging.WARNING)
    logging.getLogger("ckpt").setLevel(logging.DEBUG if verbose > 1 else logging.INFO)


def _set_criu(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Settings).criu = value


_json = click.option("--json", is_flag=True, expose_value=False, callback=_set_json, help="Print JSON.")
_verbose = click.option(
    "-v", "--verbose", count=True, expose_value=False, callback=_set_verbose, help="Say more of what is done."
)
_criu = click.option(
    "--criu",
    metavar="PATH",
    expose_value=False,
    callback=_set_criu,
    help="The CRIU program to use.  [default: $CKPT_CRIU, /opt/ckpt/criu/criu, then the one on PATH]",
)


class Target(click.ParamType[str | int]):
    """A group's name or a PID: what is all digits is a PID."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> str | int:
        # isdecimal alone takes other scripts' digits too.
        return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value


class Bytes(click.ParamType[int]):
    """A number of bytes: ``65536``, ``64K``, ``512M``, ``2G``."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        text = str(value)
        shift = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1:].upper(), 0)
        digits = text[:-1] if shift else text
        if not (digits.isascii() and digits.isdecimal()):
            self.fail(f"{text!r} is not a number of bytes, like 65536, 64K or 2G", param, context)
        return int(digits) << shift


def is_image(target: str) -> bool:
    """A word with a slash or a suffix of ours, or a file's name that is no group's, is an image."""
    from ckpt import registry

    if "/" in target or target.endswith(".ckpt"):
        return True
    return Path(target).exists() and registry.find(target) is None


def require_root(what: str) -> None:
    """PermissionDeniedError unless root runs this: ``what`` is what needs it."""
    if os.geteuid() != 0:
        raise PermissionDeniedError(
            f"{what} needs root",
            code="root-needed",
            details=f"the user id is {os.geteuid()}",
            hint=f"sudo {' '.join(['ckpt', *sys.argv[1:2]])} …",
        )
