"""What an image needs of a host: derived from its records, and nothing looked up.

Paths are where the target has them. Where the group has mounts of its own, a path below a bind mount is looked for at
the mount's source, and what lies on a /proc or /sys of the group's own is not looked for at all: it comes into being
with the group. So it is with everything on /proc and /sys that the host shows: it names processes and links that are
not there before the restore.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence

from ckpt.model.carried import CarriedFile
from ckpt.model.checkpoint import Checkpoint, CriuNotes, Mount
from ckpt.model.fallback import travels
from ckpt.model.host import FileNeed, FileRole, Needs, PeerPath, Probe
from ckpt.model.network import PAIRED, Address, Link, Network, Place
from ckpt.model.process import FileKind, Isolation, MappedFile, OpenFile, Process
from ckpt.model.socket import Endpoint, Socket

_PATHS = frozenset({FileKind.REGULAR, FileKind.DIRECTORY, FileKind.FIFO, FileKind.CHARACTER, FileKind.BLOCK})
_MADE_BY_THE_KERNEL = ("/proc", "/sys", "/dev/pts")
_FORMAT = 0o170000
"""The bits of a mode that tell what it is of; ``stat.S_IFMT`` refuses numbers that an image may hold."""
_DELETED = " (deleted)"
NETNS_NAMES = "/run/netns"
_LOOPBACK_KINDS = ("loopback", "")

Networks = Mapping[str, Network]
"""The namespaces of a group by their keys."""


def needs_of(checkpoint: Checkpoint) -> Needs:
    """All that has to be looked up on a target before the group is restored there."""
    group, processes, sockets = checkpoint.group, checkpoint.processes, checkpoint.sockets
    names = [*group.netns_names, *(name for one in checkpoint.nested for name in one.netns_names)]
    in_hosts_netns = group.isolation is Isolation.NONE
    return Needs(
        files=(
            *_file_needs(processes, sockets, checkpoint.criu),
            *map(_carried, checkpoint.carried),
            *map(_netns_name, names),
        ),
        probes=tuple(_probes(checkpoint.networks)),
        pids=() if group.pid_namespace else ids_of(processes),
        kinds=_kinds(checkpoint.networks, bridge_made=group.bridge_made),
        tools=("nft",),
        ports=_ports(sockets) if in_hosts_netns else (),
        binds=_binds(sockets) if in_hosts_netns else (),
        paths=_paths(sockets) if in_hosts_netns else (),
        gateways=tuple(_gateways(checkpoint.networks)),
        users=tuple(sorted({one for process in processes for one in process.uids[:1]})),
        cgroups=_controllers(processes),
    )


def ids_of(processes: Sequence[Process]) -> tuple[int, ...]:
    """The ids that the processes and threads know themselves by, in ascending order."""
    found = {process.ns_pid for process in processes}
    found |= {thread.ns_ids[-1] if thread.ns_ids else thread.tid for one in processes for thread in one.threads}
    return tuple(sorted(found))


def segments(networks: Networks, key: str, ifname: str) -> tuple[str, ...]:
    """The links of the host on whose Ethernet segment frames of the link ``ifname`` of ``key`` appear untagged."""
    found: dict[str, None] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(key, ifname)]
    while waiting:
        key, ifname = waiting.pop()
        link = _link(networks, key, ifname)
        if link is None or (key, ifname) in seen or link.kind == "vlan":
            continue
        seen.add((key, ifname))
        other = link.counterpart
        if other is not None and other.place is Place.CALLER:
            # a veth's other end is a port of its master; the others hang on the very link
            attached = other.master if link.kind in PAIRED else other.ifname
            found |= {attached: None} if attached else {}
        elif other is not None:
            there = key if other.place is Place.INSIDE else other.netns
            end = _link(networks, there, other.ifname)
            if link.kind not in PAIRED:
                waiting.append((there, other.ifname))
            elif end is not None and end.master:
                waiting.append((there, end.master))
        waiting += [(key, port.ifname) for port in networks[key].links if port.master == ifname]
    return tuple(found)


def _link(networks: Networks, key: str, ifname: str) -> Link | None:
    return networks[key].link(ifname) if key in networks else None


def is_own_address(address: Address) -> bool:
    """Whether nobody else on the segment may have it: neither loopback nor link-local."""
    return address.scope in ("global", "site") and not address.address.startswith("127.")


def host_part(address: str) -> str:
    """``10.0.0.2`` of ``10.0.0.2/24``."""
    return address.partition("/")[0]


def all_segments(networks: Networks, key: str) -> dict[str, tuple[str, ...]]:
    """``segments`` of each link of the namespace ``key`` that has an address, by its name."""
    return {ifname: segments(networks, key, ifname) for ifname in {one.ifname for one in networks[key].addresses}}


def _probes(networks: Networks) -> Iterator[Probe]:
    for key, network in networks.items():
        attached = all_segments(networks, key)
        for address in network.addresses:
            if is_own_address(address):
                for ifname in attached[address.ifname]:
                    yield Probe(address=host_part(address.address), ifname=ifname)


def _kinds(networks: Networks, *, bridge_made: bool) -> tuple[str, ...]:
    links = [link for network in networks.values() for link in network.links if travels(link, network)]
    kinds = {link.kind for link in links if link.kind not in _LOOPBACK_KINDS}
    return tuple(sorted(kinds | ({"bridge"} if bridge_made else set())))


def _ports(sockets: Sequence[Socket]) -> tuple[int, ...]:
    return tuple(sorted({one.local.port for one in sockets if one.is_inet and one.local and one.local.port}))


def _binds(sockets: Sequence[Socket]) -> tuple[Endpoint, ...]:
    found = {dataclasses.replace(one.local, port=0): None for one in sockets if one.is_inet and one.local}
    return tuple(endpoint for endpoint in found if endpoint.address not in ("0.0.0.0", "::"))


def _paths(sockets: Sequence[Socket]) -> tuple[PeerPath, ...]:
    """From where to where there are connections; link-local ones have their link's index for a path."""
    ends = [(one.local, one.remote) for one in sockets if one.holds_connection and one.local and one.remote]
    found = (
        PeerPath(local=plain(local.address), remote=plain(remote.address)) for local, remote in ends if not remote.scope
    )
    return tuple(dict.fromkeys(found))


def plain(address: str) -> str:
    """An IPv4 address inside an IPv6 one, as the socket's peers know it."""
    inner = address.lower().removeprefix("::ffff:")
    return inner if "." in inner else address


def _gateways(networks: Networks) -> Iterator[Probe]:
    for key, network in networks.items():
        attached = {link.ifname: segments(networks, key, link.ifname) for link in network.links}
        for route in network.routes:
            for ifname, gateway in (
                (route.ifname, route.gateway),
                *((hop.ifname, hop.gateway) for hop in route.nexthops),
            ):
                if gateway and not gateway.lower().startswith("fe80:"):
                    yield from (Probe(address=gateway, ifname=one) for one in attached.get(ifname, ()))


def _controllers(processes: Sequence[Process]) -> tuple[str, ...]:
    """The controllers of cgroup v1 in whose hierarchies a process is below the root."""
    found: set[str] = set()
    for line in (line for process in processes for line in process.cgroups):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and path not in ("", "/"):
            found.update(controllers.split(","))
    return tuple(sorted(found))


def _netns_name(name: str) -> FileNeed:
    return FileNeed(
        path=f"{NETNS_NAMES}/{name}", role=FileRole.NETNS, kind=FileKind.REGULAR, user="the network namespace"
    )


def _carried(file: CarriedFile) -> FileNeed:
    return FileNeed(
        path=file.path,
        role=FileRole.CARRIED,
        kind=file.kind,
        user="the image",
        size=file.size,
        mode=file.mode,
        digest=file.digest or None,
        append=file.append,
        inode=file.inode,
        device=file.device,
    )


def _file_needs(processes: Sequence[Process], sockets: Sequence[Socket], notes: CriuNotes) -> Iterator[FileNeed]:
    """One need for each path and role, with the path as the target has it."""
    merged: dict[tuple[str, FileRole, FileKind], FileNeed] = {}
    appended = _appended(processes)
    for need in _all_files(processes, sockets, {file.path for file in notes.files}):
        path = on_target(need.path, notes.mounts)
        if path is not None:
            need = dataclasses.replace(need, append=need.path in appended, path=path)
            merged.setdefault((path, need.role, need.kind), need)
    programs = {path for path, role, _ in merged if role is FileRole.EXECUTABLE}
    for (path, role, _), need in merged.items():
        if role is not FileRole.MAPPED or path not in programs:
            yield need


def _all_files(
    processes: Sequence[Process], sockets: Sequence[Socket], inherited: Collection[str]
) -> Iterator[FileNeed]:
    for process in processes:
        if not process.zombie:
            yield from _surroundings(process)
            yield from (_mapped(file, process) for file in process.maps if is_named(file))
            for file in process.files:
                if file.kind in _PATHS or (file.kind is FileKind.TTY and not file.deleted):
                    yield from _open(file, process, inherited=file.path in inherited)
    for one in sockets:
        if one.family == "unix" and (one.path or "").startswith("/"):
            yield from _unix(one, one.path or "")


def _surroundings(process: Process) -> Iterator[FileNeed]:
    user = f"PID {process.pid}"
    exe = process.exe
    if exe is not None and not exe.deleted:
        yield FileNeed(
            path=exe.path,
            role=FileRole.EXECUTABLE,
            kind=FileKind.REGULAR,
            user=user,
            size=exe.size,
            mode=exe.mode,
            build_id=exe.build_id,
            digest=exe.digest,
        )
    for path, role in ((process.cwd, FileRole.WORKDIR), (process.root, FileRole.ROOT)):
        if path not in ("", "/") and not path.endswith(_DELETED):
            yield FileNeed(path=path, role=role, kind=FileKind.DIRECTORY, user=user)


def is_named(file: MappedFile) -> bool:
    """Whether it is a regular file that has a name: not shared memory, not a device, not deleted."""
    return (
        not file.deleted
        and (file.mode is None or file.mode & _FORMAT == stat.S_IFREG)
        and not file.path.startswith("/memfd:")
    )


def _mapped(file: MappedFile, process: Process) -> FileNeed:
    return FileNeed(
        path=file.path,
        role=FileRole.MAPPED,
        kind=FileKind.REGULAR,
        user=f"PID {process.pid}",
        size=file.size,
        mode=file.mode,
        build_id=file.build_id,
        digest=file.digest,
    )


def _appended(processes: Sequence[Process]) -> frozenset[str]:
    """The files that the group has open only for appending, some perhaps for reading too, and does not map.

    Of others CRIU compares the size (criu/files-reg.c, should_check_size); of these it does not, or is told not to
    (`kernel.criu_images.accept_growth`).
    """
    appends: set[str] = set()
    uses_otherwise = {file.path for one in processes for file in one.maps}
    for file in (file for one in processes for file in one.files if file.kind is FileKind.REGULAR):
        only_appends = file.flags & os.O_APPEND and file.flags & os.O_ACCMODE != os.O_RDONLY
        (appends if only_appends else uses_otherwise).add(file.path)
    return frozenset(appends - uses_otherwise)


def _open(file: OpenFile, process: Process, *, inherited: bool) -> Iterator[FileNeed]:
    user = f"PID {process.pid}, fd {file.fd}"
    if file.deleted:
        return  # CRIU carries it, and makes the directories it was in
    if inherited:
        # opened anew by ckpt, and not compared by CRIU
        yield FileNeed(path=file.path, role=FileRole.INHERITED, kind=file.kind, user=user, special=file.special)
        return
    yield FileNeed(
        path=file.path,
        role=FileRole.OPEN,
        kind=file.kind,
        user=user,
        size=file.size if file.kind is FileKind.REGULAR else None,
        # a terminal's changes with who uses it
        mode=None if file.kind is FileKind.TTY else file.mode,
        special=file.special,
    )


def _unix(one: Socket, path: str) -> Iterator[FileNeed]:
    user = f"PID {one.owners[0].pid}, fd {one.owners[0].fd}" if one.owners else f"socket {one.inode}"
    yield FileNeed(path=posixpath.dirname(path), role=FileRole.SOCKET, kind=FileKind.DIRECTORY, user=user)
    yield FileNeed(path=path, role=FileRole.SOCKET, kind=FileKind.SOCKET, user=user)


def on_target(path: str, mounts: Sequence[Mount] | None) -> str | None:
    """Where the host has what the group knows as ``path``; None when it is nowhere before the restore."""
    if not path.startswith("/"):
        return None
    # The last of the mounts that cover it, as the kernel resolves it.
    covering = next((mount for mount in reversed(mounts or ()) if is_below(path, mount.target)), None)
    if covering is not None:
        if covering.kind != "bind":
            return None
        path = posixpath.normpath(posixpath.join(covering.source, posixpath.relpath(path, covering.target)))
    return None if any(is_below(path, place) for place in _MADE_BY_THE_KERNEL) else path


def is_below(path: str, directory: str) -> bool:
    """Whether ``path`` is ``directory`` or lies in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
