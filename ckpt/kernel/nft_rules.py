"""Rules of nftables as netlink lists of expressions: what of a listed rule must change before the kernel takes it.

A listed rule is nearly what makes it. The exceptions are known one by one: values that an expression always shows and
refuses to be told, the protocol that iptables extensions are checked against and that is kept only as the expressions
that match it, and the chains without a name of their own, which must be filled before a rule takes them for its block.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping

from ckpt.kernel import netlink
from ckpt.kernel.netlink import Attributes, attribute, number, pairs, parse

RULE_CHAIN, RULE_EXPRESSIONS = 2, 4
_EXPRESSION, _NAME, _DATA = 1, 1, 2

_META_L4PROTO = 16
# The protocol's place in the IPv4 and the IPv6 header: base, offset and length.
_PROTOCOL_PLACES = ((1, 9, 1), (1, 6, 1))
_COMPAT_INVERT = 0x2

_DYNSET_TIMEOUT = 6
_EXTHDR_OFFSET, _EXTHDR_LEN, _EXTHDR_FLAGS, _EXTHDR_OP, _EXTHDR_SREG, _EXTHDR_DREG = 3, 4, 5, 6, 7, 1
_EXTHDR_OP_TCPOPT = 1
_OSF_FLAGS = 3


def expressions(listed: bytes) -> Iterator[tuple[str, Attributes]]:
    """The name and the attributes of each expression of a list."""
    for _, value in pairs(listed):
        parts = parse(value)
        yield netlink.text(parts.get(_NAME, b"")), parse(parts.get(_DATA, b""))


def settable(listed: bytes) -> bytes:
    """The list without what the kernel shows of an expression but refuses to be told."""
    result: list[bytes] = []
    for _, value in pairs(listed):
        parts = parse(value)
        name, data = netlink.text(parts.get(_NAME, b"")), parts.get(_DATA, b"")
        refused = _refused(name, parse(data))
        if refused:
            kept = b"".join(attribute(kind, item) for kind, item in pairs(data) if kind not in refused)
            value = attribute(_NAME, parts[_NAME]) + attribute(_DATA, kept)
        result.append(attribute(_EXPRESSION, value))
    return b"".join(result)


def _refused(name: str, data: Mapping[int, bytes]) -> set[int]:
    empty = {kind for kind, value in data.items() if not any(value)}
    if name == "dynset":
        return empty & {_DYNSET_TIMEOUT}  # nft_dynset_init: a set without timeouts takes none, not even 0
    if name == "osf":
        return empty & {_OSF_FLAGS}
    if name == "exthdr" and _EXTHDR_DREG not in data and number(data.get(_EXTHDR_OP, b""), "be") == _EXTHDR_OP_TCPOPT:
        # Without a destination it sets a TCP option, or without a source too, takes it out of the packet.
        return {_EXTHDR_FLAGS} if _EXTHDR_SREG in data else {_EXTHDR_FLAGS, _EXTHDR_OFFSET, _EXTHDR_LEN}
    return set()


def compat_protocol(listed: bytes) -> tuple[int, int] | None:
    """The transport protocol that a rule with iptables extensions is about, and the flag for all others but it."""
    found = list(expressions(listed))
    if not any(name in ("match", "target") for name, _ in found):
        return None
    for (name, loaded), (compared, against) in itertools.pairwise(found):
        of_meta = name == "meta" and number(loaded.get(2, b""), "be") == _META_L4PROTO
        place = tuple(number(loaded.get(kind, b""), "be") for kind in (2, 3, 4))
        if (of_meta or (name == "payload" and place in _PROTOCOL_PLACES)) and compared == "cmp":
            data = parse(against.get(3, b"")).get(1, b"")
            inverted = number(against.get(2, b""), "be") == 1
            return data[0] if data else 0, _COMPAT_INVERT if inverted else 0
    return None


def encode_compat(listed: bytes) -> bytes:
    """What NFTA_RULE_COMPAT holds for the rule; empty when it needs none."""
    found = compat_protocol(listed)
    return b"".join(attribute(kind, struct.pack(">I", value)) for kind, value in enumerate(found or (), 1))


def order(rules: Iterable[bytes], blocks: set[bytes]) -> Iterator[bytes]:
    """The rules (each as its attributes), those of ``blocks`` before the rule that jumps there.

    ``blocks`` are the names of the chains that belong to one rule; the kernel adds nothing to one that is taken.
    """
    by_chain: dict[bytes, list[bytes]] = {}
    for rule in rules:
        by_chain.setdefault(parse(rule)[RULE_CHAIN], []).append(rule)
    for chain in [name for name in by_chain if name not in blocks]:
        yield from _with_blocks(by_chain.pop(chain), by_chain, blocks)
    for rest in by_chain.values():
        yield from rest


def _with_blocks(rules: Iterable[bytes], by_chain: dict[bytes, list[bytes]], blocks: set[bytes]) -> Iterator[bytes]:
    for rule in rules:
        for name, data in expressions(parse(rule).get(RULE_EXPRESSIONS, b"")):
            chain = parse(parse(data.get(2, b"")).get(2, b"")).get(2, b"") if name == "immediate" else b""
            if chain in blocks:
                yield from _with_blocks(by_chain.pop(chain, []), by_chain, blocks)
        yield rule
