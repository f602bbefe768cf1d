"""The options that say what is called otherwise on the target: one decorator, for every command that restores.

The command gets them as one argument, ``mapping``; what cannot be meant together is a UsageError before it begins.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ckpt.errors import NotFoundError, UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])

_ADDRESS = """OLD is NEW on the target: two addresses, or two prefixes of one length. Listeners, UDP sockets, routes,
rules and the like follow; established TCP connections cannot."""
_LINK = """The host's link that the image names OLD is NEW on the target: the bridge that a veth of the group is in, the
host's end of a veth, the link below a macvlan or a vlan; for a group in the host's own network a link that a socket is
bound to. The links inside of the group keep their names."""
_PORT = """The local port OLD of listeners and UDP sockets is NEW, of both protocols or of one. Established connections
keep their ports."""
_MAC = """The MAC OLD of the group's links is NEW on the target. Entries of bridges and neighbours, and rules that name
it, follow; without this a group keeps its MACs."""


def mapping_options(command: _Command) -> _Command:
    """Give a command ``--map-address``, ``--map-link``, ``--map-port``, ``--map-mac`` and ``--map``, as ``mapping``."""

    @functools.wraps(command)
    def with_mapping(
        *args: Any,
        map_address: tuple[str, ...],
        map_link: tuple[str, ...],
        map_port: tuple[str, ...],
        map_mac: tuple[str, ...],
        map_file: tuple[Path, ...],
        **others: Any,
    ) -> Any:
        from ckpt.mapping import parse_mapping

        texts = [_read(path) for path in map_file]
        return command(*args, mapping=parse_mapping(map_address, map_link, map_port, texts, map_mac), **others)

    wrapped: Any = with_mapping
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    result: _Command = wrapped
    return result


_OPTIONS = (
    click.option("--map-address", multiple=True, metavar="OLD=NEW", help=_ADDRESS),
    click.option("--map-link", multiple=True, metavar="OLD=NEW", help=_LINK),
    click.option("--map-port", multiple=True, metavar="OLD=NEW[/tcp|/udp]", help=_PORT),
    click.option("--map-mac", multiple=True, metavar="OLD=NEW", help=_MAC),
    click.option(
        "--map",
        "map_file",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A TOML file with the tables [address], [link], [port] and [mac], each of OLD = NEW.",
    ),
)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no mapping file {path}", code="map-missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as a mapping file", code="map-file", details=str(error)) from error
