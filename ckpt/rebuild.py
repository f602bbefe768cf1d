"""Where a restored group will live: its network namespaces made anew, and locked before they have an address.

The records of the image become the steps that make fresh namespaces equal to them. What lies outside of it is fitted
to this host first: the host's ends of veths get names that are free here, a bridge that ckpt had made is made again.
All of it is undone when the restore fails; the namespaces themselves need no undo, since they live by our descriptors.

A group of the host's own namespace gets no namespace, only a lock on its own sockets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Sequence

from ckpt import registry
from ckpt.errors import CkptError
from ckpt.kernel import apply, fallbacks, netns, outside, rtnl, takedown
from ckpt.kernel.group_lock import GroupLock
from ckpt.kernel.lock import NetworkLock
from ckpt.model.checkpoint import Checkpoint, NestedNetwork
from ckpt.model.network import PAIRED, Counterpart, Link, Network, Place
from ckpt.pins import pinned
from ckpt.plan_group import plan_networks
from ckpt.records import dataclass
from ckpt.silence import scope_of
from ckpt.spaces import NETNS_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One network namespace of the restored group, behind ``netns``; ``inode`` was its number on the source."""

    key: str
    netns: int
    inode: int
    network: Network
    netns_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """``rooms`` of the restored group, its root task's first, none in the host's namespace; ``lock`` is closed."""

    lock: GroupLock
    rooms: tuple[Room, ...] = ()

    @property
    def netns(self) -> int | None:
        """The root task's namespace, None for the host's."""
        return self.rooms[0].netns if self.rooms else None

    @property
    def renumbered(self) -> dict[int, int]:
        """The number that each namespace has now, by the one on the source."""
        return {room.inode: netns.inode(room.netns) for room in self.rooms}

    @property
    def addresses(self) -> tuple[str, ...]:
        """The group's addresses: those of the root task's namespace, and of others that have a link to the host."""
        seen = [room for room in self.rooms if room is self.rooms[0] or _leads_out(room.network)]
        return tuple(one.address for room in seen for one in room.network.addresses if one.scope == "global")

    @property
    def outside_links(self) -> tuple[str, ...]:
        """The names of the links on the host that are the other ends of the group's."""
        return tuple(end.ifname for room in self.rooms for _, end in _outside_veths(room.network))

    @property
    def bridge(self) -> str | None:
        """The bridge that the group is attached to."""
        masters = (end.master for room in self.rooms for _, end in _outside_veths(room.network))
        return next(filter(None, masters), None)

    @property
    def parent(self) -> str | None:
        """The host's link below the group's macvlan or vlan."""
        links = (link for room in self.rooms for link in room.network.links)
        lower = (link.counterpart for link in links if link.kind not in PAIRED and link.counterpart)
        return next((end.ifname for end in lower if end.place is Place.CALLER), None)


def rebuild(
    checkpoint: Checkpoint,
    operation: registry.Operation,
    passing: contextlib.ExitStack,
    undo: contextlib.ExitStack,
    *,
    mute: bool = False,
) -> Home:
    """Make the home of ``checkpoint``'s group, still bare. What ``passing`` closes is only needed meanwhile.

    With ``mute`` it does not even answer for its addresses, until its lock goes: somebody else has them still.
    ``undo`` has to be unwound before ``passing``: a namespace must not be left to die with links in it.
    """
    if checkpoint.network is None:
        return _lock_sockets(checkpoint, operation, passing)
    rooms = _rooms(checkpoint, checkpoint.network, passing)
    lock = GroupLock([NetworkLock(room.netns, mute=mute) for room in rooms])
    lock.close(permanent=True)
    home = Home(lock=lock, rooms=rooms)
    operation.note(
        lock_tables=list(lock.names),
        links=list(home.outside_links),
        netns_names=[name for room in rooms for name in room.netns_names],
    )
    pinned(operation, [room.netns for room in rooms], passing)
    undo.callback(_remove_links, rooms)
    return home


def furnish(home: Home, checkpoint: Checkpoint, operation: registry.Operation, undo: contextlib.ExitStack) -> None:
    """Make everything in the rooms of ``home`` as the image has it."""
    rooms = home.rooms
    if not rooms:
        return
    if checkpoint.group.bridge_made:
        for room in rooms:
            _make_bridges(room.network, operation, undo)
    steps = plan_networks(
        {room.key: room.network for room in rooms},
        {room.key: rtnl.read_network(room.netns, untouched=True) for room in rooms},
    )
    apply.apply_group({room.key: room.netns for room in rooms}, steps, undo)
    for room in rooms:
        for name in room.netns_names:
            takedown.pin(room.netns, name)
            undo.callback(takedown.unpin, [name])


def _remove_links(rooms: Sequence[Room]) -> None:
    for room in rooms:
        with contextlib.suppress(CkptError):
            takedown.remove_links(room.netns)


def _rooms(checkpoint: Checkpoint, network: Network, passing: contextlib.ExitStack) -> tuple[Room, ...]:
    """The namespaces made, empty; their links are named as they can be here."""
    first = NestedNetwork(
        key=checkpoint.criu.netns_key or NETNS_KEY,
        inode=checkpoint.processes[0].namespaces.get("net", 0),
        netns_names=checkpoint.group.netns_names,
        network=network,
    )
    rooms = []
    for one in (first, *checkpoint.nested):
        namespace = fallbacks.create_for(one.network)
        passing.callback(os.close, namespace)
        rooms.append(
            Room(
                key=one.key,
                netns=namespace,
                inode=one.inode,
                network=_fitted(one.network),
                netns_names=one.netns_names,
            )
        )
    return tuple(rooms)


def _lock_sockets(checkpoint: Checkpoint, operation: registry.Operation, passing: contextlib.ExitStack) -> Home:
    own = netns.open_own()
    passing.callback(os.close, own)
    lock = passing.enter_context(GroupLock([NetworkLock(own, scope=scope_of(checkpoint.sockets))]))
    lock.close(permanent=True)
    operation.note(lock_tables=list(lock.names), netns_pid=os.getpid())
    return Home(lock=lock)


def _fitted(network: Network) -> Network:
    """The network with the host's ends of its veths named so that they are free here."""
    renamed: dict[str, Link] = {}
    for link, end in _outside_veths(network):
        ifname = f"ckpt{secrets.token_hex(4)}" if outside.find(end.ifname) else end.ifname
        renamed[link.ifname] = dataclasses.replace(link, counterpart=dataclasses.replace(end, ifname=ifname, ifindex=0))
    return dataclasses.replace(network, links=tuple(renamed.get(link.ifname, link) for link in network.links))


def _make_bridges(network: Network, operation: registry.Operation, undo: contextlib.ExitStack) -> None:
    for master in {end.master for _, end in _outside_veths(network)} - {""}:
        operation.note(bridge=master)
        if outside.ensure_bridge(master):
            undo.callback(outside.delete, master)


def _leads_out(network: Network) -> bool:
    return any(link.counterpart is not None and link.counterpart.place is Place.CALLER for link in network.links)


def _outside_veths(network: Network) -> tuple[tuple[Link, Counterpart], ...]:
    """The veths whose other end lies in the host's namespace, with that end."""
    return tuple(
        (link, link.counterpart)
        for link in network.links
        if link.kind in PAIRED and link.counterpart is not None and link.counterpart.place is Place.CALLER
    )
