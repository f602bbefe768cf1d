"""Conntrack expectations: the flows that a helper (FTP, SIP, TFTP …) has read of in another flow, and waits for.

An expectation belongs to a tracked flow, so entries are there before it is made. The kernel gives a new one the whole
time of its helper and takes the time that is left only as a change of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from ckpt.errors import NetworkError
from ckpt.kernel import netlink
from ckpt.kernel.conntrack import decode_tuple, encode_tuple
from ckpt.kernel.netlink import KernelRefusal, Netlink, attribute, nested, number, parse
from ckpt.model.network import Expectation, Unread

_SUBSYSTEM = 2 << 8
_EXP_NEW = _SUBSYSTEM | 0
_EXP_GET = _SUBSYSTEM | 1

_MASTER, _TUPLE, _MASK, _TIMEOUT, _ID, _HELPER, _ZONE, _FLAGS, _CLASS, _NAT, _FUNCTION = range(1, 12)
_NAT_DIRECTION, _NAT_TUPLE = 1, 2

_AF_INET, _AF_INET6 = 2, 10
_USERSPACE = 0x4


def read_expectations(netns: int) -> tuple[tuple[Expectation, ...], tuple[Unread, ...]]:
    """Every expectation of ``netns``, and what of them cannot travel."""
    found: list[Expectation] = []
    unread: list[Unread] = []
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        try:
            messages = connection.dump(_EXP_GET, struct.pack("=BBH", 0, 0, 0))
        except KernelRefusal:
            return (), ()  # a kernel without conntrack
    for kind, body in messages:
        if kind == _EXP_NEW:
            one = _decode(body)
            found.append(one)
            if one.flags & _USERSPACE:
                what = "is of a helper that is a process, and will be of none"
                unread.append(Unread(code="conntrack-expectation", subject=describe(one), what=what))
    return tuple(one for one in found if not one.flags & _USERSPACE), tuple(unread)


def describe(one: Expectation) -> str:
    """The expectation in messages."""
    return f"conntrack expectation of {one.flow.destination}:{one.flow.destination_port}, protocol {one.protocol}"


def _decode(body: bytes) -> Expectation:
    found = parse(body, 4)
    protocol, flow = decode_tuple(found[_TUPLE])
    _, mask = decode_tuple(found[_MASK])
    master_protocol, master = decode_tuple(found[_MASTER])
    nat = parse(found.get(_NAT, b""))
    return Expectation(
        flow=flow,
        mask=mask,
        protocol=protocol,
        master=master,
        master_protocol=master_protocol,
        timeout=number(found.get(_TIMEOUT, b""), "be"),
        helper=netlink.text(found.get(_HELPER, b"")),
        zone=number(found.get(_ZONE, b""), "be"),
        flags=number(found.get(_FLAGS, b""), "be"),
        policy=number(found.get(_CLASS, b""), "be"),
        function=netlink.text(found.get(_FUNCTION, b"")),
        nat=decode_tuple(nat[_NAT_TUPLE])[1] if _NAT_TUPLE in nat else None,
        nat_direction=number(nat.get(_NAT_DIRECTION, b""), "be"),
    )


def create_expectations(netns: int, wanted: Iterable[Expectation]) -> None:
    """Create every expectation. Raises NetworkError that names it."""
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        for one in wanted:
            body = _encode(one)
            try:
                connection.request(_EXP_NEW, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)
                connection.request(_EXP_NEW, body, netlink.NLM_F_CREATE)
            except KernelRefusal as error:
                raise NetworkError(
                    f"cannot create the {describe(one)}", code="conntrack-refused", details=error.strerror
                ) from error


def _encode(one: Expectation) -> bytes:
    parts = [
        nested(_MASTER, *encode_tuple(one.master, one.master_protocol)),
        nested(_TUPLE, *encode_tuple(one.flow, one.protocol)),
        nested(_MASK, *encode_tuple(one.mask, one.protocol)),
        attribute(_TIMEOUT, struct.pack(">I", one.timeout)),
        attribute(_FLAGS, struct.pack(">I", one.flags)),
        attribute(_CLASS, struct.pack(">I", one.policy)),
    ]
    if one.helper:
        parts.append(attribute(_HELPER, netlink.string(one.helper)))
    if one.zone:
        parts.append(attribute(_ZONE, struct.pack(">H", one.zone)))
    if one.function:
        parts.append(attribute(_FUNCTION, netlink.string(one.function)))
    if one.nat:
        direction = attribute(_NAT_DIRECTION, struct.pack(">I", one.nat_direction))
        parts.append(nested(_NAT, direction, nested(_NAT_TUPLE, *encode_tuple(one.nat, one.protocol))))
    family = _AF_INET6 if ":" in one.flow.destination else _AF_INET
    return struct.pack("=BBH", family, 0, 0) + b"".join(parts)
