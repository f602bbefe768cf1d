"""Groups of the link layer that somebody joined by hand (``ip maddr add``).

``/proc/net/dev_mcast`` marks them: only that ioctl joins a group for everybody, where protocols and upper links join it
for themselves. A group joined by both is joined again by both.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from ckpt.kernel.netlink import KernelRefusal, mac_bytes
from ckpt.kernel.netns import entered
from ckpt.model.network import LinkMulticast

_FILE = "/proc/thread-self/net/dev_mcast"
_SIOCADDMULTI = 0x8931
_REQUEST = struct.Struct("16sH14s8x")


def read(netns: int) -> tuple[LinkMulticast, ...]:
    """All of ``netns``."""
    with entered(netns), open(_FILE, encoding="utf-8", errors="surrogateescape") as listed:
        return parse(listed.read())


def parse(text: str) -> tuple[LinkMulticast, ...]:
    """The file: for each group the index, the name, how often it is used, whether by everybody, and its address."""
    found = []
    for line in text.splitlines():
        _, ifname, _, everybody, address = line.split()
        if int(everybody):
            found.append(LinkMulticast(ifname=ifname, mac=bytes.fromhex(address).hex(":")))
    return tuple(found)


def join(netns: int, group: LinkMulticast) -> None:
    """Join ``group``. Raises KernelRefusal."""
    request = _REQUEST.pack(group.ifname.encode("utf-8", "surrogateescape"), 0, mac_bytes(group.mac))
    try:
        with entered(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCADDMULTI, request)
    except OSError as error:
        raise KernelRefusal(error.errno or 0, "SIOCADDMULTI") from error
