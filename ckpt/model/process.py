"""The processes of a group, as records: what ``/proc`` says of each, and what lies around the group.

``kernel.proc`` fills these records, ``check`` judges them, the image carries the ``Process`` part of them. Nothing
here reads anything. PIDs are the host's unless a field says otherwise. Text that the kernel gives as bytes (names,
command lines, paths) is UTF-8 with what does not decode shown as ``\\xNN``, so that every record can be encoded.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field

from ckpt.model.socket import Socket
from ckpt.records import dataclass


class FileKind(enum.StrEnum):
    """What a file descriptor refers to."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    PIPE = "pipe"
    FIFO = "fifo"
    SOCKET = "socket"
    TTY = "tty"
    CHARACTER = "character"
    BLOCK = "block"
    SYMLINK = "symlink"
    ANON = "anon"
    MEMFD = "memfd"
    NAMESPACE = "namespace"
    OTHER = "other"


class MountPlace(enum.StrEnum):
    """Where the mount is that a file was opened through.

    ``INSIDE``: among the mounts its process sees. ``OUTSIDE``: it is not, but its file system is mounted somewhere
    that ckpt sees, as when a program is given its standard streams by a parent in another mount namespace.
    ``INTERNAL``: the kernel's own, mounted nowhere (pipes, sockets, memfds, POSIX message queues, secret memory).
    """

    INSIDE = "inside"
    OUTSIDE = "outside"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLock:
    """One lock on a file. ``kind`` and ``access`` are the words of ``/proc/locks`` (POSIX, FLOCK, OFDLCK, LEASE)."""

    kind: str
    access: str
    pid: int
    inode: int
    start: int
    end: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """One file descriptor.

    ``path`` is where the link in ``/proc/PID/fd`` points, without `` (deleted)``; for an anonymous inode its type
    (``eventpoll``). ``device`` and ``special`` are ``major:minor`` of the file system and of the device node itself.
    ``info`` holds the lines of ``fdinfo`` beyond pos, flags, mnt_id and ino that have one value each.
    """

    fd: int
    kind: FileKind
    path: str
    flags: int
    position: int
    mount_id: int
    mode: int
    inode: int
    device: str
    special: str | None = None
    size: int = 0
    deleted: bool = False
    mount: MountPlace = MountPlace.INSIDE
    info: Mapping[str, str] = field(default_factory=dict)
    locks: tuple[FileLock, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedFile:
    """A file that is mapped at least once; ``executable`` when any of its mappings is. ``digest``: see Executable."""

    path: str
    device: str
    inode: int
    executable: bool = False
    shared: bool = False
    writable: bool = False
    deleted: bool = False
    size: int | None = None
    mode: int | None = None
    build_id: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Executable:
    """The program a process runs.

    ``build_id`` is the hexadecimal note of the linker, if the file has one; if not, ``digest`` is BLAKE2b-256 of all
    of it.
    """

    path: str
    device: str
    inode: int
    size: int
    mode: int
    deleted: bool = False
    build_id: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """One thread; the first of a process has the process's own id. ``ns_ids`` as ``Process.ns_pids``.

    ``own_namespaces`` names the namespaces in which it is not where its process is.
    """

    tid: int
    name: str
    state: str
    ns_ids: tuple[int, ...] = ()
    own_namespaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes: resident, private (anonymous, shared-memory and swapped pages: about what an image will hold), mapped."""

    rss: int = 0
    private: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process.

    ``ns_pids`` are its ids from ckpt's PID namespace inwards (the last is its own idea of itself), ``ns_pgids`` and
    ``ns_sids`` alike; an id of 0 there is a leader outside of that namespace. ``start_time`` is in clock ticks since
    boot: a PID with another start time is another process. ``cgroups`` are ``hierarchy:controllers:path``.
    ``namespaces`` maps the names under ``/proc/PID/ns`` to inode numbers. ``tty`` is ``major:minor`` of the
    controlling terminal.
    """

    pid: int
    ns_pids: tuple[int, ...]
    ppid: int
    pgid: int
    sid: int
    ns_pgids: tuple[int, ...] = ()
    ns_sids: tuple[int, ...] = ()
    tty: str | None = None
    name: str
    cmdline: tuple[str, ...] = ()
    exe: Executable | None = None
    cwd: str = ""
    root: str = "/"
    state: str
    kernel_thread: bool = False
    start_time: int
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    threads: tuple[Thread, ...] = ()
    namespaces: Mapping[str, int] = field(default_factory=dict)
    cgroups: tuple[str, ...] = ()
    tracer: int = 0
    seccomp: int = 0
    no_new_privs: bool = False
    memory: Memory = field(default_factory=Memory)
    files: tuple[OpenFile, ...] = ()
    maps: tuple[MappedFile, ...] = ()

    @property
    def ns_pid(self) -> int:
        """The PID the process knows itself by."""
        return self.ns_pids[-1] if self.ns_pids else self.pid

    @property
    def is_init(self) -> bool:
        """Whether it is the first process of a PID namespace."""
        return self.ns_pid == 1

    @property
    def zombie(self) -> bool:
        """Whether it has ended and waits to be reaped."""
        return self.state in ("Z", "X")


class Isolation(enum.StrEnum):
    """Where the group's network is: in a namespace of its own, or in the one that ckpt itself is in.

    There it may be confined to a set of addresses (``ipset``).
    """

    NETNS = "netns"
    IPSET = "ipset"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process outside the group, as the reason why something cannot be taken along."""

    pid: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideEnd:
    """An object that the group holds and that processes outside hold too.

    ``kind`` is ``pipe``, ``fifo``, ``socket`` (the very socket is held outside too), ``unix`` (its other end is) or
    ``tty``. ``inode`` is the group's own object: the pipe, its socket, or the number of the terminal. ``peer`` is the
    inode of the unix socket at the other end, and ``path`` its name. ``holders`` is empty for a terminal whose
    master nobody holds or nobody that ckpt sees.
    """

    kind: str
    inode: int
    path: str = ""
    peer: int = 0
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SysvIpc:
    """One System V object of the group's IPC namespace. ``kind`` is shm, msg or sem; ``size`` bytes, or semaphores."""

    kind: str
    key: int
    id: int
    size: int = 0
    creator: int = 0
    attached: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedNetns:
    """A network namespace that tasks of the group live in, but not its root task.

    ``pid`` is one of these tasks. ``sharers``, ``pins``, ``accept_queue``, ``orphans`` and ``congestion`` are of it
    what ``GroupFacts`` says of the root task's.
    """

    inode: int
    pid: int
    sharers: tuple[Holder, ...] = ()
    pins: tuple[str, ...] = ()
    accept_queue: int = 0
    orphans: tuple[Socket, ...] = ()
    congestion: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFacts:
    """All that ``check`` needs to say whether a group can be dumped.

    ``netns`` is the inode of the root task's network namespace; ``netns_sharers`` are the processes in it that are
    not of the group, ``netns_pins`` the mounts that keep it (``/run/netns/NAME``). ``accept_queue`` counts the
    connections that wait in accept queues or are half open there; ``orphans`` are its connections that a program has
    closed and that still have data or a FIN to deliver; ``congestion`` is the algorithm that new sockets get there.
    ``stuck`` are the group's threads that were in uninterruptible sleep each time they were looked at. ``nested`` are
    the other network namespaces of the group, in the order of their first task; none where the root task's is the
    host's.
    """

    root: int
    processes: tuple[Process, ...]
    sockets: tuple[Socket, ...] = ()
    self_and_ancestors: tuple[int, ...] = ()
    isolation: Isolation = Isolation.NETNS
    netns: int = 0
    netns_sharers: tuple[Holder, ...] = ()
    netns_pins: tuple[str, ...] = ()
    pidns_is_hosts: bool = True
    root_is_init: bool = False
    mntns_differs: bool = False
    userns_differs: bool = False
    outside: tuple[OutsideEnd, ...] = ()
    ipcns_is_hosts: bool = True
    sysv_ipc: tuple[SysvIpc, ...] = ()
    accept_queue: int = 0
    missing_capabilities: tuple[str, ...] = ()
    orphans: tuple[Socket, ...] = ()
    congestion: str | None = None
    stuck: tuple[Holder, ...] = ()
    nested: tuple[NestedNetns, ...] = ()

    @property
    def pids(self) -> frozenset[int]:
        """The host's PIDs of the group."""
        return frozenset(process.pid for process in self.processes)
