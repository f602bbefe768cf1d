"""Teams: their options and those of their ports, read and set by generic netlink.

The mode has to be set before there are ports, and brings options of its own; of the rest only what differs is set, once
the ports have joined. An option that is in neither table is told to the caller. A port has its team's address while it
is one, and nobody tells its own: so a port that leaves a restored team keeps the team's.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ckpt.errors import NetworkError
from ckpt.kernel.genetlink import GenericNetlink
from ckpt.kernel.netlink import KernelRefusal, attribute, nested, number, pairs, parse, string, text, u8, u32
from ckpt.model.network import Link, Unread
from ckpt.model.teaming import Team, TeamPort

KIND = "team"
MODE = "mode"

_SET, _GET, _PORTS = 1, 2, 3
_TEAM, _LIST_OPTIONS, _LIST_PORTS, _ITEM = 1, 2, 3, 1
_NAME, _TYPE, _DATA, _PORT, _ARRAY_INDEX = 1, 3, 4, 6, 7
_PORT_INDEX = 1
_U32, _STRING, _FLAG, _BINARY, _S32 = 3, 5, 6, 11, 14

_TYPES = {
    MODE: _STRING,
    "notify_peers_count": _U32,
    "notify_peers_interval": _U32,
    "mcast_rejoin_count": _U32,
    "mcast_rejoin_interval": _U32,
    "enabled": _FLAG,
    "user_linkup": _FLAG,
    "user_linkup_enabled": _FLAG,
    "priority": _S32,
    "queue_id": _U32,
    "activeport": _U32,
    "bpf_hash_func": _BINARY,
    "lb_tx_method": _STRING,
    "lb_tx_hash_to_port_mapping": _U32,
    "lb_stats_refresh_interval": _U32,
}
_COUNTED = frozenset({"lb_hash_stats", "lb_port_stats"})
_NO_MODE = "*NOMODE*"

_Options = dict[str, str]


def read(netns: int, links: Sequence[Link]) -> tuple[tuple[Team, ...], tuple[Unread, ...]]:
    """Of the ``links`` of ``netns`` those that are teams, and what their records cannot hold."""
    found = [link for link in links if link.kind == KIND]
    if not found:
        return (), ()
    unread: list[Unread] = []
    names = {link.ifindex: link.ifname for link in links}
    with GenericNetlink(KIND, netns) as connection:
        teams = tuple(_read_one(connection, link, names, unread) for link in found)
    for one in teams:
        if one.ports:
            what = "has ports that will keep its address when they leave it, for their own are told nowhere"
            unread.append(Unread(code="team-port-address", subject=f"link {one.ifname}", what=what))
    return teams, tuple(unread)


def numbered(links: Iterable[Link], teams: Iterable[Team]) -> tuple[Link, ...]:
    """``links``, in which the ports of ``teams`` have the numbers by which their team has them."""
    numbers = {port.ifname: at for team in teams for at, port in enumerate(team.ports, 1)}
    return tuple(replace(link, port_number=numbers[link.ifname]) if link.ifname in numbers else link for link in links)


def _read_one(connection: GenericNetlink, link: Link, names: Mapping[int, str], unread: list[Unread]) -> Team:
    options = _options(connection, link.ifindex, link.ifname, unread)
    ports = []
    for message in connection.request(_PORTS, attribute(_TEAM, u32(link.ifindex))):
        for _, item in pairs(message.get(_LIST_PORTS, b"")):
            index = number(parse(item)[_PORT_INDEX])
            if index in names:
                ports.append(TeamPort(ifname=names[index], options=options.get(index, {})))
    return Team(ifname=link.ifname, options=options.get(0, {}), ports=tuple(ports))


def _options(connection: GenericNetlink, index: int, ifname: str, unread: list[Unread]) -> dict[int, _Options]:
    """The options of the team ``index`` by the index of the port that they are of, 0 for its own."""
    found: dict[int, _Options] = {}
    for message in connection.request(_GET, attribute(_TEAM, u32(index))):
        for _, item in pairs(message.get(_LIST_OPTIONS, b"")):
            option = parse(item)
            name = text(option[_NAME])
            if name in _COUNTED:
                continue
            if name not in _TYPES:
                unread.append(
                    Unread(code="link-attribute", subject=f"link {ifname}", what=f"has the unknown option {name}")
                )
                continue
            place = f"{name}[{number(option[_ARRAY_INDEX])}]" if _ARRAY_INDEX in option else name
            of = found.setdefault(number(option.get(_PORT, b"")), {})
            of[place] = _decode(_TYPES[name], option.get(_DATA))
    return found


def _decode(kind: int, data: bytes | None) -> str:
    if kind == _FLAG:
        return str(int(data is not None))
    if kind == _S32:
        return str(struct.unpack("=i", data or bytes(4))[0])
    if kind == _U32:
        return str(number(data or b""))
    return text(data or b"") if kind == _STRING else (data or b"").hex()


def set_modes(netns: int, teams: Iterable[Team], indices: Mapping[str, int]) -> None:
    """Give ``teams``, which have no ports yet, their modes. Raises NetworkError that names the one that was refused."""
    with GenericNetlink(KIND, netns) as connection:
        for team in teams:
            if (mode := team.options.get(MODE, _NO_MODE)) != _NO_MODE:
                _set(connection, team.ifname, indices[team.ifname], [_encode(MODE, mode, 0)])


def set_options(netns: int, teams: Iterable[Team], indices: Mapping[str, int]) -> None:
    """Give ``teams`` and their ports, which have joined, all else. Raises NetworkError as ``set_modes`` does."""
    with GenericNetlink(KIND, netns) as connection:
        for team in teams:
            index = indices[team.ifname]
            now = _options(connection, index, team.ifname, [])
            wanted = {indices[port.ifname]: port.options for port in team.ports} | {0: team.options}
            for port, options in wanted.items():
                differing = {key: value for key, value in options.items() if now.get(port, {}).get(key) != value}
                _set(connection, team.ifname, index, [_encode(key, value, port) for key, value in differing.items()])


def _set(connection: GenericNetlink, ifname: str, index: int, options: Iterable[bytes]) -> None:
    for option in options:
        try:
            connection.request(_SET, attribute(_TEAM, u32(index)) + nested(_LIST_OPTIONS, option))
        except KernelRefusal as error:
            # It has been set, but nobody listens to be told of it (team_nl_options_set_doit).
            if error.errno == errno.ESRCH:
                continue
            name = text(parse(parse(option)[_ITEM])[_NAME])
            raise NetworkError(
                f"cannot set the option {name} of the team {ifname}", code="team-refused", details=error.strerror
            ) from error


def _encode(key: str, value: str, port: int) -> bytes:
    name, _, place = key.partition("[")
    kind = _TYPES[name]
    parts = [attribute(_NAME, string(name)), attribute(_TYPE, u8(kind)), *_encode_value(kind, value)]
    if port:
        parts.append(attribute(_PORT, u32(port)))
    if place:
        parts.append(attribute(_ARRAY_INDEX, u32(int(place.removesuffix("]")))))
    return nested(_ITEM, *parts)


def _encode_value(kind: int, value: str) -> Iterator[bytes]:
    if kind == _FLAG:
        if value == "1":
            yield attribute(_DATA, b"")
    elif kind == _STRING:
        yield attribute(_DATA, string(value))
    elif kind == _BINARY:
        yield attribute(_DATA, bytes.fromhex(value))
    else:
        yield attribute(_DATA, struct.pack("=i", int(value)) if kind == _S32 else u32(int(value)))
