"""From the records of an image to those of the same group under other names: addresses, links, ports and MACs.

``remap`` is given the whole of an image and a mapping and returns the whole again, with findings that say what has
followed, what could not, and what makes the mapping impossible. Revalidation, the plan, the restore and its
verification then work on the result as if the image had said so. CRIU's own images are changed to match by
``kernel.criu_images``; which sockets those are is told here too.

An established TCP connection is known to its peer by both addresses. Where both ends are in the group, both move and it
lives on; another one of a mapped address cannot, so it blocks, unless connections were asked to be closed. Ports are
mapped for those that wait to be spoken to, listeners and UDP sockets; a connection keeps its own. Pure.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Collection, Iterator

from ckpt.errors import RefusedError
from ckpt.kernel.criu_images import Renaming
from ckpt.mapping import NO_MAPPING, Mapping
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.confined import as_bound
from ckpt.model.finding import Finding, Severity
from ckpt.model.network import Network
from ckpt.model.process import Isolation
from ckpt.model.socket import IPPROTO_TCP, IPPROTO_UDP, Endpoint, Socket
from ckpt.records import dataclass
from ckpt.remap_context import remap_context
from ckpt.remap_findings import check_networks, check_sockets, describe, listed
from ckpt.remap_network import map_port, remap_network
from ckpt.remap_translator import Translator
from ckpt.revalidate import malformed

_PROTOCOLS = {IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp"}
_UNBOUND = {"inet": "0.0.0.0", "inet6": "::"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Remapped:
    """``checkpoint`` as it shall be restored, and what is to be said of it.

    ``closed`` are the inodes of the sockets that are restored without their connections.
    """

    checkpoint: Checkpoint
    findings: tuple[Finding, ...] = ()
    closed: frozenset[int] = frozenset()
    mapping: Mapping = NO_MAPPING

    @property
    def connections(self) -> int:
        """How many TCP connections are restored."""
        return sum(one.holds_connection for one in self.checkpoint.sockets)

    @property
    def renames_sockets(self) -> bool:
        """Whether CRIU's own images have to be changed."""
        # Those of a context are called as its programs know them.
        return bool(self.mapping or self.closed or self.checkpoint.context)

    def renaming(self) -> Renaming:
        """What CRIU's own images are changed by."""
        translator = Translator(self.mapping)
        # The group's own links keep their names.
        in_hosts = self.checkpoint.group.isolation is not Isolation.NETNS
        record = self.checkpoint.context
        return Renaming(
            sockets={one.inode: one if record is None else as_bound(record, one) for one in self.checkpoint.sockets},
            closed=self.closed,
            elsewhere=translator.endpoint,
            link=self.mapping.link if in_hosts else str,
        )


def remap(checkpoint: Checkpoint, mapping: Mapping, *, tcp_close: bool = False) -> Remapped:
    """``checkpoint`` with what ``mapping`` names called otherwise.

    With ``tcp_close`` no connection with others is restored; those within the group are, unless they were left out of
    the image.
    """
    if malformed(checkpoint) or not (mapping or tcp_close):
        return Remapped(checkpoint=checkpoint)  # as revalidation will say, or as it is
    try:
        return _remap(checkpoint, mapping, tcp_close=tcp_close)
    except ValueError as error:
        raise RefusedError(
            "the image cannot be mapped", code="address-invalid", details=str(error), hint="do not trust this image"
        ) from error


def _remap(checkpoint: Checkpoint, mapping: Mapping, *, tcp_close: bool) -> Remapped:
    translator = Translator(mapping)
    own = _own_addresses(checkpoint)
    # A dump that was told to close connections counts none.
    pairs = _paired(checkpoint.sockets) if checkpoint.group.connections else frozenset()
    sockets, broken = _sockets(checkpoint, translator, pairs)
    closed = frozenset(
        one.inode for one in checkpoint.sockets if tcp_close and one.holds_connection and one.inode not in pairs
    )
    sockets = tuple(_unconnected(one) if one.inode in closed else one for one in sockets)
    result = dataclasses.replace(checkpoint, sockets=sockets)
    if mapping and checkpoint.context is not None:
        result = dataclasses.replace(result, context=remap_context(checkpoint.context, translator))
    if mapping:
        result = _with_networks(result, translator, own)
    findings = [
        *describe(mapping, translator),
        *check_networks(checkpoint.networks, result.networks),
        *check_sockets(checkpoint, result, mapping),
        *_connections(checkpoint.sockets, broken, closed, pairs, tcp_close=tcp_close),
    ]
    return Remapped(checkpoint=result, findings=tuple(findings), closed=closed, mapping=mapping)


def _with_networks(checkpoint: Checkpoint, translator: Translator, own: Collection[str]) -> Checkpoint:
    def mapped(network: Network) -> Network:
        return remap_network(network, translator, own)

    group = checkpoint.group
    if translator.mapping.links:
        # A bridge that is named is one that is there; a new one would lead nowhere.
        group = dataclasses.replace(group, bridge_made=False)
    return dataclasses.replace(
        checkpoint,
        group=group,
        network=mapped(checkpoint.network) if checkpoint.network is not None else None,
        nested=tuple(dataclasses.replace(one, network=mapped(one.network)) for one in checkpoint.nested),
    )


def _own_addresses(checkpoint: Checkpoint) -> frozenset[str]:
    networks = checkpoint.networks.values()
    return frozenset(one.address.partition("/")[0] for network in networks for one in network.addresses)


# -- sockets -----------------------------------------------------------------------------------------------------------

_Ends = tuple[object, ...]


def _paired(sockets: Collection[Socket]) -> frozenset[int]:
    """The inodes of the TCP connections of which the group has both ends."""
    held = [one for one in sockets if one.holds_connection]
    ends = {_ends(one, one.local, one.remote) for one in held}
    return frozenset(one.inode for one in held if _ends(one, one.remote, one.local) in ends)


def _ends(one: Socket, local: Endpoint | None, remote: Endpoint | None) -> _Ends:
    if local is None or remote is None:
        return ()
    addresses = [_plain(end.address) for end in (local, remote)]
    # 127.0.0.1 is in each of several namespaces another one.
    loopback = any(address.is_loopback for address in addresses)
    return (one.protocol, addresses[0], local.port, addresses[1], remote.port, one.netns if loopback else 0)


def _plain(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(text)
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return inner or address


def _sockets(
    checkpoint: Checkpoint, translator: Translator, pairs: Collection[int]
) -> tuple[tuple[Socket, ...], tuple[Socket, ...]]:
    """All sockets as they shall be, and the connections (as they were) that a mapped address ends."""
    broken: list[Socket] = []
    result: list[Socket] = []
    in_hosts = checkpoint.group.isolation is not Isolation.NETNS
    mine = {(one.protocol, one.local.port) for one in checkpoint.sockets if one.local and one.protocol == IPPROTO_UDP}
    for one in checkpoint.sockets:
        if in_hosts and one.device:
            translator.what = "sockets"
            one = dataclasses.replace(one, device=_device(one.device, translator))
        if not one.is_inet:
            result.append(one)
            continue
        moved = map_socket(one, translator, mine)
        if moved != one and one.holds_connection and one.inode not in pairs:
            broken.append(one)
        result.append(moved)
    return tuple(result), tuple(broken)


def _device(device: str, translator: Translator) -> str:
    entry = next((one for one in translator.mapping.links if one.old == device), None)
    if entry is not None:
        translator.follows(entry)
    return device if entry is None else entry.new


def map_socket(one: Socket, translator: Translator, own_ports: Collection[tuple[int, int]] = ()) -> Socket:
    """An inet socket with its ends where they are on the target; ``own_ports`` are those of the group, by protocol."""
    translator.what = "connections" if one.holds_connection else "sockets"
    local = translator.endpoint(one.local) if one.local else None
    remote = translator.endpoint(one.remote) if one.remote else None
    protocol = _PROTOCOLS.get(one.protocol)
    if protocol is not None and not one.holds_connection:
        if local is not None and local.port:
            local = dataclasses.replace(local, port=map_port(local.port, protocol, translator))
        if remote is not None and (one.protocol, remote.port) in own_ports and _is_own(one, remote):
            remote = dataclasses.replace(remote, port=map_port(remote.port, protocol, translator))
    return dataclasses.replace(one, local=local, remote=remote)


def _is_own(one: Socket, remote: Endpoint) -> bool:
    """Whether it speaks to a socket beside it: over loopback, or to its own address."""
    return _plain(remote.address).is_loopback or (one.local is not None and one.local.address == remote.address)


def _unconnected(one: Socket) -> Socket:
    unbound = Endpoint(address=_UNBOUND[one.family], port=0)
    return dataclasses.replace(one, state="close", local=unbound, remote=None)


def _connections(
    sockets: Collection[Socket],
    broken: Collection[Socket],
    closed: Collection[int],
    pairs: Collection[int],
    *,
    tcp_close: bool,
) -> Iterator[Finding]:
    """What becomes of established connections."""
    if broken and not tcp_close:
        yield Finding(
            severity=Severity.BLOCK,
            code="map-connection",
            subject=f"{len(broken)} TCP connections",
            reason=f"their address is mapped, and a peer knows them by it: {listed(broken)}",
            remedy="give --tcp-close to have connections closed, or leave the address as it is",
            there=listed(broken, most=None),
        )
    ended = [one for one in sockets if one.inode in closed]
    if ended:
        yield Finding(
            severity=Severity.WARN,
            code="tcp-closed",
            subject=f"{len(ended)} TCP connections",
            reason=f"--tcp-close: they will be closed: {listed(ended)}",
            remedy="restore without --tcp-close where their addresses stay",
            there=listed(ended, most=None),
        )
    kept = sum(one.inode in pairs for one in sockets)
    if kept and (broken or closed):
        yield Finding(
            severity=Severity.OK,
            code="tcp-kept",
            subject=f"{kept} TCP sockets",
            reason="both ends of their connections are in the group, and they go on",
        )
