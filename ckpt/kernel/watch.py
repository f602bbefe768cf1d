"""Hear of what changes in a namespace while it is read.

The listening sockets are there before the first thing is read, and are asked after the last. The kernel sends most
notifications while it holds the lock that the change was made under: whoever has had that lock since has them all. What
tells of no change by itself (sysctls below ``neigh``, ipset, tracked flows, which never rest) is not heard of here.
"""

from __future__ import annotations

from contextlib import ExitStack

from ckpt.kernel import nft, rtnl_events, rtnl_links, xfrm
from ckpt.kernel.netlink import Netlink
from ckpt.model.network import Network

_GROUPS = (1, 3, 4, 5, 7, 8, 9, 11, 19, 24, 25, 26, 27, 29, 32, 33)
"""RTNLGRP_ LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, IPV4_NETCONF,
IPV6_NETCONF, MDB, MPLS_ROUTE, MPLS_NETCONF, NEXTHOP and BRVLAN."""


class Watch:
    """Listens to ``netns`` from its making to its end."""

    def __init__(self, netns: int) -> None:
        with ExitStack() as sockets:
            self._netns = netns
            self._asking = sockets.enter_context(Netlink(netns=netns))
            self._routing = sockets.enter_context(Netlink(netns=netns, groups=_GROUPS))
            self._ipsec = xfrm.listener(netns)
            if self._ipsec is not None:
                sockets.enter_context(self._ipsec)
            self._generation = nft.generation(netns)
            self._sockets = sockets.pop_all()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._sockets.close()

    def changes(self, network: Network | None) -> list[str]:
        """What has changed, each as one word for people; not what ``network``, which was read meanwhile, holds."""
        rtnl_links.read_one(self._asking, ifname="lo")  # takes the lock
        heard = self._routing.events()
        if heard is None:
            return ["too many to be heard"]
        found = [
            str(kind) for kind, body in heard if network is None or not rtnl_events.says_nothing(kind, body, network)
        ]
        if self._ipsec is not None and self._ipsec.events() != []:
            found.append("IPsec")
        if nft.generation(self._netns) != self._generation:
            found.append("nftables")
        return list(dict.fromkeys(found))
