"""What all contexts of a network namespace stand on: the books, the listeners, and the programs that bring packets.

The floor is one program at the namespace's socket lookup, for TCP, and one at the ingress of its links, for UDP, which
no lookup can be told about. The first is held by a link that is pinned in a BPF file system of ckpt's own; the others
stay with their links. Nothing else is written down: whoever wants the books asks the namespace for the program and the
program for its maps.

At the ingress every packet of the host pays, whoever it is for. So the program is only where it has something to do: at
lo, and at the other links while a set has more than one address, but not at ports of a bridge and the like, whose
packets come in once more at that.

The caller holds the registry's lock, and is in the namespace.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

from ckpt.errors import UnsupportedError
from ckpt.kernel import bpf_calls, bpf_object, cgroup2, context_steer, netns, outside, syscalls
from ckpt.kernel.bpf_object import KINDS
from ckpt.kernel.outside import OutsideLink
from ckpt.records import dataclass

_LOOKUP, _STEER = "floor/lookup", "floor/steer"
_LOOKUP_NAME = "ckpt_lookup"
MAPS = ("books", "listeners")

_LO = 1
_HAS_THE_PACKETS_OF_ITS_PORTS = {"bridge", "bond", "team", "openvswitch"}
"""Kinds of links. A VRF is none: what comes in at its ports is for sockets right there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Descriptors of the maps that every context's programs refer to."""

    books: int
    listeners: int


@contextlib.contextmanager
def opened() -> Iterator[Floor | None]:
    """The floor of the caller's namespace for the time of the block; None when it has none."""
    with ExitStack() as stack:
        program = stack.enter_context(_attached_lookup())
        maps = {} if program is None else maps_of(program, stack)
        yield Floor(books=maps["books"], listeners=maps["listeners"]) if maps else None


@contextlib.contextmanager
def ensured(directory: Path) -> Iterator[Floor]:
    """The floor of the caller's namespace, made when it has none; whoever wants it sees to the links, too (``cover``).

    ``directory`` is where ckpt's BPF file system is mounted.
    """
    with opened() as found:
        if found is not None:
            yield found
            return
    _make(directory)
    with opened() as found:
        if found is None:
            raise UnsupportedError("the socket lookup of contexts is not there", code="bpf-floor", hint="try again")
        yield found


def _make(directory: Path) -> None:
    contents = bpf_object.built()
    with ExitStack() as stack:
        maps = {}
        for name in MAPS:
            maps[name] = bpf_calls.map_create(f"ckpt_{name}", contents.maps[name])
            stack.callback(os.close, maps[name])
        program = contents.load(_LOOKUP, maps)
        stack.callback(os.close, program)
        space = netns.open_own()
        stack.callback(os.close, space)
        _mount(directory)
        pin = directory / _pin_name(space)
        pin.unlink(missing_ok=True)
        link = bpf_calls.link_create(program, space, KINDS[_LOOKUP].attach)
        stack.callback(os.close, link)
        bpf_calls.pin(link, str(pin))


def cover(floor: Floor, directory: Path, *, everywhere: bool) -> tuple[str, ...]:
    """See to it that datagrams are brought from lo, or from all links; the links where that cannot be had."""
    links = tuple(outside.links())
    wanted = _wanted(links, everywhere=everywhere)
    bare = [link for link in wanted if not context_steer.is_attached(link.ifindex)]
    for link in set(links) - set(wanted):
        context_steer.detach(link.ifindex, directory.parent)
    if not bare:
        return ()
    program = bpf_object.built().load(_STEER, {"books": floor.books, "listeners": floor.listeners})
    try:
        return tuple(link.ifname for link in bare if not context_steer.attach(link.ifindex, program, directory.parent))
    finally:
        os.close(program)


def _wanted(links: Collection[OutsideLink], *, everywhere: bool) -> tuple[OutsideLink, ...]:
    masters = {link.ifindex: link.kind for link in links}
    return tuple(
        link
        for link in links
        if link.ifindex == _LO or (everywhere and masters.get(link.master) not in _HAS_THE_PACKETS_OF_ITS_PORTS)
    )


def remove(directory: Path) -> bool:
    """Take the floor of the caller's namespace away; whether anything of it was there."""
    removed = False
    for link in outside.links():
        removed |= context_steer.detach(link.ifindex, directory.parent)
    space = netns.open_own()
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            _unpin(directory / _pin_name(space))
            removed = True
    finally:
        os.close(space)
    if directory in cgroup2.mount_points("bpf") and not any(directory.glob("lookup-*")):
        syscalls.umount2(str(directory))
        directory.rmdir()
    return removed


def _unpin(pin: Path) -> None:
    """End the link, and now: the next context would else stand on what is about to go (bpf_link_put defers it)."""
    link = bpf_calls.unpinned(str(pin))
    try:
        bpf_calls.link_detach(link)
    finally:
        os.close(link)
    pin.unlink()


def is_there() -> bool:
    """Whether the caller's namespace has anything of a floor."""
    with _attached_lookup() as program:
        if program is not None:
            return True
    return any(context_steer.is_attached(link.ifindex) for link in outside.links())


def maps_of(program: int, stack: ExitStack) -> dict[str, int]:
    """The maps that a program of ours uses, by their names in the source; closed by ``stack``."""
    found = {}
    for number in bpf_calls.prog_info(program).map_ids:
        descriptor = bpf_calls.map_by_id(number)
        stack.callback(os.close, descriptor)
        found[bpf_calls.map_name(descriptor).removeprefix("ckpt_")] = descriptor
    return found


@contextlib.contextmanager
def attached(target: int, attach_type: int, name: str) -> Iterator[int | None]:
    """A descriptor of the program called ``name`` that is attached to ``target`` itself; None when there is none."""
    with ExitStack() as stack:
        found = None
        for number in bpf_calls.prog_query(target, attach_type):
            with contextlib.suppress(FileNotFoundError):
                descriptor = bpf_calls.prog_by_id(number)
                stack.callback(os.close, descriptor)
                if bpf_calls.prog_info(descriptor).name == name:
                    found = descriptor
        yield found


@contextlib.contextmanager
def _attached_lookup() -> Iterator[int | None]:
    space = netns.open_own()
    try:
        with attached(space, KINDS[_LOOKUP].attach, _LOOKUP_NAME) as program:
            yield program
    finally:
        os.close(space)


def _pin_name(space: int) -> str:
    return f"lookup-{netns.inode(space)}"


def _mount(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory not in cgroup2.mount_points("bpf"):
        syscalls.mount("bpf", str(directory), kind="bpf", data="mode=0700")
