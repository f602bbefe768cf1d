"""``ckpt inspect``: what an image holds, for a reader as tables and for a program as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt.cli import render
from ckpt.cli.options import common, settings
from ckpt.model.network import LOCAL_TABLE
from ckpt.model.process import FileKind
from ckpt.records import dataclass

if TYPE_CHECKING:
    from ckpt.image import FileInfo, Header
    from ckpt.model.carried import CarriedFile
    from ckpt.model.checkpoint import Checkpoint, ContextRecord, Group
    from ckpt.model.network import Link, Network, Route
    from ckpt.model.process import Process
    from ckpt.model.socket import Socket

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 262: "mptcp"}

# Many small files of CRIU's say nothing to a reader; the largest tell where the size comes from.
_FILES_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """An image as it is shown. ``size`` is the image's, ``raw`` that of CRIU's files before compression."""

    path: Path
    size: int
    raw: int
    header: Header
    checkpoint: Checkpoint
    files: tuple[FileInfo, ...]


@click.command(name="inspect")
@click.argument("image", type=click.Path(path_type=Path))
@common
def command(image: Path) -> None:
    """Show what IMAGE holds: the group, its processes, sockets, links, addresses and routes, and sizes.

    Only the index and the records are read; `ckpt verify` reads all of it. With -v nothing is shortened.
    """
    content = read(image)
    if settings().json:
        render.emit(content)
        return
    _summary(content)
    _processes(content.checkpoint.processes)
    _sockets(content.checkpoint.sockets)
    if content.checkpoint.network is not None:
        _network(content.checkpoint.network)
    for nested in content.checkpoint.nested:
        names = ", ".join((nested.key, *nested.netns_names))
        click.echo(f"nested network namespace {render.printable(names)}")
        click.echo()
        _network(nested.network)
    _carried(content.checkpoint.carried)
    _files(content.files)


def read(image: Path) -> Content:
    """What the image says of itself."""
    from ckpt import sections
    from ckpt.image import Reader

    with Reader(image, known=sections.KNOWN) as reader:
        found = sections.read(reader)
        files = tuple(reader.files.values())
        raw = sum(file.length for file in files)
        return Content(path=image, size=reader.size, raw=raw, header=reader.header, checkpoint=found, files=files)


def _summary(content: Content) -> None:
    group, source, header = content.checkpoint.group, content.checkpoint.source, content.header
    criu = ".".join(map(str, source.criu))
    lines = {
        "group": f"{group.name}: {render.command_line(group.command, settings())}",
        "isolation": _isolation(group),
        "source": f"{source.hostname}, Linux {source.kernel}, {source.machine}, CRIU {criu}",
        "dumped": f"{render.moment(header.created)}, by ckpt {header.ckpt}",
        "image": f"{render.size(content.size)}, {render.size(content.raw)} before compression, id {header.id}",
        "connections": str(group.connections),
    }
    if content.checkpoint.context is not None:
        lines["set"] = _set(content.checkpoint.context)
    width = max(map(len, lines))
    for key, value in lines.items():
        click.echo(f"{key:<{width}}  {render.printable(value)}")
    click.echo()


def _set(context: ContextRecord) -> str:
    """The addresses in their order, and where the source had them."""
    places = {one.address.partition("/")[0]: one for one in context.places}
    members = []
    for one in context.members:
        place = places.get(one.address)
        given = " by ckpt" if place is not None and place.given else ""
        members.append(f"{one} on {place.ifname}{given}" if place is not None else str(one))
    return ", ".join(members) + (f"; {context.tasks} tasks at most" if context.tasks is not None else "")


def _isolation(group: Group) -> str:
    own = [group.isolation.value] + (["pid namespace"] if group.pid_namespace else [])
    return ", ".join(own)


def _processes(processes: Sequence[Process]) -> None:
    names = {process.pid: process.ns_pid for process in processes}
    rows = [
        (
            process.ns_pid,
            names.get(process.ppid, 0),
            process.name,
            len(process.threads),
            len(process.files),
            render.size(process.memory.private),
            render.command_line(process.cmdline, settings()),
        )
        for process in processes
    ]
    render.table((">PID", ">PPID", "NAME", ">THREADS", ">FILES", ">MEMORY", "COMMAND"), rows, title="processes")


def _sockets(sockets: Sequence[Socket]) -> None:
    rows = [
        (
            _protocol(socket),
            socket.state,
            socket.local or socket.path or "",
            socket.remote or "",
            socket.receive_queue,
            socket.send_queue,
            " ".join(f"{owner.ns_pid}/{owner.fd}" for owner in socket.owners),
        )
        for socket in sockets
    ]
    if rows:
        columns = ("PROTOCOL", "STATE", "LOCAL", "REMOTE", ">RECV-Q", ">SEND-Q", "PID/FD")
        render.table(columns, rows, title="sockets")


def _protocol(socket: Socket) -> str:
    if not socket.is_inet:
        return f"{socket.family} {socket.type}"
    name = _PROTOCOLS.get(socket.protocol, str(socket.protocol))
    return f"{name}6" if socket.family == "inet6" else name


def _network(network: Network) -> None:
    links = [(_link(link), link.kind, link.mac or "", link.mtu, " ".join(link.flags)) for link in network.links]
    render.table(("LINK", "KIND", "MAC", ">MTU", "FLAGS"), links, title="links")
    addresses = [(item.ifname, item.address, item.scope, " ".join(item.flags)) for item in network.addresses]
    if addresses:
        render.table(("LINK", "ADDRESS", "SCOPE", "FLAGS"), addresses, title="addresses")
    # The kernel makes the table of local routes from the addresses.
    shown = [route for route in network.routes if route.table != LOCAL_TABLE or settings().verbose]
    routes = [(_destination(route), _hops(route), route.table, route.priority or "") for route in shown]
    if routes:
        render.table(("ROUTE", "BY", ">TABLE", ">METRIC"), routes, title="routes")
    others: Mapping[str, int] = {
        "local routes": len(network.routes) - len(shown),
        "rules": len(network.rules),
        "neighbours": len(network.neighbours),
        "sysctls": len(network.sysctls),
        "nftables": len(network.nftables),
        "iptables tables": len(network.filtering.legacy_tables),
        "ipset sets": len(network.filtering.ip_sets),
        "IPVS services and servers": len(network.filtering.virtual_services),
        "conntrack entries": len(network.conntrack),
        "conntrack expectations": len(network.expectations),
        "IPsec states": len(network.ipsec.states),
        "IPsec policies": len(network.ipsec.policies),
        "WireGuard peers": sum(len(device.peers) for device in network.wireguard),
    }
    click.echo("also: " + ", ".join(f"{count} {what}" for what, count in others.items() if count))
    click.echo()


def _link(link: Link) -> str:
    other = link.counterpart
    if other is None:
        return link.ifname
    return f"{link.ifname}@{other.ifname or other.ifindex}" + (f" in {other.netns}" if other.netns else "")


def _destination(route: Route) -> str:
    shown = "default" if route.destination in ("0.0.0.0/0", "::/0") else route.destination
    return shown if route.type == "unicast" else f"{route.type} {shown}"


def _hops(route: Route) -> str:
    hops = [(route.gateway, route.ifname), *((hop.gateway, hop.ifname) for hop in route.nexthops)]
    words = [
        " ".join(filter(None, (gateway and f"via {gateway}", ifname and f"dev {ifname}"))) for gateway, ifname in hops
    ]
    return ", ".join(filter(None, words))


def _carried(files: Sequence[CarriedFile]) -> None:
    """What travels of the host's files; the directories around them are only counted."""
    shown = [one for one in files if one.kind is not FileKind.DIRECTORY or settings().verbose]
    rows = [
        (
            one.path + (f" → {one.target}" if one.target else ""),
            one.kind,
            f"{one.mode & 0o7777:04o}",
            f"{one.uid}:{one.gid}",
            render.size(one.size) + ("" if one.member or not one.size else ", left out"),
        )
        for one in shown
    ]
    if rows:
        render.table(("PATH", "KIND", ">MODE", "OWNER", ">SIZE"), rows, title="files that travel along")
    if len(shown) < len(files):
        click.echo(f"also: {len(files) - len(shown)} directories")
        click.echo()


def _files(files: Sequence[FileInfo]) -> None:
    count = len(files) if settings().verbose else _FILES_SHOWN
    largest = sorted(files, key=lambda file: file.length, reverse=True)
    rows = [(file.name, render.size(file.length), render.size(file.stored)) for file in largest[:count]]
    rest = largest[count:]
    if rest:
        length, stored = sum(file.length for file in rest), sum(file.stored for file in rest)
        rows.append((f"{len(rest)} more", render.size(length), render.size(stored)))
    render.table(("FILE", ">SIZE", ">STORED"), rows, title="CRIU images")
