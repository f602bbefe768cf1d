"""Persistent TUN and TAP links, which are made by ioctls and not by netlink.

The device file that makes one is bound to the namespace in which it was opened, so it is opened inside.
"""

from __future__ import annotations

import fcntl
import os
import struct

from ckpt.kernel.netlink import KernelRefusal
from ckpt.kernel.netns import entered
from ckpt.model.network import Link

_DEVICE = "/dev/net/tun"

# include/uapi/linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_TUNSETGROUP = 0x400454CE
_TUNSETIFINDEX = 0x400454DA
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000


def make(netns: int, link: Link) -> None:
    """Make ``link`` in ``netns`` with its name, index, kind, owner and group, persistent. Raises KernelRefusal."""
    options = link.options
    flags = int(options["type"])
    flags |= 0 if options.get("pi") == "1" else _IFF_NO_PI
    flags |= _IFF_VNET_HDR if options.get("vnet_hdr") == "1" else 0
    flags |= _IFF_MULTI_QUEUE if options.get("multi_queue") == "1" else 0
    try:
        with entered(netns):
            device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            if link.ifindex:
                fcntl.ioctl(device, _TUNSETIFINDEX, struct.pack("=I", link.ifindex))
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", link.ifname.encode(), flags))
            if "owner" in options:
                fcntl.ioctl(device, _TUNSETOWNER, int(options["owner"]))
            if "group" in options:
                fcntl.ioctl(device, _TUNSETGROUP, int(options["group"]))
            fcntl.ioctl(device, _TUNSETPERSIST, 1)
        finally:
            os.close(device)
    except OSError as error:
        raise KernelRefusal(error.errno or 0, _DEVICE) from error
