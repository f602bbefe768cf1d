"""Where a restored group will live: its network namespace made anew, and locked before it has an address.

The records of the image become the steps that make a fresh namespace equal to them. What lies outside of it is fitted
to this host first: the host's ends of veths get names that are free here, a bridge that ckpt had made is made again.
All of it is undone when the restore fails; the namespace itself needs no undo, since it lives by our descriptor.

A group of the host's own namespace gets no namespace, only a lock on its own sockets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from dataclasses import dataclass

from ckpt import registry
from ckpt.kernel import apply, netns, outside, rtnl, takedown
from ckpt.kernel.lock import NetworkLock
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.network import Counterpart, Link, Network, Place
from ckpt.plan import plan_network
from ckpt.silence import scope_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """``netns`` and ``network`` of the restored group, None in the host's namespace; ``lock`` is closed."""

    lock: NetworkLock
    netns: int | None = None
    network: Network | None = None

    @property
    def outside_links(self) -> tuple[str, ...]:
        """The names of the links on the host that are the other ends of the group's."""
        return tuple(end.ifname for _, end in _outside_veths(self.network)) if self.network else ()

    @property
    def bridge(self) -> str | None:
        """The bridge that the group is attached to."""
        masters = (end.master for _, end in _outside_veths(self.network)) if self.network else ()
        return next(filter(None, masters), None)

    @property
    def parent(self) -> str | None:
        """The host's link below the group's macvlan or vlan."""
        links = self.network.links if self.network else ()
        lower = (link.counterpart for link in links if link.kind != "veth" and link.counterpart)
        return next((end.ifname for end in lower if end.place is Place.CALLER), None)


def rebuild(
    checkpoint: Checkpoint,
    operation: registry.Operation,
    passing: contextlib.ExitStack,
    undo: contextlib.ExitStack,
) -> Home:
    """Make the home of ``checkpoint``'s group. What ``passing`` closes is only needed while the restore runs."""
    if checkpoint.network is None:
        return _lock_sockets(checkpoint, operation, passing)
    namespace = netns.create()
    passing.callback(os.close, namespace)
    lock = NetworkLock(namespace)
    lock.close(permanent=True)
    network = _fitted(checkpoint.network)
    operation.note(
        lock_tables=list(lock.names),
        links=list(Home(lock=lock, network=network).outside_links),
        netns_names=list(checkpoint.group.netns_names),
        netns=netns.inode(namespace),
    )
    if checkpoint.group.bridge_made:
        _make_bridges(network, operation, undo)
    apply.apply(namespace, plan_network(network, rtnl.read_network(namespace)), undo)
    for name in checkpoint.group.netns_names:
        undo.callback(takedown.unpin, [name])
        takedown.pin(namespace, name)
    return Home(lock=lock, netns=namespace, network=network)


def _lock_sockets(checkpoint: Checkpoint, operation: registry.Operation, passing: contextlib.ExitStack) -> Home:
    own = netns.open_own()
    passing.callback(os.close, own)
    lock = passing.enter_context(NetworkLock(own, scope=scope_of(checkpoint.sockets)))
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


def _outside_veths(network: Network) -> tuple[tuple[Link, Counterpart], ...]:
    """The veths whose other end lies in the host's namespace, with that end."""
    return tuple(
        (link, link.counterpart)
        for link in network.links
        if link.kind == "veth" and link.counterpart is not None and link.counterpart.place is Place.CALLER
    )
