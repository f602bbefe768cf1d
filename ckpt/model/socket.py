"""The sockets of a group, as records: one for every socket that a process of the group holds.

``kernel.sockdiag`` fills them; the image carries them; ``check`` judges them before a dump and ``verify`` compares
them after a restore. Families, types and states go by the kernel's names in lower case (``inet6``, ``stream``,
``syn_sent``), because numbers read badly in an image that a person looks at.
"""

from __future__ import annotations

from ckpt.records import dataclass

IPPROTO_TCP = 6
IPPROTO_UDP = 17
IPPROTO_SCTP = 132
IPPROTO_MPTCP = 262
"""Protocol number of multipath TCP: a plain TCP socket on the wire until both ends agree, but not to the kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address and a port; ``scope`` is the index of the link for link-local IPv6, else 0."""

    address: str
    port: int
    scope: int = 0

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """One file descriptor that refers to a socket. ``ns_pid`` is the PID in the innermost PID namespace."""

    pid: int
    fd: int
    ns_pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """Options that a restore must bring back or that a target must be able to. None: not of this kind of socket."""

    reuse_address: bool = False
    reuse_port: bool = False
    v6only: bool | None = None
    transparent: bool | None = None
    freebind: bool | None = None
    mark: int = 0
    congestion: str | None = None
    user_timeout: int | None = None
    upper_protocol: str | None = None
    mss: int | None = None
    corked: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """One socket.

    ``netns`` is the inode of the network namespace it was made in (which may not be its owner's). ``local`` and
    ``remote`` are of inet sockets, ``path`` of unix ones (an abstract name begins with ``@``), ``peer`` the inode at
    the other end of a unix connection (0: none). ``backlog`` and ``accept_queue`` are of listeners. The queues are
    bytes, memory the kernel accounts for them where it does not say bytes (UDP, packet, netlink). ``device`` is what
    SO_BINDTODEVICE names, ``groups`` are the multicast groups it has joined. ``pending`` are the inodes of the unix
    clients that wait in a listener.
    """

    inode: int
    netns: int
    family: str
    type: str
    protocol: int
    state: str
    local: Endpoint | None = None
    remote: Endpoint | None = None
    device: str | None = None
    path: str | None = None
    peer: int = 0
    backlog: int | None = None
    accept_queue: int | None = None
    pending: tuple[int, ...] = ()
    receive_queue: int = 0
    send_queue: int = 0
    groups: tuple[str, ...] = ()
    options: SocketOptions = SocketOptions()
    owners: tuple[Owner, ...] = ()

    @property
    def is_inet(self) -> bool:
        """Whether it speaks IP, of either version."""
        return self.family in ("inet", "inet6")

    @property
    def is_tcp(self) -> bool:
        """Whether it is a plain TCP socket; a multipath one is not."""
        return self.is_inet and self.type == "stream" and self.protocol == IPPROTO_TCP

    @property
    def holds_connection(self) -> bool:
        """Whether it is TCP with a peer: told by its state, as a listener has the same type."""
        return self.is_tcp and self.state not in ("listen", "close")
