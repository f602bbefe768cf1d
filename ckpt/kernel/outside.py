"""The host's end of a group's network: bridges, and the links whose other end is in a group.

Everything here is done in the namespace that the caller is in, by name, and only to what ckpt made or was told to
use. Links are asked for by netlink, because sysfs may show another namespace than the one we are in.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ckpt.errors import NetworkError
from ckpt.kernel import netlink
from ckpt.kernel.netlink import KernelRefusal, Netlink

# include/uapi/linux/rtnetlink.h and if_link.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_GETADDR = 16, 17, 18, 22
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 10, 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_UP = 1
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideLink:
    """A link of the host; ``kind`` is empty for a physical one, ``master`` the index of the bridge it is a port of."""

    ifname: str
    ifindex: int
    kind: str
    master: int
    up: bool


def find(ifname: str) -> OutsideLink | None:
    """The link called ``ifname``, or None."""
    return next((link for link in links() if link.ifname == ifname), None)


def links() -> Iterator[OutsideLink]:
    """Every link of the caller's namespace."""
    with Netlink() as kernel:
        for _, body in kernel.dump(_RTM_GETLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            _, _, ifindex, flags, _ = _IFINFO.unpack_from(body)
            found = netlink.parse(body, _IFINFO.size)
            info = netlink.parse(found.get(_IFLA_LINKINFO, b""))
            yield OutsideLink(
                ifname=netlink.text(found[_IFLA_IFNAME]),
                ifindex=ifindex,
                kind=netlink.text(info.get(_IFLA_INFO_KIND, b"")),
                master=netlink.number(found.get(_IFLA_MASTER, b"")),
                up=bool(flags & _IFF_UP),
            )


def addresses() -> tuple[tuple[str, str], ...]:
    """Every address of the caller's namespace, without prefix length, each after the name of its link."""
    names = {link.ifindex: link.ifname for link in links()}
    found = []
    with Netlink() as kernel:
        for _, body in kernel.dump(_RTM_GETADDR, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            ifindex = _IFADDR.unpack_from(body)[4]
            values = netlink.parse(body, _IFADDR.size)
            local = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS, b"")
            if local:
                found.append((names.get(ifindex, str(ifindex)), netlink.ip_text(local)))
    return tuple(found)


def ports(bridge: str) -> tuple[str, ...]:
    """The names of the links that are ports of ``bridge``."""
    master = find(bridge)
    return () if master is None else tuple(link.ifname for link in links() if link.master == master.ifindex)


def ensure_bridge(ifname: str) -> bool:
    """A bridge called ``ifname``, up; whether it was made now."""
    info = netlink.nested(_IFLA_LINKINFO, netlink.attribute(_IFLA_INFO_KIND, netlink.string("bridge")))
    payload = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, _IFF_UP, _IFF_UP)
    payload += netlink.attribute(_IFLA_IFNAME, netlink.string(ifname)) + info
    try:
        with Netlink() as kernel:
            kernel.request(_RTM_NEWLINK, payload, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)
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
            kernel.request(_RTM_DELLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, link.ifindex, 0, 0))
    except KernelRefusal as error:
        # The other end's namespace may take it away at this very moment.
        if error.errno == errno.ENODEV:
            return False
        raise NetworkError(
            f"the link {ifname} cannot be removed", code="link-delete", details=error.strerror
        ) from error
    return True
