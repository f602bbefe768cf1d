"""nftables as the kernel itself lists them: every object's own netlink attributes, read and given back.

The text that nft prints is for people, and not all that the kernel holds can be said in it: rules of a newer nft, the
iptables extensions of iptables-nft, comments with quotes, the last use of a rule. So each object travels as the
attributes of its message (``NFTA_*``), without those that the kernel gives anew (handles, use counts, owners). Tables
come first, then chains, sets and named objects, then what refers to them: elements, and rules in their order. All
tables are loaded as one transaction: every rule is there, or none.

What the kernel shows to nobody starts anew: the tokens that a limit has left, and where ``numgen inc`` stands.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence

from ckpt.errors import NetworkError
from ckpt.kernel import netlink, nft_rules
from ckpt.kernel.netlink import BatchRefusal, KernelRefusal, Netlink, attribute, nested, number, pairs, parse
from ckpt.model.network import NftObject, NftTable

_SUBSYSTEM = 10

# The kinds in the order in which they can be made: the message that makes one, the one that lists them (a number, or
# None for what is listed by set), and the attributes that belong to the object and not to the kernel.
_KINDS: dict[str, tuple[int, int | None, frozenset[int]]] = {
    "table": (0, 1, frozenset({1, 2, 6})),
    "flowtable": (22, 23, frozenset({1, 2, 3, 7})),
    "chain": (3, 4, frozenset({1, 3, 4, 5, 7, 8, 10, 12})),
    "set": (9, 10, frozenset({1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18})),
    "object": (18, 19, frozenset({1, 2, 3, 4, 8})),
    "elements": (12, None, frozenset({1, 2, 3})),
    "rule": (6, 7, frozenset({1, 2, 4, 7})),
}
_NFT_MSG_NEWSETELEM = 12
_NFT_MSG_GETSETELEM = 13

FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NUMBERS = {name: value for value, name in FAMILIES.items()}

_NAME, _FLAGS, _ELEMENTS, _EXPRESSIONS, _COMPAT, _SET_ID = 1, 2, 3, 4, 5, 10
_SET_FLAGS = 3
_OWNER_FLAGS = 0x2 | 0x4
_INTERVAL, _CONCATENATED = 0x4, 0x80
_ELEMENT, _ELEMENT_KEY, _ELEMENT_FLAGS = 1, 1, 3
# NFTA_TARGET_NAME and _INFO; in struct xt_ct_target_info_v1, where the name of the timeout policy begins.
_TARGET_NAME, _TARGET_INFO, _CT_TIMEOUT = 1, 3, 28
_ELEMENTS_BYTES = 30_000
_CHAIN_NAME, _CHAIN_FLAGS, _CHAIN_BINDING = 3, 10, 0x4


def header(family: int = 0) -> bytes:
    """The ``struct nfgenmsg`` that every nfnetlink message begins with."""
    return struct.pack("=BBH", family, 0, 0)


def read_objects(connection: Netlink) -> dict[tuple[str, str], tuple[NftObject, ...]]:
    """The objects of each table, by its family and name, in the order in which they can be made."""
    found: dict[tuple[str, str], list[NftObject]] = {}
    intervals: set[tuple[int, bytes, bytes]] = set()
    sets: list[tuple[int, bytes, bytes]] = []
    for kind, (made_by, listed_by, kept) in _KINDS.items():
        if listed_by is None:
            messages = _read_elements(connection, sets, intervals)
        else:
            messages = _listed(connection, listed_by, made_by)
        for body in messages:
            parts = parse(body, 4)
            table = netlink.text(parts[_NAME])
            if kind == "set":
                one = (body[0], parts[_NAME], parts[2])
                sets.append(one)
                if number(parts.get(_SET_FLAGS, b""), "be") & (_INTERVAL | _CONCATENATED) == _INTERVAL:
                    intervals.add(one)
            key = (FAMILIES.get(body[0], str(body[0])), table)
            found.setdefault(key, []).append(NftObject(kind=kind, attributes=_own(kind, body, kept)))
    return {key: _ordered(objects) for key, objects in found.items()}


def _ordered(objects: Sequence[NftObject]) -> tuple[NftObject, ...]:
    """The objects of a table, its rules in the order in which they can be made."""
    chains = [parse(one.attributes) for one in objects if one.kind == "chain"]
    blocks = {one[_CHAIN_NAME] for one in chains if number(one.get(_CHAIN_FLAGS, b""), "be") & _CHAIN_BINDING}
    rules = nft_rules.order((one.attributes for one in objects if one.kind == "rule"), blocks)
    others = (one for one in objects if one.kind != "rule")
    return (*others, *(NftObject(kind="rule", attributes=rule) for rule in rules))


def _listed(connection: Netlink, listed_by: int, made_by: int) -> Iterator[bytes]:
    try:
        messages = connection.dump(_SUBSYSTEM << 8 | listed_by, header())
    except KernelRefusal:
        if made_by in (18, 22):
            return  # a kernel without named objects or flowtables
        raise
    for kind, body in messages:
        if kind == _SUBSYSTEM << 8 | made_by:
            yield body


def _own(kind: str, body: bytes, kept: frozenset[int]) -> bytes:
    """The attributes that are the object's own, with nesting flags as the kernel wrote them."""
    parts: list[bytes] = []
    offset = 4
    while offset + 4 <= len(body):
        length, number_ = struct.unpack_from("=HH", body, offset)
        value = body[offset + 4 : offset + length]
        plain = number_ & ~netlink.NLA_F_NESTED
        if plain in kept:
            if kind == "table" and plain == _FLAGS:
                value = struct.pack(">I", number(value, "be") & ~_OWNER_FLAGS)
            elif kind == "rule" and plain == _EXPRESSIONS:
                value = nft_rules.settable(value)
            parts.append(attribute(number_, value))
        offset += (length + 3) & ~3
    return b"".join(parts)


def _read_elements(
    connection: Netlink, sets: Sequence[tuple[int, bytes, bytes]], intervals: set[tuple[int, bytes, bytes]]
) -> Iterator[bytes]:
    """Messages as for new elements, of every set that has some, none longer than a netlink attribute may be."""
    for one in sets:
        family, table, name = one
        request = header(family) + attribute(1, table) + attribute(2, name)
        elements: list[bytes] = []
        for kind, body in connection.dump(_SUBSYSTEM << 8 | _NFT_MSG_GETSETELEM, request):
            if kind == _SUBSYSTEM << 8 | _NFT_MSG_NEWSETELEM:
                elements += [value for _, value in pairs(parse(body, 4).get(_ELEMENTS, b""))]
        if one in intervals:
            # They are listed from the last to the first, and to be given as nft does: each start before its end.
            elements.sort(key=_interval_order)
        for chunk in _chunks(elements):
            yield request + nested(_ELEMENTS, *(nested(_ELEMENT, value) for value in chunk))


def _interval_order(element: bytes) -> tuple[bytes, bool]:
    parts = parse(element)
    key = parse(parts.get(_ELEMENT_KEY, b"")).get(1, b"")
    return key, not number(parts.get(_ELEMENT_FLAGS, b""), "be") & 1


def _chunks(elements: Sequence[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for element in elements:
        if chunk and size + len(element) > _ELEMENTS_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(element)
        size += len(element) + 8
    if chunk:
        yield chunk


def load_objects(netns: int, tables: Sequence[NftTable]) -> None:
    """Make all objects of ``tables`` in one transaction. Raises NetworkError that names the one that was refused."""
    listed = [(table, one) for table in tables for one in table.objects]
    if not listed:
        return
    for table, one in listed:
        if table.family not in _NUMBERS or one.kind not in _KINDS:
            raise NetworkError(
                f"cannot load the nftables table {table.family} {table.name}",
                code="nft-load",
                details=f"there is no {one.kind} in a table of the family {table.family}",
            )
    identity = itertools.count(1)
    messages = [_message(table.family, one, identity) for table, one in listed]
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        try:
            connection.transaction(_SUBSYSTEM, messages)
        except BatchRefusal as error:
            table, one = listed[error.position] if error.position >= 0 else (tables[0], NftObject(kind="commit"))
            raise NetworkError(
                f"cannot load the nftables {describe(one)} of the table {table.family} {table.name}",
                code="nft-load",
                details=error.strerror,
                hint="the kernel here may lack what the rule or set needs",
            ) from error


def _message(family: str, one: NftObject, identity: Iterator[int]) -> tuple[int, bytes, int]:
    made_by = _KINDS[one.kind][0]
    payload = header(_NUMBERS[family]) + one.attributes
    flags = netlink.NLM_F_CREATE
    if one.kind == "set":
        payload += attribute(_SET_ID, struct.pack(">I", next(identity)))
    elif one.kind == "rule":
        flags |= netlink.NLM_F_APPEND
        compat = nft_rules.encode_compat(parse(one.attributes).get(_EXPRESSIONS, b""))
        if compat:
            payload += nested(_COMPAT, compat)
    return _SUBSYSTEM << 8 | made_by, payload, flags


_NAMED_BY = {"chain": 3, "set": 2, "object": 2, "flowtable": 2, "elements": 2, "rule": 2}
_WORDS = {"elements": "elements of the set", "commit": "changes"}


def describe(one: NftObject) -> str:
    """What the object is, for a message: its kind and the name it has."""
    parts = parse(one.attributes)
    words = _WORDS.get(one.kind, one.kind)
    if one.kind == "rule":
        names = ", ".join(name for name, _ in nft_rules.expressions(parts.get(_EXPRESSIONS, b"")))
        words = f"rule ({names}) in the chain"
    name = parts.get(_NAMED_BY.get(one.kind, 0))
    return words if name is None else f"{words} {netlink.text(name)}"


def names_cut_timeout(one: NftObject) -> bool:
    """Whether it is a rule with the iptables target CT that names a timeout policy.

    Of that name the kernel shows four bytes (xt_CT's ``usersize`` ends within it since "xtables: extend matches and
    targets with .usersize", Linux 4.11), so such a rule cannot be made again from what is shown.
    """
    if one.kind != "rule":
        return False
    targets = [
        parts
        for name, parts in nft_rules.expressions(parse(one.attributes).get(_EXPRESSIONS, b""))
        if name == "target" and netlink.text(parts.get(_TARGET_NAME, b"")) == "CT"
    ]
    return any(any(parts.get(_TARGET_INFO, b"")[_CT_TIMEOUT : _CT_TIMEOUT + 4]) for parts in targets)
