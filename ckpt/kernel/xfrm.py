"""IPsec: the states and policies of a namespace, read and made again.

States come back with their sequence numbers, replay windows and what of their lifetime is used, so that the peer takes
the next packet for what it is: the one after the last. A state that the kernel has only reserved (it has an SPI, or not
even that, and no key) is the key daemon's to finish and does not travel, nor does the part that a network card plays.
Policies that a socket set for itself go with the socket. Everything is made in the order in which it was first made,
which among policies of one priority decides.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ckpt.errors import NetworkError
from ckpt.kernel import netlink, xfrm_codec
from ckpt.kernel.modules import unloaded
from ckpt.kernel.netlink import KernelRefusal, Netlink, attribute, parse
from ckpt.model.ipsec import NO_IPSEC, Ipsec, XfrmPolicy, XfrmState
from ckpt.model.network import Unread

_NETLINK_XFRM = 6
_NEWSA, _GETSA, _NEWPOLICY, _GETPOLICY = 0x10, 0x12, 0x13, 0x15
_NEWSPDINFO, _GETSPDINFO, _SETDEFAULT, _GETDEFAULT = 0x24, 0x25, 0x27, 0x28
_GROUPS = (3, 4)  # XFRMNLGRP_SA and XFRMNLGRP_POLICY

_DIRECTIONS = ("in", "fwd", "out")
_BLOCK, _ACCEPT = 1, 2
_SOCKET_DIRECTIONS = 3

_HASH_THRESHOLDS = {3: ("4", "32/32"), 4: ("6", "128/128")}

# ESP, AH and IPComp. Others (IPv4 and IPv6 in IPv4) the kernel adds by itself to an IPComp tunnel.
_PROTOCOLS = frozenset({50, 51, 108})


def listener(netns: int) -> Netlink | None:
    """A socket that hears of changes of states and policies; None where this kernel has no IPsec."""
    if unloaded("xfrm_user"):
        return None
    try:
        return Netlink(_NETLINK_XFRM, netns=netns, groups=_GROUPS)
    except OSError:
        return None


def read_ipsec(netns: int, names: Mapping[int, str]) -> tuple[Ipsec, tuple[Unread, ...]]:
    """All of it in ``netns``, and what cannot travel; ``names`` are the links' by their index."""
    unread: list[Unread] = []
    if unloaded("xfrm_user"):
        return NO_IPSEC, ()
    try:
        connection = Netlink(_NETLINK_XFRM, netns=netns)
    except OSError:
        return NO_IPSEC, ()  # this kernel has no IPsec
    with connection:
        # Both are listed from the newest to the oldest.
        bodies = [body for kind, body in connection.dump(_GETSA, b"") if kind == _NEWSA]
        states = [state for body in reversed(bodies) for state in _state(body, names, unread)]
        bodies = [body for kind, body in connection.dump(_GETPOLICY, b"") if kind == _NEWPOLICY]
        policies = [policy for body in reversed(bodies) for policy in _policy(body, names, unread)]
        found = Ipsec(
            states=tuple(states),
            policies=tuple(policies),
            blocked=_read_blocked(connection),
            thresholds=_read_thresholds(connection),
        )
    return found, tuple(unread)


def _state(body: bytes, names: Mapping[int, str], unread: list[Unread]) -> Iterator[XfrmState]:
    state, unknown = xfrm_codec.decode_state(body, names)
    subject = describe(state)
    if state.protocol not in _PROTOCOLS:
        return
    if not state.keys:
        what = "is only reserved; whoever did it must do it again"
        unread.append(Unread(code="xfrm-reserved", subject=subject, what=what))
        return
    attributes = dict(state.attributes)
    if attributes.pop("offload_dev", None):
        what = "is worked by the network card, and will be by the processor"
        unread.append(Unread(code="xfrm-offload", subject=subject, what=what))
    if unknown:
        unread.append(Unread(code="xfrm-attribute", subject=subject, what=f"has unknown attributes {sorted(unknown)}"))
    yield replace(state, attributes=attributes)


def _policy(body: bytes, names: Mapping[int, str], unread: list[Unread]) -> Iterator[XfrmPolicy]:
    policy, unknown = xfrm_codec.decode_policy(body, names)
    subject = describe(policy)
    if policy.direction >= _SOCKET_DIRECTIONS or policy.index & 7 >= _SOCKET_DIRECTIONS:
        what = "was set by a socket for itself, and goes with it"
        unread.append(Unread(code="xfrm-socket-policy", subject=subject, what=what))
        return
    if "offload_dev" in policy.attributes:
        what = "is worked by the network card, and cannot be made here without"
        unread.append(Unread(code="xfrm-offload", subject=subject, what=what))
        return
    if any("expires" in name for name in policy.limits):
        what = "has a lifetime, which will begin again"
        unread.append(Unread(code="xfrm-lifetime", subject=subject, what=what))
    if unknown:
        unread.append(Unread(code="xfrm-attribute", subject=subject, what=f"has unknown attributes {sorted(unknown)}"))
    yield policy


def describe(one: XfrmState | XfrmPolicy) -> str:
    """The name of a state or policy in messages; never a key."""
    if isinstance(one, XfrmState):
        return f"IPsec state {one.source} to {one.destination}, protocol {one.protocol}, SPI {one.spi:#x}"
    direction = ("in", "out", "fwd")[one.direction] if one.direction < _SOCKET_DIRECTIONS else "of a socket"
    return f"IPsec policy {direction} {one.selector.source or 'any'} to {one.selector.destination or 'any'}"


def _read_blocked(connection: Netlink) -> tuple[str, ...]:
    try:
        for kind, body in connection.request(_GETDEFAULT, bytes(4)):
            if kind == _GETDEFAULT:
                return tuple(name for name, action in zip(_DIRECTIONS, body, strict=False) if action == _BLOCK)
    except KernelRefusal:
        pass  # it came with Linux 5.15
    return ()


def _read_thresholds(connection: Netlink) -> dict[str, str]:
    changed: dict[str, str] = {}
    for kind, body in connection.request(_GETSPDINFO, bytes(4)):
        if kind == _NEWSPDINFO:
            found = parse(body, 4)
            for number, (family, default) in _HASH_THRESHOLDS.items():
                value = "{}/{}".format(*found[number][:2]) if number in found else default
                if value != default:
                    changed[family] = value
    return changed


def apply_ipsec(netns: int, wanted: Ipsec, indices: Mapping[str, int]) -> None:
    """Make all of ``wanted`` in a namespace without any. Raises NetworkError that names the state or policy."""
    if wanted == NO_IPSEC:
        return
    with Netlink(_NETLINK_XFRM, netns=netns) as connection:
        for state in wanted.states:
            _request(connection, _NEWSA, xfrm_codec.encode_state(state, indices), describe(state))
        thresholds = b"".join(
            attribute(number, bytes(map(int, wanted.thresholds[family].split("/"))))
            for number, (family, _) in _HASH_THRESHOLDS.items()
            if family in wanted.thresholds
        )
        if thresholds:
            _request(connection, _NEWSPDINFO, bytes(4) + thresholds, "IPsec policies' hash thresholds")
        for policy in wanted.policies:
            _request(connection, _NEWPOLICY, xfrm_codec.encode_policy(policy, indices), describe(policy))
        if wanted.blocked:
            actions = (_BLOCK if name in wanted.blocked else _ACCEPT for name in _DIRECTIONS)
            _request(connection, _SETDEFAULT, struct.pack("=3Bx", *actions), "IPsec default policy")


def _request(connection: Netlink, kind: int, body: bytes, subject: str) -> None:
    try:
        connection.request(kind, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)
    except KernelRefusal as error:
        raise NetworkError(f"cannot make the {subject}", code="xfrm-refused", details=error.strerror) from error
