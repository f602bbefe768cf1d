"""Sockets: what they are bound to must be there, and in the host's own namespace it must be free.

In a namespace of the group's own the addresses come with it. In the host's, CRIU fails on a missing IPv4 address only
when it gets there, and restores an IPv6 listener without its address in silence; both are found here. A port is held
against the sockets of the target on the very addresses, as the kernel would.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace

from ckpt.model.checkpoint import Checkpoint
from ckpt.model.finding import Finding
from ckpt.model.host import BusySocket, TargetFacts
from ckpt.model.process import Isolation
from ckpt.model.socket import IPPROTO_TCP, IPPROTO_UDP, Endpoint, Socket
from ckpt.revalidate.needs import host_part, plain
from ckpt.revalidate.verdict import block, counted, listed, ok, warn

_HEADERS = {4: 40, 6: 60}
"""Bytes of the headers of IP and TCP, without options."""

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_sockets(checkpoint: Checkpoint, target: TargetFacts, *, tcp_close: bool) -> Iterator[Finding]:
    """Findings on congestion control, and for a group in the host's namespace on devices, addresses and ports."""
    sockets = [one for one in checkpoint.sockets if one.is_inet and not (tcp_close and one.holds_connection)]
    yield from _congestion(sockets, target)
    yield from _devices(checkpoint, target)
    if checkpoint.group.isolation is not Isolation.NONE:
        return
    problems = [*_absent(sockets, target), *_busy(sockets, target), *_paths(sockets, target)]
    yield from problems
    yield from _ephemeral(sockets, target)
    bound = sum(one.local is not None and bool(one.local.port) for one in sockets)
    if bound and not problems:
        yield ok("sockets", counted(bound, "socket"), "their addresses are here, and their ports are free")


def _congestion(sockets: list[Socket], target: TargetFacts) -> Iterator[Finding]:
    wanted = sorted({one.options.congestion for one in sockets if one.options.congestion})
    for name in wanted if target.congestion else ():
        if name not in target.congestion:
            number = sum(one.options.congestion == name for one in sockets)
            yield warn(
                "socket-congestion",
                name,
                f"{counted(number, 'socket')} used it; the congestion controls here are {listed(target.congestion)}",
                f"modprobe tcp_{name}",
                needed=name,
                there=" ".join(target.congestion),
            )


def _devices(checkpoint: Checkpoint, target: TargetFacts) -> Iterator[Finding]:
    links = checkpoint.network.links if checkpoint.network is not None else target.links
    nested = {one.inode: one.network.links for one in checkpoint.nested}
    for one in checkpoint.sockets:
        if one.device and one.device not in {link.ifname for link in nested.get(one.netns, links)}:
            yield block(
                "socket-device-missing",
                _subject(one),
                f"it is bound to the link {one.device}, and that is not there",
                f"make a link called {one.device}, or name another: --map-link {one.device}=LINK",
                needed=one.device,
            )


def _absent(sockets: list[Socket], target: TargetFacts) -> Iterator[Finding]:
    indices: dict[Ip, set[int]] = {}
    for held in target.addresses:
        link = target.link(held.ifname)
        indices.setdefault(_ip(host_part(held.address)), set()).add(link.ifindex if link else 0)
    bindable = frozenset(target.bindable)
    seen: set[tuple[str, int]] = set()
    for one in sockets:
        if one.local is None or (one.local.address, one.local.scope) in seen:
            continue
        address, scope = _ip(one.local.address), one.local.scope
        seen.add((one.local.address, scope))
        if (
            replace(one.local, port=0) in bindable
            or address.is_unspecified
            or address.is_loopback
            or address.is_multicast
            or _is_broadcast(address, target)
        ):
            continue
        if address not in indices:
            yield from _address_missing(one, address, target)
        elif address.is_link_local and scope and scope not in indices[address]:
            yield block(
                "address-missing",
                f"{address}",
                f"{_subject(one)} has it on the link with index {scope}, and here it is on another",
                "restore on a host where the links have the same indices",
            )


def _address_missing(one: Socket, address: Ip, target: TargetFacts) -> Iterator[Finding]:
    if target.nonlocal_bind and address.version == 4 and one.remote is None:
        yield warn(
            "address-missing",
            str(address),
            f"{_subject(one)} is bound to it, and this host does not have it; net.ipv4.ip_nonlocal_bind lets it",
            "add the address to a link of this host, or nobody reaches the group",
        )
        return
    silent = "; it would be restored without a word, and never be reached" if address.version == 6 else ""
    yield block(
        "address-missing",
        str(address),
        f"{_subject(one)} is bound to it, and this host does not have it{silent}",
        f"ip address add {address}/PREFIX dev LINK, or name another of this host: --map-address {address}=NEW",
        needed=address,
    )


def _is_broadcast(address: Ip, target: TargetFacts) -> bool:
    """Whether it is the last or first of a prefix on a link: the kernel routes both as broadcasts, named or not."""
    networks = (ipaddress.ip_interface(held.address).network for held in target.addresses if ":" not in held.address)
    wide = (network for network in networks if network.prefixlen < 31)
    return any(address in (network.network_address, network.broadcast_address) for network in wide)


def _busy(sockets: list[Socket], target: TargetFacts) -> Iterator[Finding]:
    """Sockets of the target that are in the way of one of ours."""
    connections = {_ends(busy.protocol, busy.local, busy.remote): busy for busy in target.sockets if busy.remote}
    others: dict[tuple[int, int], list[BusySocket]] = {}
    for busy in target.sockets:
        if busy.remote is None and (busy.protocol != IPPROTO_TCP or busy.state == "listen"):
            # While it restores, CRIU sets SO_REUSEADDR: of TCP only a listener is in the way.
            others.setdefault((busy.protocol, busy.local.port), []).append(busy)
    for one in sockets:
        if one.local is None or not one.local.port:
            continue
        if one.remote is not None:
            rival = connections.get(_ends(one.protocol, one.local, one.remote))
        else:
            near = others.get((one.protocol, one.local.port), ())
            rival = next((busy for busy in near if _overlap(one, busy)), None)
        if rival is None:
            continue
        if one.remote is not None:
            yield block(
                "connection-taken",
                _subject(one),
                f"this host has a connection {rival.local} – {rival.remote} already ({rival.state})",
                "end that connection, or close the group's own with --tcp-close",
            )
        elif one.options.reuse_port or _unsure(one, rival):
            yield warn(
                "port-in-use",
                _subject(one),
                f"this host has a socket on {rival.local}, which may or may not share the port",
                "stop the server that uses it; `ss -lnp` names it",
                needed=one.local,
                there=rival.local,
            )
        else:
            yield block(
                "port-in-use",
                _subject(one),
                f"this host has a socket on {rival.local}",
                f"stop the server that uses it (`ss -lnp` names it), or take another: --map-port {one.local.port}=NEW",
                needed=one.local,
                there=rival.local,
            )


def _paths(sockets: list[Socket], target: TargetFacts) -> Iterator[Finding]:
    """Connections to peers that this host has no route to, or one for smaller packets than their segments make."""
    known = {(one.local, one.remote): one.mtu for one in target.paths}
    for one in sockets:
        if not one.holds_connection or one.local is None or one.remote is None or one.remote.scope:
            continue
        local, remote = plain(one.local.address), plain(one.remote.address)
        mtu, headers = known.get((local, remote)), _HEADERS[6 if ":" in remote else 4]
        if mtu is None:
            yield block(
                "route-missing",
                _subject(one),
                f"it is connected to {remote}, and this host has no route there",
                f"ip route add {remote} via GATEWAY, or close the group's connections with --tcp-close",
                needed=remote,
            )
        elif (one.options.mss or 0) + headers > mtu:
            yield warn(
                "route-mtu",
                _subject(one),
                f"its segments make packets of {(one.options.mss or 0) + headers} bytes, and here only {mtu} pass",
                "raise the MTU of the link to the peer, or let the kernel find the size: net.ipv4.tcp_mtu_probing=1",
                needed=(one.options.mss or 0) + headers,
                there=mtu,
            )


def _ephemeral(sockets: list[Socket], target: TargetFacts) -> Iterator[Finding]:
    """Listeners on ports that the kernel here gives out: free now, but perhaps not the next time."""
    if len(target.ephemeral_ports) != 2:
        return
    first, last = target.ephemeral_ports
    ports = {one.local.port for one in sockets if one.state == "listen" and one.local}
    found = sorted(port for port in ports if first <= port <= last)
    if found:
        yield ok(
            "port-ephemeral",
            f"port {listed(found)}",
            f"this host gives out the ports from {first} to {last}: a client may have it when the group comes again",
            needed=" ".join(map(str, found)),
            there=f"{first}-{last}",
        )


def _ends(protocol: int, local: Endpoint | None, remote: Endpoint | None) -> tuple[object, ...]:
    """What the kernel knows a connection by."""
    return (protocol, *((_of(end), end.port if end else 0) for end in (local, remote)))


def _overlap(one: Socket, busy: BusySocket) -> bool:
    ours, theirs = _of(one.local), _of(busy.local)
    if ours.version != theirs.version:
        # only a wildcard of IPv6 can cover IPv4 addresses, and then all of them
        six = ours if ours.version == 6 else theirs
        return six.is_unspecified and not (ours.version == 6 and one.options.v6only)
    return ours == theirs or ours.is_unspecified or theirs.is_unspecified


def _unsure(one: Socket, busy: BusySocket) -> bool:
    """Whether it depends on what cannot be seen: if a wildcard of IPv6 takes IPv4 too."""
    return _of(one.local).version == 4 and _of(busy.local).version == 6


def _of(endpoint: Endpoint | None) -> Ip:
    return _ip(endpoint.address if endpoint else "::")


def _ip(address: str) -> Ip:
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _subject(one: Socket) -> str:
    protocol = {IPPROTO_TCP: "TCP", IPPROTO_UDP: "UDP"}.get(one.protocol, one.type)
    where = str(one.local) if one.local else one.path or f"socket {one.inode}"
    owner = f" (PID {one.owners[0].pid}, fd {one.owners[0].fd})" if one.owners else ""
    return f"{protocol} {where}{owner}"
