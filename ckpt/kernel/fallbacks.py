"""Fresh network namespaces in which no link of a tunnel driver is in the way.

Such links come with the namespace, and can then not be had away. Only for all namespaces at once does the kernel let
one choose that there are none (``net.core.fb_tunnels_only_for_init_net``). So that is chosen for the moment in which a
namespace is made which needs it, and for none else, and taken back; it changes nothing of namespaces that are there.
A driver that is loaded later brings its links into every namespace; so those of the tunnels that are wanted are loaded
before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Set
from pathlib import Path

from ckpt.errors import NetworkError
from ckpt.kernel import netns, probe, rtnl_links
from ckpt.kernel.netlink import Netlink
from ckpt.kernel.rtnl_links import LinkReader
from ckpt.model import fallback
from ckpt.model.network import Link, Network
from ckpt.model.travel import TUNNELS

_SETTING = Path("/proc/sys/net/core/fb_tunnels_only_for_init_net")
_EVERYWHERE, _ONLY_INITIAL = "0", "1"


def create_for(network: Network) -> int:
    """A descriptor of a fresh namespace in which ``network`` can be made.

    Raises NetworkError (``fallback-device``) when a link of the kernel's own stays in the way.
    """
    _load({one.kind for one in network.links if fallback.travels(one, network)} & TUNNELS)
    namespace, reasons = _create(network)
    if not reasons:
        return namespace
    os.close(namespace)
    with _none_made():
        namespace, reasons = _create(network)
    if reasons:
        os.close(namespace)
        raise NetworkError(
            "links of tunnel drivers are in the way of the group's",
            code="fallback-device",
            details="; ".join(reasons),
            hint="sysctl net.core.fb_tunnels_only_for_init_net=1, and try again",
        )
    return namespace


def read() -> tuple[Link, ...]:
    """The links that drivers, as far as they are loaded, make in a fresh namespace."""
    with _fresh() as (_, links):
        return tuple(link for link in links if link.fallback)


def avoidable() -> bool:
    """Whether a namespace can be made without them, as ``create_for`` does where they are in the way."""
    return os.access(_SETTING, os.W_OK)


def _load(kinds: Set[str]) -> None:
    """Have the kernel load the drivers of ``kinds``, as it does when it is asked for a link of each."""
    probe.missing_link_kinds(sorted(kinds))


def _create(network: Network) -> tuple[int, tuple[str, ...]]:
    """A fresh namespace, and why ``network`` cannot be made in it."""
    with _fresh() as (namespace, links):
        return os.dup(namespace), fallback.in_the_way(network, Network(links=links))


@contextlib.contextmanager
def _fresh() -> Iterator[tuple[int, tuple[Link, ...]]]:
    """A fresh namespace for the time of the block, and its links."""
    namespace = netns.create()
    try:
        with Netlink(netns=namespace) as connection:
            links = LinkReader(rtnl_links.read_raw(connection), caller={}, caller_nsid=-1).links()
        yield namespace, links
    finally:
        os.close(namespace)


@contextlib.contextmanager
def _none_made() -> Iterator[None]:
    """For the time of the block, namespaces are made without such links, where that can be chosen."""
    with contextlib.ExitStack() as undo:
        # A kernel without it, or a namespace in which it is not shown: what is made is looked at.
        with contextlib.suppress(OSError):
            if _SETTING.read_text().strip() == _EVERYWHERE:
                _SETTING.write_text(_ONLY_INITIAL)
                undo.callback(_SETTING.write_text, _EVERYWHERE)
        yield
