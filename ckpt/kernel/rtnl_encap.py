"""Lightweight tunnels: what a route or a next hop puts around its packets.

The kernel takes back the attributes of an encapsulation as it gave them, so they stay bytes, without the counters
that some hold. The exception is a BPF program, of which only a name is shown.
"""

from __future__ import annotations

from ckpt.kernel import netlink
from ckpt.kernel.netlink import attribute, nested, number, u16
from ckpt.kernel.rewriting import rewrite, zeros

_TYPES = {
    1: "mpls",
    2: "ip",
    3: "ila",
    4: "ip6",
    5: "seg6",
    6: "bpf",
    7: "seg6local",
    8: "rpl",
    9: "ioam6",
    10: "xfrm",
}
_NUMBERS = {name: kind for kind, name in _TYPES.items()}

_SEG6_LOCAL_BPF = 8
_SEG6_LOCAL_COUNTERS = 10


def decode(kind: bytes, data: bytes) -> tuple[str, bytes]:
    """The name and the data of RTA_ENCAP_TYPE and RTA_ENCAP."""
    name = _TYPES.get(number(kind), str(number(kind)))
    return name, _without_counters(data) if name == "seg6local" else data


def why_not(name: str, data: bytes) -> str:
    """Why an encapsulation cannot be made again, empty when it can."""
    if name == "bpf" or (name == "seg6local" and _SEG6_LOCAL_BPF in netlink.parse(data)):
        return "runs a BPF program on its packets"
    if name not in _NUMBERS:
        return f"has an encapsulation of the unknown type {name}"
    return ""


def encode(name: str, data: bytes, *, kind_attribute: int, data_attribute: int) -> bytes:
    """The two attributes, by the numbers that they have in the message; nothing without a name."""
    if not name:
        return b""
    return attribute(kind_attribute, u16(_NUMBERS[name])) + nested(data_attribute, data)


def _without_counters(data: bytes) -> bytes:
    """Counters begin anew: their values are zeros, which also ask for them."""
    return rewrite(data, {_SEG6_LOCAL_COUNTERS: lambda counters: rewrite(counters, dict.fromkeys((2, 3, 4), zeros))})
