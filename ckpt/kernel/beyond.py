"""What a namespace may hold that our records have no place for: looked for only to be named, never carried.

A dump that would leave one of these behind in silence restores a namespace that behaves otherwise. So each is asked
for by the shortest question there is, and a kernel that does not know the question holds none of it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from ckpt.kernel.netns import entered
from ckpt.model.network import Address, Unread

_MULTICAST_ROUTES = {"ip_mr_vif": 1, "ip6_mr_vif": 1}
"""The files that list the links between which a daemon routes multicast, by the number of their lines of headings."""

_ANYCAST = "anycast6"


def read_beyond(netns: int, addresses: tuple[Address, ...]) -> tuple[Unread, ...]:
    """All that was found; ``addresses`` are those of the namespace."""
    return (*_multicast_routing(netns), *_anycast(netns, addresses))


def _lines(netns: int, file: str) -> list[str]:
    try:
        with entered(netns), open(f"/proc/thread-self/net/{file}", encoding="utf-8", errors="surrogateescape") as text:
            return text.read().splitlines()
    except OSError:
        return []  # this kernel has no such thing


def _multicast_routing(netns: int) -> Iterator[Unread]:
    for file, headings in _MULTICAST_ROUTES.items():
        count = len(_lines(netns, file)) - headings
        if count > 0:
            what = f"is routed between {count} links by a program, whose routes go with its socket"
            yield Unread(code="multicast-routing", subject=f"multicast ({file})", what=what)


def _anycast(netns: int, addresses: tuple[Address, ...]) -> Iterator[Unread]:
    """Anycast addresses that a program has joined: a router's own are joined by the kernel."""
    own = {(one.ifname, _subnet_router(one.address)) for one in addresses if ":" in one.address}
    for line in _lines(netns, _ANYCAST):
        _, ifname, digits, _ = line.split()
        address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
        if (ifname, address) not in own:
            what = "was joined by a program's socket, which has to join it again"
            yield Unread(code="anycast", subject=f"anycast address {address} of {ifname}", what=what)


def _subnet_router(prefix: str) -> str:
    """The address of all routers of a subnet: its prefix, and zeros."""
    address, _, length = prefix.partition("/")
    kept = int.from_bytes(socket.inet_pton(socket.AF_INET6, address), "big") >> (128 - int(length))
    return socket.inet_ntop(socket.AF_INET6, (kept << (128 - int(length))).to_bytes(16, "big"))
