"""ipset's sets: read and made again by ``ipset``, which is asked only where the kernel holds any.

That there are sets is found out by netlink, without loading ip_set, so that a namespace without any costs no process
and needs no tool. All sets are made before any has members, since a set of sets names others. A rule of iptables-nft
holds a set by its number, so each gets its own number again: gaps are filled for the time it takes.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator, Sequence

from ckpt.errors import CkptError, NetworkError
from ckpt.kernel import netlink
from ckpt.kernel.modules import unloaded
from ckpt.kernel.netlink import KernelRefusal, Netlink, attribute, number, parse, u8
from ckpt.kernel.run import CommandError, run
from ckpt.model.filtering import IpSet
from ckpt.model.network import Unread

_SUBSYSTEM = 6 << 8
_CMD_LIST = _SUBSYSTEM | 7
_CMD_GET_BYNAME = _SUBSYSTEM | 14
_PROTOCOL, _SETNAME, _FLAGS, _INDEX = 1, 2, 6, 11
_NET_BYTEORDER = 0x4000
_FLAG_LIST_SETNAME = 1 << 1
_OLDEST_PROTOCOL, _NEWEST_PROTOCOL = 6, 7
_HEADER = struct.pack("=BBH", 2, 0, 0)

# A number beyond this is not worth as many placeholders: then the sets are only numbered in their order.
_MOST_PLACEHOLDERS = 4096


def read_sets(netns: int) -> tuple[tuple[IpSet, ...], tuple[Unread, ...]]:
    """Every set of ``netns`` with its members, in the order of their numbers, and what cannot be read."""
    indices = _indices(netns)
    if not indices:
        return (), ()
    try:
        text = run(["ipset", "save"], netns=netns).decode("utf-8", "surrogateescape")
    except CkptError as error:
        what = f"{len(indices)} are there, and cannot be read: {error.brief}"
        return (), (Unread(code="ipset-unread", subject="ipset sets", what=what),)
    definitions: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    for line in text.splitlines():
        verb, _, rest = line.partition(" ")
        name, _, rest = rest.partition(" ")
        if verb == "create":
            definitions[name] = rest
        elif verb == "add":
            members.setdefault(name, []).append(rest)
    found = [
        IpSet(name=name, definition=text, members=tuple(members.get(name, ())), index=indices.get(name, -1))
        for name, text in definitions.items()
    ]
    return tuple(sorted(found, key=lambda one: one.index)), ()


def _indices(netns: int) -> dict[str, int]:
    """The number of each set by its name; -1 where the kernel does not tell."""
    if unloaded("ip_set"):
        return {}
    flags = attribute(_FLAGS | _NET_BYTEORDER, struct.pack(">I", _FLAG_LIST_SETNAME))
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        try:
            listed = connection.dump(_CMD_LIST, _HEADER + attribute(_PROTOCOL, u8(_OLDEST_PROTOCOL)) + flags)
        except KernelRefusal:
            return {}  # this kernel has no ipset
        return {netlink.text(name): _index(connection, name) for _, body in listed for name in _name(body)}


def _name(body: bytes) -> Iterator[bytes]:
    name = parse(body, 4).get(_SETNAME)
    if name is not None:
        yield name


def _index(connection: Netlink, name: bytes) -> int:
    request = _HEADER + attribute(_PROTOCOL, u8(_NEWEST_PROTOCOL)) + attribute(_SETNAME, name)
    try:
        for _, body in connection.request(_CMD_GET_BYNAME, request):
            return number(parse(body, 4).get(_INDEX, b""), "be")
    except KernelRefusal:
        pass  # it came with Linux 4.20
    return -1


def load_sets(netns: int, sets: Sequence[IpSet]) -> None:
    """Make all ``sets`` in a namespace that has none. Raises NetworkError with the tool's own words."""
    if not sets:
        return
    try:
        run(["ipset", "restore"], input="".join(_script(sets)).encode("utf-8", "surrogateescape"), netns=netns)
    except CommandError as error:
        raise NetworkError(
            f"cannot make the ipset sets {', '.join(one.name for one in sets)}",
            code="ipset-load",
            details=error.details,
            hint="the kernel or the ipset here may lack the type of a set",
        ) from error


def _script(sets: Sequence[IpSet]) -> Iterator[str]:
    placeholders: list[str] = []
    prefix = f"ckpt-{secrets.token_hex(4)}"
    numbered = max(one.index for one in sets) - len(sets) < _MOST_PLACEHOLDERS
    for position, one in enumerate(sorted(sets, key=lambda one: one.index)):
        while numbered and position + len(placeholders) < one.index:
            placeholders.append(f"{prefix}-{len(placeholders)}")
            yield f"create {placeholders[-1]} bitmap:port range 0-0\n"
        yield f"create {one.name} {one.definition}\n"
    for name in placeholders:
        yield f"destroy {name}\n"
    for one in sorted(sets, key=lambda one: one.of_sets):
        for member in one.members:
            yield f"add {one.name} {member}\n"
