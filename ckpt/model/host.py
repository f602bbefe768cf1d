"""Hosts as records: the one an image comes from, and what was found on the one it shall go to.

``HostFacts`` say which host it is; an image carries those of its source. A restore derives its ``Needs`` from the image
(`revalidate.needs_of`), `kernel.host` looks each of them up and answers with ``TargetFacts``, and `revalidate` holds
the two against each other. Needs and facts hold only what an image could hold, so that another host can be asked the
same questions over a wire. Nothing here reads anything.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field

from ckpt.model.network import Address, Link
from ckpt.model.process import FileKind
from ckpt.model.socket import Endpoint
from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Which host, and what it runs.

    ``machine`` and ``kernel`` are those of uname(2); ``boot_id`` tells two boots apart, also of one host. ``criu`` is
    major, minor, sublevel. ``cpu_flags`` are what /proc/cpuinfo says that every one of its CPUs has, sorted.
    """

    hostname: str
    machine: str
    kernel: str
    boot_id: str = ""
    criu: tuple[int, ...] = ()
    ckpt: str = ""
    cpu_flags: tuple[str, ...] = ()


class FileRole(enum.StrEnum):
    """What a group needs a path for."""

    EXECUTABLE = "executable"
    MAPPED = "mapped"
    OPEN = "open"
    INHERITED = "inherited"
    WORKDIR = "workdir"
    ROOT = "root"
    SOCKET = "socket"
    NETNS = "netns"
    CARRIED = "carried"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNeed:
    """A path that must be there, and how it was on the source: None where that does not matter.

    ``path`` is where to look for it on the target; ``user`` says who needs it (``PID 71, fd 5``). ``append`` says that
    the group does nothing but write to its end. For the role ``SOCKET`` it is the name that a unix socket is bound to,
    for ``NETNS`` a name that the group's network namespace shall have again, and that must be free. One of the role
    ``CARRIED`` is in the image. Where ``digest`` is set, the first ``size`` bytes on the target are to be digested
    alike, if there are so many; ``inode`` and ``device`` were those of the source.
    """

    path: str
    role: FileRole
    kind: FileKind
    user: str
    size: int | None = None
    mode: int | None = None
    build_id: str | None = None
    special: str | None = None
    append: bool = False
    digest: str | None = None
    inode: int = 0
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """An address that shall appear on the segment of the host's link ``ifname``."""

    address: str
    ifname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPath:
    """The way from an address of the host to another; of one that was looked up ``mtu`` is what packets may have."""

    local: str
    remote: str
    mtu: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """All that has to be looked up on a target before a group can be restored there.

    ``kinds`` are the kinds of link its kernel must know, ``tools`` the programs that must be installed. ``pids`` are
    only those that are restored into the host's own PID namespace. ``ports`` are the local ports of inet sockets in
    the host's own network namespace, ``binds`` what they are bound to, all with port 0; without any ports, no socket
    of the target is looked at. ``paths`` are the connections there, whose peers must be reachable. ``gateways`` are
    those that the group's routes lead to, on the segments where they would be looked for. ``users`` are the ids that
    processes run under, ``cgroups`` the controllers of cgroup v1 that limit them.
    """

    files: tuple[FileNeed, ...] = ()
    probes: tuple[Probe, ...] = ()
    pids: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    binds: tuple[Endpoint, ...] = ()
    paths: tuple[PeerPath, ...] = ()
    gateways: tuple[Probe, ...] = ()
    users: tuple[int, ...] = ()
    cgroups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is at a path; ``bound`` says that a unix socket receives there now (it listens, or takes datagrams).

    ``digest`` is of as many of the first bytes as the need has in all.
    """

    kind: FileKind
    size: int = 0
    mode: int = 0
    special: str | None = None
    build_id: str | None = None
    bound: bool = False
    digest: str | None = None
    inode: int = 0
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFacts:
    """A link of the host's own namespace; ``kind`` is netlink's, empty for a physical one."""

    ifname: str
    ifindex: int
    kind: str = ""
    mac: str | None = None
    mtu: int = 0
    up: bool = True
    master: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Who answers for ``address`` on the segment of ``ifname``."""

    address: str
    ifname: str
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownGroup:
    """A group in the target's registry. ``links`` are the host's links it is attached to (a bridge, a parent)."""

    name: str
    pid: int
    alive: bool = True
    addresses: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BusySocket:
    """A socket in the target's own network namespace. ``remote`` is None for one without a peer."""

    protocol: int
    state: str
    local: Endpoint
    remote: Endpoint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFacts:
    """What was found on the target.

    A path of the needs that is not among ``files`` is not there. ``pids_taken``, ``kinds_missing`` and
    ``tools_missing`` are those of the needs that are. ``bindable`` are those ``binds`` that a socket can be bound to
    because the host takes what is sent there; ``nonlocal_bind`` says that IPv4 sockets can be bound to anything.
    Sizes are bytes; ``pid_max`` is the first number that no PID can be, 0 unknown. ``answers`` may name several that
    have one address. ``paths`` are those of the needs that there is a route for; ``gateways`` are those that answered.
    ``capabilities_missing`` are the effective ones, ``ephemeral_ports`` the first and last that the kernel gives out.
    ``disk_free`` is what an image may be unpacked into, -1 unknown; ``clock`` the seconds since 1970 there, 0 unknown.
    ``fallbacks`` are the links that drivers make in every fresh namespace; ``fallbacks_avoidable`` that it can be made
    without them.
    """

    host: HostFacts
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    links: tuple[LinkFacts, ...] = ()
    addresses: tuple[Address, ...] = ()
    answers: tuple[Answer, ...] = ()
    groups: tuple[KnownGroup, ...] = ()
    sockets: tuple[BusySocket, ...] = ()
    pids_taken: tuple[int, ...] = ()
    kinds_missing: tuple[str, ...] = ()
    tools_missing: tuple[str, ...] = ()
    congestion: tuple[str, ...] = ()
    bindable: tuple[Endpoint, ...] = ()
    nonlocal_bind: bool = False
    pid_max: int = 0
    memory_available: int = 0
    swap_free: int = 0
    paths: tuple[PeerPath, ...] = ()
    gateways: tuple[Answer, ...] = ()
    users_missing: tuple[int, ...] = ()
    cgroups_missing: tuple[str, ...] = ()
    capabilities_missing: tuple[str, ...] = ()
    checkpoint_restore: bool = True
    ephemeral_ports: tuple[int, ...] = ()
    disk_free: int = -1
    clock: float = 0.0
    fallbacks: tuple[Link, ...] = ()
    fallbacks_avoidable: bool = True

    def link(self, ifname: str) -> LinkFacts | None:
        """The link of that name."""
        return next((link for link in self.links if link.ifname == ifname), None)
