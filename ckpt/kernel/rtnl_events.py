"""Which notifications of the kernel say nothing of what a record holds.

While a namespace is read, every change of it is listened for, and makes it be read again. What comes and goes by itself
must not: neighbours that are learnt, and links that gain or lose their carrier, which a bond's ports do at each of its
probes. An event of a link says all of it, so it is held against what was read: a change to and fro is seen by the event
in between.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt.kernel import rtnl_bridge, rtnl_link_numbers, rtnl_links, rtnl_mdb, rtnl_neighbours
from ckpt.kernel.rtnl_links import LinkReader
from ckpt.model.network import Network

_AF_UNSPEC = 0


def says_nothing(kind: int, body: bytes, network: Network) -> bool:
    """Whether the event of that type tells of nothing that ``network`` holds otherwise."""
    if kind in (rtnl_neighbours.RTM_NEWNEIGH, rtnl_neighbours.RTM_DELNEIGH):
        return rtnl_bridge.is_learnt(body) if body[0] == rtnl_bridge.AF_BRIDGE else not rtnl_neighbours.is_set(body)
    if kind in (rtnl_mdb.RTM_NEWMDB, rtnl_mdb.RTM_DELMDB):
        return rtnl_mdb.is_learnt(body)
    return kind == rtnl_link_numbers.RTM_NEWLINK and body[0] == _AF_UNSPEC and _is_as_read(body, network)


def _is_as_read(body: bytes, network: Network) -> bool:
    raw = rtnl_links.decode(body)
    before = next((link for link in network.links if link.ifindex == raw.index), None)
    if before is None or raw.link not in (0, raw.index, before.counterpart.ifindex if before.counterpart else 0):
        return False
    known = {link.ifindex: rtnl_links.named(link) for link in network.links}
    reader = LinkReader({**known, raw.index: raw}, caller={}, caller_nsid=-1)
    now = reader.link(raw)
    # What other ways tell of a link is not in the event, and has its own ways to be told of.
    rest = {name: getattr(before, name) for name in _TOLD_ELSEWHERE}
    return replace(now, **rest) == before and {*reader.unread} <= {*network.unread}


_TOLD_ELSEWHERE = ("counterpart", "features", "channels", "coalescing", "port_number", "rx_queues")
