"""Revalidation: what an image needs, held against what a target has, before anything there is touched.

``needs_of`` derives from an image all that has to be looked up; who acts has it looked up (`kernel.host.read_target`,
on this host or on another); ``revalidate`` turns the answers into findings. Both are pure, and both take the records
as they shall be on the target: what moves a group to other addresses, links or ports changes the records first.

A finding that blocks names something that would make the restore fail, or succeed and be wrong without a word (CRIU
restores an IPv6 listener without its address in silence). What ckpt itself gets round is ``OK`` and says how.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator

from ckpt.model.checkpoint import Checkpoint
from ckpt.model.finding import Finding
from ckpt.model.host import TargetFacts
from ckpt.revalidate.carried import check_carried, placements
from ckpt.revalidate.files import check_files
from ckpt.revalidate.host import check_host
from ckpt.revalidate.needs import needs_of
from ckpt.revalidate.network import check_clock, check_network
from ckpt.revalidate.sockets import check_sockets
from ckpt.revalidate.verdict import block

__all__ = ["malformed", "needs_of", "revalidate"]


def revalidate(
    checkpoint: Checkpoint,
    target: TargetFacts,
    *,
    name: str | None = None,
    tcp_close: bool = False,
    pages: int | None = None,
    made: float | None = None,
    held_by: Collection[str] = (),
    replace_files: bool = False,
) -> tuple[Finding, ...]:
    """Whether ``checkpoint`` can be restored on ``target``, from which its needs were looked up.

    ``name`` is what the group shall be called there, by default as in the image. With ``tcp_close`` no established
    connection is restored. ``pages`` are the bytes of memory that the image holds, where that is known; ``made`` is
    when it was made, in seconds since 1970. ``held_by`` are the MACs of the links of the source's group, which has its
    addresses until it gives them up. With ``replace_files`` other files make way for the image's.
    """
    return malformed(checkpoint) or tuple(
        _findings(checkpoint, target, name or checkpoint.group.name, tcp_close, pages, made, held_by, replace_files)
    )


def malformed(checkpoint: Checkpoint) -> tuple[Finding, ...]:
    """What makes the image none that ckpt has written; nothing else of it is looked at then."""
    return tuple(_malformed(checkpoint))


def _malformed(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Addresses that are none, and namespaces that cannot be told apart.

    An image may hold any text, and nothing of it is used before this is known.
    """
    if len(checkpoint.networks) != len(checkpoint.nested) + (checkpoint.network is not None) or (
        checkpoint.nested and checkpoint.network is None
    ):
        yield block(
            "netns-invalid",
            "nested network namespaces",
            "two of the image's namespaces have one key, or they are nested in none",
            "do not trust this image",
        )
    networks = checkpoint.networks.values()
    links = [link for network in networks for link in network.links]
    outside = [address for link in links if link.counterpart for address in link.counterpart.addresses]
    inside = [address for network in networks for address in network.addresses]
    texts = [address.address for address in (*inside, *outside)]
    ends = [end for one in checkpoint.sockets if one.is_inet for end in (one.local, one.remote) if end]
    for text in dict.fromkeys((*texts, *(end.address for end in ends))):
        try:
            ipaddress.ip_interface(text)
        except ValueError:
            yield block("address-invalid", repr(text), "the image has this as an address", "do not trust this image")


def _findings(
    checkpoint: Checkpoint,
    target: TargetFacts,
    name: str,
    tcp_close: bool,
    pages: int | None,
    made: float | None,
    held_by: Collection[str],
    replace_files: bool,
) -> Iterator[Finding]:
    needs = needs_of(checkpoint)
    yield from check_host(checkpoint, needs, target, name=name, pages=pages)
    placed = placements(checkpoint, target, replace=replace_files)
    yield from check_files(needs, target, placed)
    yield from check_carried(checkpoint, target, placed)
    yield from check_network(checkpoint, target, held_by)
    yield from check_clock(checkpoint, target, made)
    yield from check_sockets(checkpoint, target, tcp_close=tcp_close)
