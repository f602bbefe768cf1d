"""What a macsec has been given beside its options: keys, and peers to receive from. Looked for only to be named.

The kernel takes a key and shows none of it but its name. So a macsec travels as long as it has none.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kernel.genetlink import GenericNetlink
from ckpt.kernel.netlink import Attributes, number, pairs, parse
from ckpt.model.network import Link, Unread

KIND = "macsec"

_GET = 0
_IFINDEX, _KEYS, _PEERS = 1, 5, 6
_PEER_KEYS = 3


def read_keys(netns: int, links: Sequence[Link]) -> tuple[Unread, ...]:
    """What those of ``links`` have that are macsecs of ``netns``."""
    names = {link.ifindex: link.ifname for link in links if link.kind == KIND}
    if not names:
        return ()
    with GenericNetlink(KIND, netns) as connection:
        found = connection.dump(_GET, b"") if connection else []
    return tuple(
        Unread(code="macsec-keys", subject=f"link {names[index]}", what=what)
        for one in found
        if (index := number(one[_IFINDEX])) in names and (what := _what(one))
    )


def _what(found: Attributes) -> str:
    peers = [parse(value) for _, value in pairs(found.get(_PEERS, b""))]
    lists = [found.get(_KEYS, b""), *(peer.get(_PEER_KEYS, b"") for peer in peers)]
    keys = sum(len(list(pairs(one))) for one in lists)
    if not keys and not peers:
        return ""
    return f"has {keys} keys, which the kernel tells nobody, and {len(peers)} peers to receive from"
