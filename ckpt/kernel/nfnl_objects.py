"""Netfilter's named objects outside nftables: nfacct's counters and conntrack's timeout policies.

iptables rules name them, so they are there before the rules. Each travels as its own netlink attributes, without its
use count. Helpers of conntrack that are processes are only told of: such a helper registers itself when it starts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ckpt.errors import NetworkError
from ckpt.kernel import netlink
from ckpt.kernel.modules import unloaded
from ckpt.kernel.netlink import KernelRefusal, Netlink, attribute, pairs, parse
from ckpt.model.filtering import NamedObject
from ckpt.model.network import Unread

# The kind: its subsystem, its module, and the attributes that make one (the rest are use counts and padding).
_KINDS = {
    "nfacct": (7, "nfnetlink_acct", frozenset({1, 2, 3, 5, 6})),
    "timeout": (8, "nfnetlink_cttimeout", frozenset({1, 2, 3, 4})),
}
_HELPERS, _HELPERS_MODULE = 9, "nfnetlink_cthelper"
_NEW, _GET = 0, 1
_NAME, _POLICY = 1, 4
_HEADER = struct.pack("=BBH", 0, 0, 0)


def read_objects(netns: int) -> tuple[tuple[NamedObject, ...], tuple[Unread, ...]]:
    """Every named object of ``netns``, and the helpers that do not travel."""
    found = [
        NamedObject(kind=kind, name=netlink.text(parse(body, 4)[_NAME]), attributes=_own(body, kept))
        for kind, (subsystem, module, kept) in _KINDS.items()
        for body in _listed(netns, subsystem, module)
    ]
    unread = [
        Unread(
            code="conntrack-helper",
            subject=f"conntrack helper {netlink.text(parse(body, 4)[_NAME])}",
            what="is a process, which registers it anew when it starts",
        )
        for body in _listed(netns, _HELPERS, _HELPERS_MODULE)
    ]
    return tuple(found), tuple(unread)


def _listed(netns: int, subsystem: int, module: str) -> Iterator[bytes]:
    if unloaded(module):
        return
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        try:
            messages = connection.dump(subsystem << 8 | _GET, _HEADER)
        except KernelRefusal:
            return  # this kernel has none of them
    for kind, body in messages:
        if kind == subsystem << 8 | _NEW:
            yield body


def _own(body: bytes, kept: frozenset[int]) -> bytes:
    return b"".join(
        attribute(kind | netlink.NLA_F_NESTED if kind == _POLICY else kind, value)
        for kind, value in pairs(body, 4)
        if kind in kept
    )


def make_objects(netns: int, objects: Sequence[NamedObject]) -> None:
    """Make all ``objects``. Raises NetworkError that names the one that is refused."""
    if not objects:
        return
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        for one in objects:
            try:
                subsystem = _KINDS[one.kind][0]
                kind = subsystem << 8 | _NEW
                connection.request(kind, _HEADER + one.attributes, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)
            except (KernelRefusal, KeyError) as error:
                details = error.strerror if isinstance(error, KernelRefusal) else "there is no such kind"
                raise NetworkError(
                    f"cannot make the {one.kind} object {one.name}", code="netfilter-object", details=details
                ) from error
