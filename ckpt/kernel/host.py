"""The host itself: which one it is, and whether it has what an image needs.

``read_host`` gives the facts that travel in an image as its source. ``read_target`` looks up every one of the needs,
and only those, and says what it found; it judges nothing (``revalidate`` does). Nothing of the host is changed: kinds
of link are tried in a namespace that is thrown away, and the only packets that leave are the address probes, which
claim no address. They run side by side, so that many cost hardly more time than one.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ckpt import __version__
from ckpt.errors import CkptError
from ckpt.kernel import arp, diag, digests, elf, fallbacks, hostpaths, netns, outside, probe, rtnl_kinds, rtnl_links
from ckpt.kernel.files import TTY_MAJORS, device_name
from ckpt.kernel.netlink import Netlink, ip_bytes
from ckpt.kernel.procfs import read_text
from ckpt.model.host import (
    Answer,
    BusySocket,
    FileFacts,
    FileNeed,
    FileRole,
    HostFacts,
    KnownGroup,
    LinkFacts,
    Needs,
    Probe,
    TargetFacts,
)
from ckpt.model.process import FileKind
from ckpt.model.socket import IPPROTO_TCP, IPPROTO_UDP, Endpoint

PROBE_SECONDS = 0.25
"""How long an answer to an address probe is waited for. On a segment of the same site it takes some milliseconds."""

_PROBES_AT_ONCE = 256
_BUILD_ID_ROLES = (FileRole.EXECUTABLE, FileRole.MAPPED)

_IFF_UP = 0x1
_IFLA_MTU, _IFLA_MASTER = 4, 10

_TUN_KIND, _TUN_DEVICE = "tun", "/dev/net/tun"

_KINDS = {
    stat.S_IFREG: FileKind.REGULAR,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFSOCK: FileKind.SOCKET,
    stat.S_IFCHR: FileKind.CHARACTER,
    stat.S_IFBLK: FileKind.BLOCK,
}

# include/uapi/linux/net.h, __SO_ACCEPTCON; include/linux/net.h, SOCK_DGRAM; both as /proc/net/unix shows them.
_UNIX_LISTENS = 1 << 16
_UNIX_DGRAM = 2


def read_host(criu_version: Sequence[int]) -> HostFacts:
    """Which host this is; ``criu_version`` is of the CRIU that works here."""
    names = os.uname()
    return HostFacts(
        hostname=names.nodename,
        machine=names.machine,
        kernel=names.release,
        boot_id=read_text("/proc/sys/kernel/random/boot_id").strip(),
        criu=tuple(criu_version),
        ckpt=__version__,
        cpu_flags=cpu_flags(read_text("/proc/cpuinfo")),
    )


def read_target(
    needs: Needs,
    criu_version: Sequence[int],
    *,
    groups: Sequence[KnownGroup] = (),
    probe_seconds: float = PROBE_SECONDS,
    scratch: Sequence[Path] = (),
) -> TargetFacts:
    """What this host has of ``needs``; links, addresses and probes are those of the caller's network namespace.

    ``groups`` are those of the host's registry, which is not the kernel's to read. ``scratch`` are the directories that
    an image may be unpacked in.
    """
    links = read_links()
    memory = _memory()
    answers = ask((*needs.probes, *needs.gateways), links, probe_seconds)
    # Which loads the drivers of tunnels that are needed: then they make links of their own, if they do.
    kinds_missing = _kinds_missing(needs.kinds)
    return TargetFacts(
        host=read_host(criu_version),
        files=read_files(needs.files),
        links=links,
        addresses=outside.addresses(),
        answers=tuple(one for one in answers if Probe(address=one.address, ifname=one.ifname) in needs.probes),
        gateways=tuple(one for one in answers if Probe(address=one.address, ifname=one.ifname) in needs.gateways),
        groups=tuple(groups),
        sockets=tuple(_busy_sockets(frozenset(needs.ports))),
        bindable=tuple(endpoint for endpoint in needs.binds if _is_bindable(endpoint)),
        # /proc shows threads under their own ids too, though it does not list them
        pids_taken=tuple(pid for pid in needs.pids if os.path.exists(f"/proc/{pid}")),
        kinds_missing=kinds_missing,
        tools_missing=tuple(tool for tool in needs.tools if shutil.which(tool) is None),
        congestion=tuple(read_text("/proc/sys/net/ipv4/tcp_available_congestion_control").split()),
        nonlocal_bind=_binds_anything(4),
        pid_max=int(read_text("/proc/sys/kernel/pid_max") or "0"),
        memory_available=memory.get("MemAvailable", 0),
        swap_free=memory.get("SwapFree", 0),
        paths=tuple(path for path in map(hostpaths.look_up, needs.paths) if path is not None),
        users_missing=hostpaths.missing_users(needs.users),
        cgroups_missing=hostpaths.missing_controllers(needs.cgroups),
        capabilities_missing=probe.missing_capabilities(),
        checkpoint_restore=probe.has_checkpoint_restore(),
        ephemeral_ports=tuple(map(int, read_text("/proc/sys/net/ipv4/ip_local_port_range").split())),
        disk_free=hostpaths.disk_free(scratch),
        clock=time.time(),
        fallbacks=fallbacks.read() if needs.kinds else (),
        fallbacks_avoidable=fallbacks.avoidable(),
    )


def cpu_flags(cpuinfo: str) -> tuple[str, ...]:
    """The features that every CPU of ``/proc/cpuinfo`` has, sorted."""
    lines = [
        frozenset(value.split())
        for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())
        if key.strip() in ("flags", "Features")
    ]
    return tuple(sorted(frozenset.intersection(*lines))) if lines else ()


def read_links() -> tuple[LinkFacts, ...]:
    """The links of the caller's network namespace."""
    with Netlink() as connection:
        raw = rtnl_links.read_raw(connection)
    return tuple(
        LinkFacts(
            ifname=link.ifname,
            ifindex=link.index,
            kind=link.kind,
            mac=link.mac,
            mtu=link.integer(_IFLA_MTU),
            up=bool(link.flags & _IFF_UP),
            master=raw[link.integer(_IFLA_MASTER)].ifname if link.integer(_IFLA_MASTER) in raw else "",
        )
        for link in raw.values()
    )


def _kinds_missing(kinds: Sequence[str]) -> tuple[str, ...]:
    strange = tuple(kind for kind in kinds if kind not in rtnl_kinds.OPTIONS)
    # drivers/net/tun.c, tun_validate: never made by netlink, so its refusal there says nothing
    by_device = tuple(kind for kind in kinds if kind == _TUN_KIND and not os.path.exists(_TUN_DEVICE))
    known = tuple(kind for kind in kinds if kind not in strange and kind != _TUN_KIND)
    return strange + by_device + (probe.missing_link_kinds(known) if known else ())


def ask(probes: Sequence[Probe], links: Sequence[LinkFacts], seconds: float) -> tuple[Answer, ...]:
    """Who answers to ``probes``; those on a link that is not there, or is down, are left out."""
    up = {link.ifname for link in links if link.up}
    wanted = [item for item in dict.fromkeys(probes) if item.ifname in up]
    if not wanted:
        return ()

    def one(item: Probe) -> tuple[str, ...]:
        try:
            return arp.probe_all(None, item.ifname, item.address, seconds)
        except (CkptError, OSError, ValueError):
            return ()  # the link has just gone: that it is missing is said by others

    with ThreadPoolExecutor(min(len(wanted), _PROBES_AT_ONCE), "ckpt-probe") as pool:
        heard = tuple(pool.map(one, wanted))
    return tuple(
        Answer(address=item.address, ifname=item.ifname, mac=mac)
        for item, macs in zip(wanted, heard, strict=True)
        for mac in macs
    )


def read_files(needs: Sequence[FileNeed]) -> dict[str, FileFacts]:
    """What is at each path of ``needs``; one that is not there is not in it."""
    return dict(_read_files(needs))


def _read_files(needs: Sequence[FileNeed]) -> Iterator[tuple[str, FileFacts]]:
    sizes = {need.path: need.size or 0 for need in needs if need.digest is not None}
    builds = {need.path for need in needs if need.role in _BUILD_ID_ROLES}
    names = {need.path for need in needs if need.role is FileRole.SOCKET}
    bound = _bound_names() if names else frozenset()
    for path in dict.fromkeys(need.path for need in needs):
        found = _read_file(path, build=path in builds, bound=path in bound)
        if found is not None and found.kind is FileKind.REGULAR and sizes.get(path, found.size + 1) <= found.size:
            found = dataclasses.replace(found, digest=digests.digest(path, sizes[path]))
        if found is not None:
            yield path, found


def _read_file(path: str, *, build: bool, bound: bool) -> FileFacts | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    node = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), FileKind.OTHER)
    if kind is FileKind.CHARACTER and os.major(status.st_rdev) in TTY_MAJORS:
        kind = FileKind.TTY
    return FileFacts(
        kind=kind,
        size=status.st_size,
        mode=status.st_mode,
        special=device_name(status.st_rdev) if node else None,
        inode=status.st_ino,
        device=device_name(status.st_dev),
        build_id=elf.build_id(path) if build and kind is FileKind.REGULAR else None,
        bound=bound and kind is FileKind.SOCKET,
    )


def _bound_names() -> frozenset[str]:
    """The paths at which a unix socket listens or takes datagrams, in whichever network namespace it was made."""
    found: set[str] = set()
    for pid in _one_pid_per_netns():
        for line in read_text(f"/proc/{pid}/net/unix").splitlines()[1:]:
            # Num RefCount Protocol Flags Type St Inode Path
            words = line.split(maxsplit=7)
            if len(words) == 8 and (int(words[3], 16) & _UNIX_LISTENS or int(words[4], 16) == _UNIX_DGRAM):
                found.add(words[7])
    return frozenset(found)


def _one_pid_per_netns() -> tuple[int, ...]:
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.setdefault(os.stat(f"/proc/{name}/ns/net").st_ino, int(name))
            except OSError:
                continue
    return tuple(found.values())


def _busy_sockets(ports: frozenset[int]) -> Iterator[BusySocket]:
    """TCP and UDP sockets of the caller's namespace with one of these local ports."""
    if not ports:
        return
    namespace = netns.open_own()
    try:
        entries = diag.tcp_sockets(namespace)
    finally:
        os.close(namespace)
    for entry in entries:
        if entry.local.port in ports:
            remote = entry.remote if entry.remote.port else None
            yield BusySocket(protocol=IPPROTO_TCP, state=entry.state, local=entry.local, remote=remote)
    for family in ("udp", "udp6"):
        for line in read_text(f"/proc/thread-self/net/{family}").splitlines()[1:]:
            local, remote = (_endpoint(word) for word in line.split()[1:3])
            if local.port in ports:
                state = "established" if remote.port else "close"
                yield BusySocket(protocol=IPPROTO_UDP, state=state, local=local, remote=remote if remote.port else None)


def _is_bindable(endpoint: Endpoint) -> bool:
    """Whether the kernel counts the address as the host's: on a link, routed as local, or as broadcast."""
    six = ":" in endpoint.address
    if _binds_anything(6 if six else 4):
        return False  # it would take everything, and so say nothing
    try:
        # Never a name to be looked up, whatever the image says.
        ip_bytes(endpoint.address)
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as trial:
            trial.bind((endpoint.address, 0, 0, endpoint.scope) if six else (endpoint.address, 0))
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _binds_anything(version: int) -> bool:
    return read_text(f"/proc/sys/net/ipv{version}/ip_nonlocal_bind").strip() == "1"


def _endpoint(word: str) -> Endpoint:
    """``0100007F:0035``: the address as 32-bit words in the host's order, each in hexadecimal, and the port."""
    address, _, port = word.partition(":")
    raw = b"".join(int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8))
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return Endpoint(address=socket.inet_ntop(family, raw), port=int(port, 16))


def memory_available() -> int:
    """Bytes of memory that can be had without swapping."""
    return _memory().get("MemAvailable", 0)


def _memory() -> dict[str, int]:
    """``/proc/meminfo`` in bytes."""
    pairs = (line.partition(":") for line in read_text("/proc/meminfo").splitlines())
    return {key: int(value.split()[0]) * 1024 for key, _, value in pairs if value}
