"""The ``ckpt`` command: its group of commands, and what becomes of every way in which one can end.

Commands live in one file each and are loaded when they are called or listed. A ``CkptError`` is printed and becomes
its exit status; a signal that ends ckpt lets the command undo its work first; any other exception is a bug in ckpt
and shows its traceback.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from ckpt import __version__
from ckpt.cli.options import Settings, common
from ckpt.cli.render import error as print_error
from ckpt.cli.status import epilog
from ckpt.errors import CkptError, UsageError

COMMANDS = (
    "run",
    "ps",
    "exec",
    "logs",
    "stop",
    "context",
    "dump",
    "restore",
    "migrate",
    "inspect",
    "verify",
    "diff",
    "check",
    "clean",
    "agent",
)


class ReaderGone(Exception):
    """Who read our output has gone. click would exit with 1 for a BrokenPipeError, as for any failure."""


class Commands(click.Group):
    """The commands, each loaded from the file of its name."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError as error:
            raise ReaderGone from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error

    def list_commands(self, _: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = import_module(f"ckpt.cli.{name}").command
        assert isinstance(command, click.Command)
        return command


class Terminated(KeyboardInterrupt):
    """A signal asked ckpt to end; work under way is undone as it is for ^C."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@click.group(
    cls=Commands,
    epilog=epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="ckpt", message="%(prog)s %(version)s")
@common
def cli() -> None:
    """Freeze a group of processes together with its network into one file, and bring it back.

    A program started with `ckpt run` has its own addresses; `ckpt dump` puts it away, `ckpt restore` brings it back,
    and its established TCP connections live on.
    """


def main() -> NoReturn:
    """The entry point of the ``ckpt`` command."""
    # A command makes no circles that matter, and looking for them costs a tenth of what loading modules and reading a
    # large network take.
    gc.disable()
    status = invoke(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _broken_pipe()
    sys.exit(status)


def invoke(arguments: Sequence[str]) -> int:
    """Run ckpt with ``arguments`` and return its exit status; errors are printed."""
    # Read ahead, for the errors that come before options are parsed.
    settings = Settings(json="--json" in _own(arguments))
    try:
        with _signals_undo():
            status = cli.main(list(arguments), prog_name="ckpt", standalone_mode=False, obj=settings)
            return status if isinstance(status, int) else 0
    except CkptError as error:
        print_error(error, settings)
        return error.status
    except click.ClickException as error:
        usage = _usage_error(error)
        print_error(usage, settings)
        return usage.status
    except (KeyboardInterrupt, click.Abort) as error:
        # click turns a KeyboardInterrupt inside a command into its own Abort.
        ended = error.__cause__ if isinstance(error, click.Abort) else error
        return 128 + (ended.number if isinstance(ended, Terminated) else signal.SIGINT)
    except ReaderGone:
        return _broken_pipe()


def _own(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments before ``--``: what follows is another program's."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _usage_error(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "ckpt"
    return UsageError(error.format_message().rstrip("."), code="usage", hint=f"`{command} --help` shows what there is")


def _broken_pipe() -> int:
    """Say nothing more, not even at the interpreter's own flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


@contextmanager
def _signals_undo() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like ^C, instead of killing ckpt amid its work."""

    def end(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    # SIGHUP that nohup ignores stays ignored.
    caught = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in caught:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
