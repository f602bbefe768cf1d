"""Programs that run on the packets of a namespace and hang neither on a filter nor on a route.

They are attached by the bpf system call and stay with whoever holds them; ckpt can only ask whether there are any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ckpt.kernel import bpf_calls
from ckpt.kernel.netns import entered
from ckpt.model.network import Link, Place, Unread

# include/uapi/linux/bpf.h, enum bpf_attach_type
_OF_NAMESPACE = {17: "flow dissector", 36: "socket lookup"}
_OF_PAIR = {54: "netkit primary", 55: "netkit peer"}
_OF_LINK = {46: "tcx ingress", 47: "tcx egress"}


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
        for kind, name in (_OF_LINK | _OF_PAIR if link.kind == "netkit" else _OF_LINK).items():
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
    """How many programs are attached; a link that is gone has none."""
    try:
        return len(bpf_calls.prog_query(target, attach_type))
    except OSError:
        return 0
