"""Whether the kernel took the options that links were given.

It passes over what it does not know in IFLA_INFO_DATA, without a word. So links are read again when they are made, and
each option is looked for. One that this kernel lacks altogether is missed only where it said something else than what
such a kernel does anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ckpt.kernel import rtnl_kinds
from ckpt.kernel.rtnl_tunnels import vxlan_reserved_bits
from ckpt.model.network import Link

_UNLIMITED = {"gso_max_segs": 65535}
_UNLIMITED_SIZE = 65536


def untaken(wanted: Link, now: Link, *, master_kind: str = "") -> Iterator[str]:
    """What ``wanted`` says and ``now``, its link as it was made, does not; each as a line for people."""
    if (wanted.options, wanted.port_options, wanted.limits) == (now.options, now.port_options, now.limits):
        return
    later = rtnl_kinds.SET_LATER.get(wanted.kind, frozenset()) | rtnl_kinds.NOT_SHOWN.get(wanted.kind, frozenset())
    options = {name: value for name, value in wanted.options.items() if name not in later}
    lacked = {"reserved_bits": vxlan_reserved_bits(options), **rtnl_kinds.LACKED.get(wanted.kind, {})}
    yield from _missing(options, now.options, lacked)
    if wanted.master and wanted.master == now.master:
        yield from _missing(wanted.port_options, now.port_options, rtnl_kinds.LACKED_BY_PORTS.get(master_kind, {}))
    for name, limit in wanted.limits.items():
        there = now.limits.get(name, _UNLIMITED.get(name, _UNLIMITED_SIZE))
        if there != limit:
            yield f"{name} is {there} and not {limit}"


def _missing(wanted: Mapping[str, str], now: Mapping[str, str], lacked: Mapping[str, str]) -> Iterator[str]:
    for name, value in wanted.items():
        if name in now and now[name] != value:
            yield f"{name} is {now[name]} and not {value}"
        elif name not in now and value != lacked.get(name, "0"):
            yield f"{name} {value} is not known to this kernel"
