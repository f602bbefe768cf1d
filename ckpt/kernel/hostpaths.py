"""Small things that an image needs of a host: ways to peers, users, cgroup controllers, room on a disk. Only looks."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckpt.kernel.netlink import ip_bytes
from ckpt.kernel.procfs import read_text
from ckpt.model.host import PeerPath

# linux/in.h and linux/in6.h: what a connected socket is told of the path to its peer.
_MTU = {socket.AF_INET: (socket.IPPROTO_IP, 14), socket.AF_INET6: (socket.IPPROTO_IPV6, 24)}
_ANY_PORT = 9


def look_up(path: PeerPath) -> PeerPath | None:
    """``path`` with its MTU; None where the kernel has no route. No packet is sent: a UDP socket is connected."""
    family = socket.AF_INET6 if ":" in path.remote else socket.AF_INET
    try:
        # Never a name to be looked up, whatever the image says.
        ip_bytes(path.local)
        ip_bytes(path.remote)
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as trial:
            # An address that is not there is another's finding.
            with contextlib.suppress(OSError):
                trial.bind((path.local, 0))
            trial.connect((path.remote, _ANY_PORT))
            return replace(path, mtu=trial.getsockopt(*_MTU[family]))
    except (OSError, ValueError):
        return None


def missing_users(users: Sequence[int]) -> tuple[int, ...]:
    """Which ids of users this host has no name for."""
    return tuple(user for user in users if not _is_known(user))


def _is_known(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except (KeyError, OverflowError):
        return False
    return True


def missing_controllers(wanted: Sequence[str]) -> tuple[str, ...]:
    """Which controllers of cgroup v1 are in no hierarchy here; named hierarchies are ``name=NAME``."""
    found: set[str] = set()
    for line in read_text("/proc/self/cgroup").splitlines():
        found.update(line.split(":")[1].split(","))
    return tuple(one for one in wanted if one not in found)


def disk_free(directories: Sequence[Path]) -> int:
    """The most bytes that are free in one of these directories; -1 where nothing is known of any."""
    found = [-1]
    for directory in directories:
        with contextlib.suppress(OSError):
            status = os.statvfs(directory)
            found.append(status.f_bavail * status.f_frsize)
    return max(found)
