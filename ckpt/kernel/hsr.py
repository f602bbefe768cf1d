"""Which version of its protocol an HSR ring speaks: the kernel is told it, and tells nobody.

But each node of a ring says every two seconds that it is there (HSR_LIFE_CHECK_INTERVAL), in frames of which the type
is that of the version, as of all its frames (hsr_fill_tag, net/hsr/hsr_forward.c). So what the ring's own ports send is
listened to for that long; nothing is sent. One that is down says nothing, and its version stays unknown. PRP has but
one version, and needs no listening.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ckpt.kernel import netlink
from ckpt.kernel.netns import entered
from ckpt.kernel.rtnl_stacked import HSR_VERSION, RING_PORTS
from ckpt.model.network import Link

KIND = "hsr"

_ANY_PROTOCOL = 3
_PRP = "1"
_VERSIONS = {0x88FB: "0", 0x892F: "1"}
# An interval, and some time for a kernel that is busy.
_SECONDS = 2.5


def with_versions(netns: int, links: Sequence[Link]) -> tuple[Link, ...]:
    """``links`` of ``netns``, in which rings that are up have the option of their version."""
    ports = {str(link.ifindex): link for link in links if link.up}
    below = {
        link.ifname: [ports[link.options[name]] for name in RING_PORTS[:2] if link.options.get(name) in ports]
        for link in links
        if link.kind == KIND and link.up and link.options.get("protocol") != _PRP
    }
    versions = _listen(netns, {port.ifname: ring for ring, found in below.items() for port in found}, links)
    if not versions:
        return tuple(links)
    return tuple(
        replace(link, options={**link.options, HSR_VERSION: versions[link.ifname]}) if link.ifname in versions else link
        for link in links
    )


def _listen(netns: int, rings: dict[str, str], links: Iterable[Link]) -> dict[str, str]:
    """The versions by the names of the rings; ``rings`` are by their ports."""
    macs = {link.ifname: netlink.mac_bytes(link.mac) for link in links if link.ifname in rings and link.mac}
    heard: dict[str, str] = {}
    with contextlib.ExitStack() as opened:
        sockets = list(_open(netns, macs, opened))
        deadline = time.monotonic() + _SECONDS
        while set(rings.values()) - heard.keys() and (left := deadline - time.monotonic()) > 0:
            for one in select.select(sockets, (), (), left)[0]:
                frame, (ifname, _, way, *_) = one.recvfrom(64)
                version = _VERSIONS.get(int.from_bytes(frame[12:14], "big"))
                # What others have sent is only passed on, with their addresses.
                if version and way == socket.PACKET_OUTGOING and frame[6:12] == macs[ifname]:
                    heard[rings[ifname]] = version
    return heard


def _open(netns: int, names: Iterable[str], opened: contextlib.ExitStack) -> Iterator[socket.socket]:
    with entered(netns):
        for ifname in names:
            one = opened.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            one.bind((ifname, _ANY_PROTOCOL))
            yield one
