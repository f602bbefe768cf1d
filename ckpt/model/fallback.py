"""The links that tunnel drivers make by themselves (``tunl0``, ``sit0`` …): which travel, and which are in the way.

Every namespace gets one of each driver that is loaded, unless the host's administrator said otherwise; it can be
neither deleted nor numbered anew. One that nobody has used is none of the group's: it is there on the target, or it is
not. One that was used is made like any other link where the target's kernel has not made it. Where the kernel's own are
in the way of what the group needs, the namespace has to be made without them (`kernel/fallbacks`). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from ckpt.model.network import Link, Network


def travels(link: Link, network: Network) -> bool:
    """Whether a restore needs ``link`` of ``network``: every one but a fallback device that nobody has used."""
    return not link.fallback or _is_used(link, network)


def _is_used(link: Link, network: Network) -> bool:
    return (
        link.up
        or bool(link.master or link.alias or link.altnames or link.group)
        or any(one.ifname == link.ifname for one in network.addresses)
        or any(one.counterpart is not None and one.counterpart.ifname == link.ifname for one in network.links)
    )


def in_the_way(wanted: Network, observed: Network) -> tuple[str, ...]:
    """Why ``wanted`` cannot be made in the fresh namespace that reads as ``observed``, each reason for people."""
    own = [link for link in observed.links if link.fallback]
    return tuple(reason for link in own for reason in _conflicts(link, wanted))


def _conflicts(own: Link, wanted: Network) -> Iterator[str]:
    for link in wanted.links:
        if not travels(link, wanted):
            continue
        if link.ifname != own.ifname:
            if link.ifindex == own.ifindex:
                yield f"the index {own.ifindex} of {link.ifname} is taken by {own.ifname}"
        elif not link.fallback:
            yield f"the name {link.ifname} is taken by the driver's own link"
        elif link.ifindex not in (0, own.ifindex):
            yield f"{own.ifname} has the index {own.ifindex} and not {link.ifindex}"
        elif any(own.options.get(name) != value for name, value in link.options.items()):
            yield f"the options of {own.ifname} were changed"
