"""The host's end of a group's network: bridges, and the links whose other end is in a group.

Everything here is done in the namespace that the caller is in, by name, and only to what ckpt made or was told to
use. Links are asked for by netlink, because sysfs may show another namespace than the one we are in.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace

from ckpt.errors import NetworkError
from ckpt.kernel import netlink, rtnl_addresses, rtnl_link_changes, rtnl_links
from ckpt.kernel.netlink import KernelRefusal, Netlink
from ckpt.model.network import Address, Link
from ckpt.records import dataclass

_IFLA_MASTER = 10
_IFLA_IFALIAS = 20
_IFF_UP = 1

MARK = "made by ckpt"
"""The alias of a bridge that ckpt made: how `ckpt clean` knows it when nothing else does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideLink:
    """A link of the host; ``kind`` is empty for a physical one, ``master`` the index of the bridge it is a port of."""

    ifname: str
    ifindex: int
    kind: str
    master: int
    up: bool
    alias: str = ""


def find(ifname: str) -> OutsideLink | None:
    """The link called ``ifname``, or None."""
    return next((link for link in links() if link.ifname == ifname), None)


def links() -> Iterator[OutsideLink]:
    """Every link of the caller's namespace."""
    with Netlink() as kernel:
        found = rtnl_links.read_raw(kernel)
    for raw in found.values():
        yield OutsideLink(
            ifname=raw.ifname,
            ifindex=raw.index,
            kind=raw.kind,
            master=raw.integer(_IFLA_MASTER),
            up=bool(raw.flags & _IFF_UP),
            alias=netlink.text(raw.attributes.get(_IFLA_IFALIAS, b"")),
        )


def addresses() -> tuple[Address, ...]:
    """Every address of the caller's namespace."""
    names = {link.ifindex: link.ifname for link in links()}
    with Netlink() as kernel:
        found = kernel.dump(rtnl_addresses.RTM_GETADDR, rtnl_addresses.ADDRESS.pack(0, 0, 0, 0, 0))
    known = (body for _, body in found if rtnl_addresses.ADDRESS.unpack_from(body)[4] in names)
    return tuple(rtnl_addresses.decode_address(body, names) for body in known)


def ports(bridge: str) -> tuple[str, ...]:
    """The names of the links that are ports of ``bridge``."""
    master = find(bridge)
    return () if master is None else tuple(link.ifname for link in links() if link.master == master.ifindex)


def made_bridges() -> tuple[str, ...]:
    """The bridges that ckpt made."""
    return tuple(link.ifname for link in links() if link.kind == "bridge" and link.alias == MARK)


def is_in_use(bridge: str) -> bool:
    """Whether ``bridge`` has ports, or somebody gave it an address."""
    own = (address for address in addresses() if address.ifname == bridge and address.scope != "link")
    return bool(ports(bridge)) or next(own, None) is not None


def ensure_bridge(ifname: str) -> bool:
    """A bridge called ``ifname``, up; whether it was made now."""
    try:
        with Netlink() as kernel:
            rtnl_link_changes.make(kernel, Link(ifname=ifname, kind="bridge"))
            link = find(ifname)
            if link is not None:
                now = Link(ifname=ifname, kind="bridge", ifindex=link.ifindex)
                rtnl_link_changes.change(kernel, now, replace(now, alias=MARK))
                rtnl_link_changes.set_up(kernel, link.ifindex)
    except KernelRefusal as error:
        if error.errno == errno.EEXIST:
            return False
        raise NetworkError(
            f"the bridge {ifname} cannot be made",
            code="bridge-create",
            details=error.strerror,
            hint="the kernel needs CONFIG_BRIDGE; root needs CAP_NET_ADMIN",
        ) from error
    return True


def delete(ifname: str) -> bool:
    """Remove the link called ``ifname``; whether it was there."""
    link = find(ifname)
    if link is None:
        return False
    try:
        with Netlink() as kernel:
            rtnl_link_changes.delete(kernel, link.ifindex)
    except KernelRefusal as error:
        # The other end's namespace may take it away at this very moment.
        if error.errno == errno.ENODEV:
            return False
        raise NetworkError(
            f"the link {ifname} cannot be removed", code="link-delete", details=error.strerror
        ) from error
    return True
