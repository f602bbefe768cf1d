"""What an image says beside CRIU's own files: one record for each of its sections.

`group` names what was dumped and how it was set up, `source` the host it comes from, `processes` and `sockets` what
the group consisted of while it was frozen, `network` its namespace, `nested-networks` those that it has beside,
`context` what confined it in the host's, `files` what of the host's files travels along, and `criu` what a restore has
to tell CRIU. They are read before anything is touched, and they suffice to explain the image to a reader who has no
CRIU.
"""

from __future__ import annotations

import ipaddress

from ckpt.model.carried import CarriedFile
from ckpt.model.context import MOST_ADDRESSES, MOST_RANGES, Member
from ckpt.model.host import HostFacts
from ckpt.model.network import Network
from ckpt.model.process import Isolation, Process
from ckpt.model.socket import Socket
from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The group itself.

    ``pid_namespace`` says that the root task is the first process of a PID namespace of the group's own; otherwise its
    PIDs are those of the host. ``netns_names`` are the names that ``ip netns`` knew its namespace by. ``bridge_made``
    says that ckpt had made the bridge its link is a port of, so that a restore may make it again.
    """

    name: str
    isolation: Isolation
    root_pid: int
    pid_namespace: bool
    hostname: str = ""
    command: tuple[str, ...] = ()
    log: str | None = None
    netns_names: tuple[str, ...] = ()
    bridge_made: bool = False
    connections: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount of the group's own mount namespace that the host's does not have.

    ``kind`` is ``sysfs``, ``proc``, or ``bind`` for a part of a file system that the host has mounted too, at
    ``source``. ``options`` are the kernel's per-mount options (``ro``, ``nosuid`` …).
    """

    target: str
    kind: str
    source: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InheritedFile:
    """A file that was opened in another mount namespace than the group's, as stdio most often is.

    CRIU cannot find its mount and takes it as external, under ``key``; who restores opens ``path`` for it.
    """

    key: str
    path: str
    flags: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectedDatagram:
    """A unix datagram socket, ``fd`` of ``pid``, that was connected to a ``path`` outside of the group.

    ``pid`` is the host's at the time, ``ns_pid`` the one in the innermost PID namespace.
    """

    pid: int
    ns_pid: int
    fd: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CriuNotes:
    """What a restore has to tell CRIU: keys of external objects, and the mount namespace to run in, if any.

    ``shell_job`` says that the root task is in a session which somebody outside of the group leads.
    """

    netns_key: str | None = None
    mounts: tuple[Mount, ...] | None = None
    files: tuple[InheritedFile, ...] = ()
    shell_job: bool = False
    datagrams: tuple[ConnectedDatagram, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The section `processes`, root first."""

    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """The section `sockets`."""

    sockets: tuple[Socket, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedNetwork:
    """A network namespace of the group that is not its root task's.

    ``key`` is what CRIU's images name it by, and what links of the group's other namespaces say that lead into it
    (`Counterpart.netns`; the root task's has `CriuNotes.netns_key`). ``inode`` is its number on the source, by which
    processes and sockets name it, ``netns_names`` what ``ip netns`` knew it by.
    """

    key: str
    inode: int
    netns_names: tuple[str, ...] = ()
    network: Network


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedNetworks:
    """The section `nested-networks`; a group that lives in one namespace has none."""

    networks: tuple[NestedNetwork, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedAddress:
    """Where the source had an address of a set: ``address`` with its prefix, on the link ``ifname``, which has ``mac``.

    ``given`` says that ckpt had put it there, and took it away with the group.
    """

    address: str
    ifname: str
    mac: str | None = None
    given: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """A port of an address that sockets of the context had to themselves.

    ``primary`` is what the kernel has them bound to: another address where they are bound to `*`, which is what
    ``wild`` says: 1 for every address of IPv4, 2 of IPv6, 3 of both. The context's own loopback addresses are written
    as the group knows them, 127.0.0.1 and ::1.
    """

    address: str
    port: int
    protocol: int
    primary: str
    wild: int = 0
    sockets: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextRecord:
    """The section `context`: the IP-set context of a group, its ``members`` in their order.

    Sockets are recorded as the group's programs see them, with `*` and 127.0.0.1; ``bookings`` say what these are on
    the host, where 127.0.0.1 and ::1 are ``loopback4`` and ``loopback6``. ``tasks`` is how many there may be at
    once; what else limits a group is in CRIU's images. ``root_may_leave`` is whether the group was meant to run also
    where nothing keeps root in its context.
    """

    members: tuple[Member, ...]
    loopback4: str
    loopback6: str
    places: tuple[PlacedAddress, ...] = ()
    tasks: int | None = None
    bookings: tuple[Booking, ...] = ()
    root_may_leave: bool = False

    def __post_init__(self) -> None:
        """ValueError for what is no set: an image may hold any text."""
        if not 0 < len(self.members) <= MOST_ADDRESSES:
            raise ValueError(f"a set has 1 to {MOST_ADDRESSES} addresses")
        for one in self.members:
            if not 0 <= (one.prefix or 0) <= one.ip.max_prefixlen:
                raise ValueError(f"no prefix of {one.address} has {one.prefix} bits")
            if len(one.ports) > MOST_RANGES or not all(0 < item.low <= item.high < 1 << 16 for item in one.ports):
                raise ValueError(f"the ports of {one.address} are none")
            if any(item.protocol not in ("", "tcp", "udp") for item in one.ports):
                raise ValueError(f"the ports of {one.address} are of no protocol")
        ipaddress.IPv4Address(self.loopback4)
        ipaddress.IPv6Address(self.loopback6)
        for place in self.places:
            ipaddress.ip_interface(place.address)
        for booking in self.bookings:
            ipaddress.ip_address(booking.address)
            ipaddress.ip_address(booking.primary)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All of an image but CRIU's own files. ``network`` is None for a group in the host's namespace.

    ``context`` is what confined it there, if anything did.
    """

    group: Group
    source: HostFacts
    processes: tuple[Process, ...]
    sockets: tuple[Socket, ...]
    network: Network | None
    criu: CriuNotes
    nested: tuple[NestedNetwork, ...] = ()
    carried: tuple[CarriedFile, ...] = ()
    context: ContextRecord | None = None

    @property
    def networks(self) -> dict[str, Network]:
        """All namespaces of the group by their keys, the root task's first; none where that is the host's."""
        if self.network is None:
            return {}
        return {self.criu.netns_key or "": self.network} | {one.key: one.network for one in self.nested}
