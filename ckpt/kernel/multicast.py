"""The multicast groups that a socket has joined, which neither ``/proc`` nor sock_diag tell per socket.

``/proc/net/igmp`` and ``igmp6`` list the groups of each link of a namespace; a socket answers, for one group on one
link, whether it is a member (``MCAST_MSFILTER``, EADDRNOTAVAIL if not). So every candidate is asked for, which are
few. Asking changes nothing.
"""

from __future__ import annotations

import ctypes
import socket
import struct

from ckpt.kernel import netns as namespaces
from ckpt.kernel.procfs import read_text
from ckpt.records import dataclass

MCAST_MSFILTER = 48
ALWAYS_JOINED = frozenset({"224.0.0.1", "ff01::1", "ff02::1"})
"""All hosts: the kernel itself is a member on every link."""
STORAGE = 128
"""``struct sockaddr_storage``; ``struct group_filter`` holds one for the group and at least one for a source."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A group that somebody has joined on a link."""

    family: int
    address: str
    ifindex: int
    ifname: str


def memberships(netns: int) -> tuple[Membership, ...]:
    """Every group that was joined on any link of ``netns``."""
    with namespaces.entered(netns):
        # the files show the namespace of the thread that opens them
        igmp, igmp6 = read_text("/proc/thread-self/net/igmp"), read_text("/proc/thread-self/net/igmp6")
    found = (*parse_igmp(igmp), *parse_igmp6(igmp6))
    return tuple(one for one in found if one.address not in ALWAYS_JOINED)


def parse_igmp(text: str) -> tuple[Membership, ...]:
    """``/proc/net/igmp``: a line for each link, below it one for each group, in the machine's byte order."""
    found: list[Membership] = []
    index, name = 0, ""
    for line in text.splitlines()[1:]:
        words = line.split()
        if not line.startswith("\t"):
            index, name = int(words[0]), words[1]
            continue
        address = socket.inet_ntoa(struct.pack("=I", int(words[0], 16)))
        found.append(Membership(family=socket.AF_INET, address=address, ifindex=index, ifname=name))
    return tuple(found)


def parse_igmp6(text: str) -> tuple[Membership, ...]:
    """``/proc/net/igmp6``: index, name and group in each line."""
    found: list[Membership] = []
    for line in text.splitlines():
        index, name, group = line.split()[:3]
        address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(group))
        found.append(Membership(family=socket.AF_INET6, address=address, ifindex=int(index), ifname=name))
    return tuple(found)


def joined(fd: int, family: int, candidates: tuple[Membership, ...]) -> tuple[str, ...]:
    """Which of ``candidates`` the socket ``fd`` is a member of, as ``239.1.2.3%eth0``."""
    return tuple(f"{one.address}%{one.ifname}" for one in candidates if one.family == family and _is_member(fd, one))


def _is_member(fd: int, group: Membership) -> bool:
    raw = socket.inet_pton(group.family, group.address)
    name = struct.pack("=HH", group.family, 0) + (bytes(4) if group.family == socket.AF_INET6 else b"") + raw
    request = (
        struct.pack("=I4x", group.ifindex) + name.ljust(STORAGE, b"\0") + struct.pack("=II", 0, 0) + bytes(STORAGE)
    )
    buffer, size = ctypes.create_string_buffer(request, len(request)), ctypes.c_uint(len(request))
    level = socket.IPPROTO_IPV6 if group.family == socket.AF_INET6 else socket.IPPROTO_IP
    return bool(_libc.getsockopt(fd, level, MCAST_MSFILTER, buffer, ctypes.byref(size)) == 0)
