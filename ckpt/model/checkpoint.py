"""What an image says beside CRIU's own files: one record for each of its sections.

`group` names what was dumped and how it was set up, `source` the host it comes from, `processes` and `sockets` what
the group consisted of while it was frozen, `network` its namespace, `nested-networks` those that it has beside,
`files` what of the host's files travels along, and `criu` what a restore has to tell CRIU. They are read before
anything is touched, and they suffice to explain the image to a reader who has no CRIU.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.model.carried import CarriedFile
from ckpt.model.host import HostFacts
from ckpt.model.network import Network
from ckpt.model.process import Isolation, Process
from ckpt.model.socket import Socket


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
class Checkpoint:
    """All of an image but CRIU's own files. ``network`` is None for a group in the host's namespace."""

    group: Group
    source: HostFacts
    processes: tuple[Process, ...]
    sockets: tuple[Socket, ...]
    network: Network | None
    criu: CriuNotes
    nested: tuple[NestedNetwork, ...] = ()
    carried: tuple[CarriedFile, ...] = ()

    @property
    def networks(self) -> dict[str, Network]:
        """All namespaces of the group by their keys, the root task's first; none where that is the host's."""
        if self.network is None:
            return {}
        return {self.criu.netns_key or "": self.network} | {one.key: one.network for one in self.nested}
