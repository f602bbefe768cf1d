"""Programs that run on the packets of a namespace and hang neither on a filter nor on a route.

They are attached by the bpf system call and stay with whoever holds them; ckpt can only ask whether there are any.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterable, Iterator

from ckpt.kernel.netns import entered
from ckpt.model.network import Link, Place, Unread

_SYSCALL = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280}
_PROG_QUERY = 16

# include/uapi/linux/bpf.h, enum bpf_attach_type
_OF_NAMESPACE = {17: "flow dissector", 36: "socket lookup"}
_OF_PAIR = {54: "netkit primary", 55: "netkit peer"}
_OF_LINK = {46: "tcx ingress", 47: "tcx egress", **_OF_PAIR}


class _Query(ctypes.Structure):
    _fields_ = (
        ("target", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("more", ctypes.c_uint64 * 4),
    )


_libc = ctypes.CDLL(None, use_errno=True)


def read(netns: int, links: Iterable[Link]) -> tuple[Unread, ...]:
    """What is attached to ``netns`` and to its ``links``, and to a pair by its end in the caller's namespace."""
    links = tuple(links)
    with entered(netns):  # links are asked for by their numbers, in the namespace of who asks
        found = tuple(_found(netns, links))
    return (*found, *_found_outside(links))


def _found(netns: int, links: Iterable[Link]) -> Iterator[Unread]:
    for kind, name in _OF_NAMESPACE.items():
        if _count(netns, kind):
            yield Unread(code="bpf-attached", subject="network namespace", what=f"has a BPF program as {name}")
    for link in links:
        for kind, name in _OF_LINK.items():
            if _count(link.ifindex, kind):
                yield Unread(code="bpf-attached", subject=f"link {link.ifname}", what=f"has a BPF program at {name}")


def _found_outside(links: Iterable[Link]) -> Iterator[Unread]:
    for link in links:
        other = link.counterpart
        if link.kind == "netkit" and other is not None and other.place is Place.CALLER:
            for kind, name in _OF_PAIR.items():
                if _count(other.ifindex, kind):
                    what = f"has a BPF program at {name}, by its outside end {other.ifname}"
                    yield Unread(code="bpf-attached", subject=f"link {link.ifname}", what=what)


def _count(target: int, attach_type: int) -> int:
    """How many programs are attached; a kernel that does not know the type has none."""
    number = _SYSCALL.get(platform.machine())
    if number is None:
        return 0
    query = _Query(target=target, attach_type=attach_type)
    _libc.syscall(number, _PROG_QUERY, ctypes.byref(query), ctypes.sizeof(query))
    return int(query.count)
