"""What the running kernel can do, found by trying it in a namespace that is thrown away.

A version number says little about a kernel that a distribution has patched or trimmed, so none is looked at.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from ckpt.kernel import netns, rtnl_link_changes
from ckpt.kernel.netlink import KernelRefusal, Netlink
from ckpt.model.network import Link

CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_CHECKPOINT_RESTORE": 40,
}
"""Those that ckpt and CRIU use, by the numbers of include/uapi/linux/capability.h."""


def missing_capabilities() -> tuple[str, ...]:
    """Which of ``CAPABILITIES`` this process lacks."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    return tuple(name for name, bit in CAPABILITIES.items() if not effective >> bit & 1)


def missing_link_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Which ``kinds`` of links the kernel does not know, even after loading modules."""
    missing = []
    namespace = netns.create()
    try:
        with Netlink(netns=namespace) as kernel:
            for kind in kinds:
                try:
                    rtnl_link_changes.make(kernel, Link(ifname=f"p-{kind}", kind=kind))
                except KernelRefusal as error:
                    # Other refusals come from the kind itself, which is therefore there (a macvlan wants a link below).
                    if error.errno == errno.EOPNOTSUPP:
                        missing.append(kind)
    finally:
        os.close(namespace)
    return tuple(missing)


def has_checkpoint_restore() -> bool:
    """Whether the kernel was built for CRIU (CONFIG_CHECKPOINT_RESTORE)."""
    return Path("/proc/self/map_files").is_dir() and Path("/proc/thread-self/children").exists()
