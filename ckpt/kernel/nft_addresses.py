"""Addresses and MACs in nftables objects: told where they can be told for sure, and replaced; bytes in, bytes out.

Of sets and maps the type says what their keys and values are, field by field; intervals are moved as a whole or not at
all, and sorted again. Of a rule its expressions are followed from where an address is loaded (a header's field, a
tracked flow's end) to what it is compared with, and from an immediate value to the translation that uses it. Whatever
else could name an address is left as it is, and named.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import field, replace

from ckpt.kernel import netlink
from ckpt.kernel.netlink import attribute, number, pairs, parse
from ckpt.model.network import NftObject
from ckpt.records import dataclass

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = Callable[[Ip], Ip]
Network = Callable[[Prefix], Prefix]
Pairs = list[tuple[int, bytes]]

# nft's own numbers of data types (include/datatype.h), with the bytes of a field of that type; fields of a
# concatenation begin at multiples of four.
_IPV4, _IPV6, _ETHER = 7, 8, 9
_SIZES = {1: 4, 2: 1, 4: 4, 7: 4, 8: 16, 9: 6, 10: 2, 12: 1, 13: 2, 14: 1, 16: 1, 19: 4, 20: 4, 41: 16}
_TYPE_BITS = 6
_VERSIONS_OF_TYPES = {_IPV4: 4, _IPV6: 6, _ETHER: 48}

_SET_NAME, _SET_KEY_TYPE, _SET_FLAGS, _SET_KEY_LEN, _SET_DATA_TYPE, _SET_DATA_LEN = 2, 4, 3, 5, 6, 7
_INTERVAL, _CONCATENATED = 0x4, 0x80
_ELEMENTS_SET, _ELEMENTS = 2, 3
_KEY, _DATA, _FLAGS, _KEY_END = 1, 2, 3, 10
_END = 0x1
_VALUE = 1

_RULE_CHAIN, _RULE_EXPRESSIONS = 2, 4
_LINK_HEADER, _NETWORK_HEADER = 0, 1
# Where a MAC is: in the header of Ethernet, and in a packet of ARP, in which no IP address is as long as one.
_MAC_PLACES = {_LINK_HEADER: (0, 6), _NETWORK_HEADER: (8, 18)}
_PLACES = {4: (12, 16), 6: (8, 24)}
_ETHERTYPE = 12
_CT_ADDRESSES = {19: 4, 20: 4, 21: 6, 22: 6}
_META_PROTOCOL, _META_NFPROTO = 1, 15
_PROTOCOLS = {b"\x08\x00": 4, b"\x86\xdd": 6, b"\x02": 4, b"\x0a": 6}
_FAMILIES = {"ip": 4, "ip6": 6}
_EQ, _NEQ, _LTE, _GTE = 0, 1, 3, 5
_MAC = 48
"""What stands for a MAC where others are addresses of version 4 or 6."""
_WIDTHS = {4: 4, 6: 16, _MAC: 6}
_VERSIONS = {2: 4, 10: 6}
# Of the expressions that use an address: the attribute with the first one's register, the last one's, and the family.
_USES = {"nat": (3, 4, 2), "tproxy": (2, 2, 1), "dup": (1, 1, 0), "fwd": (2, 2, 3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Where addresses, prefixes and MACs (``hardware``, of which only ``macs`` move) are on the target."""

    address: Address
    network: Network
    hardware: Callable[[bytes], bytes]
    macs: Collection[bytes] = ()


def translated(
    family: str, objects: Sequence[NftObject], moves: Moves
) -> tuple[tuple[NftObject, ...], tuple[str, ...]]:
    """The objects of a table with their addresses moved, and those in which one may be left that could not be."""
    mover = _Mover(family, moves)
    sets = {parse(one.attributes)[_SET_NAME]: _Set.of(one) for one in objects if one.kind == "set"}
    elements: dict[bytes, list[bytes]] = {}
    for one in objects:
        if one.kind == "elements":
            parts = parse(one.attributes)
            elements.setdefault(parts[_ELEMENTS_SET], []).extend(value for _, value in pairs(parts[_ELEMENTS]))
    moved = {name: iter(mover.elements(sets[name], found)) for name, found in elements.items() if name in sets}
    result: list[NftObject] = []
    for one in objects:
        parts = parse(one.attributes)
        if one.kind == "elements" and parts[_ELEMENTS_SET] in moved:
            result.append(_refilled(one, moved[parts[_ELEMENTS_SET]]))
        elif one.kind == "rule" and _RULE_EXPRESSIONS in parts:
            result.append(_replaced(one, _RULE_EXPRESSIONS, mover.rule(parts)))
        else:
            result.append(one)
    return tuple(result), tuple(mover.left)


def _refilled(one: NftObject, source: Iterator[bytes]) -> NftObject:
    count = len(list(pairs(parse(one.attributes)[_ELEMENTS])))
    taken = b"".join(attribute(_KEY | netlink.NLA_F_NESTED, next(source)) for _ in range(count))
    return _replaced(one, _ELEMENTS, taken)


def _replaced(one: NftObject, kind: int, value: bytes) -> NftObject:
    if value == parse(one.attributes)[kind]:
        return one
    nested = kind | netlink.NLA_F_NESTED
    parts = (attribute(nested, value) if at == kind else attribute(at, old) for at, old in pairs(one.attributes))
    return replace(one, attributes=b"".join(parts))


@dataclass(frozen=True, slots=True)
class _Set:
    """What is known of a set: the fields of its keys and values, as (place, version) of each address."""

    name: str
    keys: tuple[tuple[int, int], ...] | None
    values: tuple[tuple[int, int], ...] | None
    interval: bool

    @classmethod
    def of(cls, one: NftObject) -> _Set:
        parts = parse(one.attributes)
        numbers = {kind: number(parts.get(kind, b""), "be") for kind in range(3, 8)}
        return cls(
            netlink.text(parts[_SET_NAME]),
            _fields(numbers[_SET_KEY_TYPE], numbers[_SET_KEY_LEN]),
            _fields(numbers[_SET_DATA_TYPE], numbers[_SET_DATA_LEN]),
            numbers[_SET_FLAGS] & (_INTERVAL | _CONCATENATED) == _INTERVAL,
        )


def _fields(kind: int, length: int) -> tuple[tuple[int, int], ...] | None:
    """The places of addresses in data of this type; None when the type is not known."""
    kinds: list[int] = []
    while kind:
        kinds.insert(0, kind & ((1 << _TYPE_BITS) - 1))
        kind >>= _TYPE_BITS
    found, at = [], 0
    for one in kinds:
        if one not in _SIZES:
            return None if any(item in (_IPV4, _IPV6) for item in kinds) else ()
        if one in _VERSIONS_OF_TYPES:
            found.append((at, _VERSIONS_OF_TYPES[one]))
        at += (_SIZES[one] + 3) & ~3 if len(kinds) > 1 else _SIZES[one]
    return tuple(found) if at == length or not found else None


@dataclass(slots=True)
class _Mover:
    family: str
    moves: Moves
    left: dict[str, None] = field(default_factory=dict)

    def one(self, packed: bytes, version: int) -> bytes:
        """Where an address is."""
        return self.moves.hardware(packed) if version == _MAC else self.moves.address(_ip(packed)).packed

    def range(self, first: bytes, last: bytes, version: int, where: str) -> tuple[bytes, bytes]:
        """Where the addresses from ``first`` to ``last`` are, if they are still side by side."""
        if version == _MAC:
            if first != last and any(first <= mac <= last for mac in self.moves.macs):
                self.left[where] = None
            return (self.one(first, version),) * 2 if first == last else (first, last)
        low, high = _ip(first), _ip(last)
        parts: list[Prefix] = [*ipaddress.summarize_address_range(low, high)]
        shifts = {int(self.moves.network(part).network_address) - int(part.network_address) for part in parts}
        if len(shifts) == 1:
            (shift,) = shifts
            return (low + shift).packed, (high + shift).packed
        self.left[where] = None
        return first, last

    # -- sets ----------------------------------------------------------------------------------------------------

    def elements(self, of: _Set, elements: Sequence[bytes]) -> list[bytes]:
        """The elements of a set with their addresses moved, in the order in which they can be made."""
        where = f"elements of the set {of.name}"
        if of.keys is None or (of.interval and len(of.keys) != 1 and of.keys):
            self.left[where] = None
            return list(elements)
        found = [list(pairs(element)) for element in elements]
        before = [list(one) for one in found]
        if of.values:
            for one in found:
                self._fields(one, _DATA, of.values)
        if of.interval and of.keys:
            self._intervals(found, of.keys[0][1], where)
        else:
            for one in found:
                self._keys(one, of.keys, where)
        return list(elements) if found == before else [_joined(one) for one in found]

    def _fields(self, element: Pairs, kind: int, fields: Sequence[tuple[int, int]]) -> None:
        value = _data(element, kind)
        for at, version in fields:
            end = at + _WIDTHS[version]
            value = value[:at] + self.one(value[at:end], version) + value[end:]
        _set_data(element, kind, value)

    def _keys(self, element: Pairs, fields: Sequence[tuple[int, int]], where: str) -> None:
        if not _data(element, _KEY_END):
            self._fields(element, _KEY, fields)
            return
        first, last = _data(element, _KEY), _data(element, _KEY_END)
        for at, version in fields:
            end = at + _WIDTHS[version]
            low, high = self.range(first[at:end], last[at:end], version, where)
            first, last = first[:at] + low + first[end:], last[:at] + high + last[end:]
        _set_data(element, _KEY, first)
        _set_data(element, _KEY_END, last)

    def _intervals(self, elements: list[Pairs], version: int, where: str) -> None:
        """Each start with the end that follows it; the end is the first address beyond."""
        for position, one in enumerate(elements):
            after = elements[position + 1] if position + 1 < len(elements) else None
            if _is_end(one) or after is None or not _is_end(after):
                continue
            first, last = _data(one, _KEY), _plus(_data(after, _KEY), -1)
            low, high = self.range(first, last, version, where)
            if int.from_bytes(high, "big") + 1 < 1 << (8 * _WIDTHS[version]):
                _set_data(one, _KEY, low)
                _set_data(after, _KEY, _plus(high, 1))
        elements.sort(key=lambda one: (_data(one, _KEY), not _is_end(one)))

    # -- rules ---------------------------------------------------------------------------------------------------

    def rule(self, parts: dict[int, bytes]) -> bytes:
        """The list of expressions of a rule, with its addresses moved."""
        where = f"a rule of the chain {netlink.text(parts.get(_RULE_CHAIN, b''))}"
        listed = []
        for _, value in pairs(parts[_RULE_EXPRESSIONS]):
            found = parse(value)
            listed.append((netlink.text(found.get(1, b"")), list(pairs(found.get(2, b"")))))
        before = [(name, list(data)) for name, data in listed]
        self._follow(listed, where)
        if listed == before:
            return parts[_RULE_EXPRESSIONS]
        return b"".join(
            attribute(
                1 | netlink.NLA_F_NESTED,
                attribute(1, netlink.string(name)) + attribute(2 | netlink.NLA_F_NESTED, _joined(data)),
            )
            for name, data in listed
        )

    def _follow(self, listed: list[tuple[str, Pairs]], where: str) -> None:
        loaded: dict[int, tuple[int, int]] = {}  # register → version and leading bits of an address
        merged: dict[int, _Merged] = {}
        protocol: dict[int, bool] = {}
        immediate: dict[int, Pairs] = {}
        version = _FAMILIES.get(self.family, 0)
        done: Pairs | None = None
        for (name, data), (_, following) in zip(listed, [*listed[1:], ("", [])], strict=True):
            values = dict(data)
            register = number(values.get(1, b""), "be")
            if name in ("payload", "ct", "meta"):
                loaded.pop(register, None)
                merged.pop(register, None)
                protocol[register] = name == "meta" and number(values.get(2, b""), "be") in (
                    _META_PROTOCOL,
                    _META_NFPROTO,
                )
                if what := _loads(name, values, version, macs=bool(self.moves.macs)):
                    loaded[register] = what
                elif name == "payload":
                    merged[register] = _Merged.of(values, version, macs=bool(self.moves.macs))
            elif name == "bitwise" and register in loaded:
                _mask(loaded, values)
            elif name == "bitwise":
                merged.pop(register, None)
            elif name == "cmp" and protocol.get(register):
                version = version or _PROTOCOLS.get(_data(data, 3), 0)
            elif name == "cmp" and register in loaded:
                if self._between(data, following, loaded[register], where):
                    done = following
                elif data is not done:
                    self._compare(data, loaded[register], where)
            elif name == "cmp" and register in merged:
                version = version or merged[register].protocol(_data(data, 3))
                self._compare_all(data, merged[register].fields, where)
            elif name == "range" and register in loaded:
                self._ranged(data, loaded[register], where)
            elif name == "immediate":
                immediate[register] = data
            elif name in _USES:
                self._use(name, values, immediate, version, where)

    def _between(self, data: Pairs, following: Pairs, what: tuple[int, int], where: str) -> bool:
        """Whether it compares with the least of a range; ``following`` then does with its last."""
        first, last = _data(data, 3), _data(following, 3)
        if (_operator(data), _operator(following), len(first), len(last)) != (_GTE, _LTE, *(_WIDTHS[what[0]],) * 2):
            return False
        low, high = self.range(first, last, what[0], where)
        _set_data(data, 3, low)
        _set_data(following, 3, high)
        return True

    def _compare(self, data: Pairs, what: tuple[int, int], where: str) -> None:
        version, bits = what
        if _operator(data) not in (_EQ, _NEQ):
            self.left[where] = None
            return
        value = _data(data, 3)
        if version == _MAC:
            if len(value) == _WIDTHS[version]:
                _set_data(data, 3, self.one(value, version))
            return
        whole = value.ljust(_WIDTHS[version], b"\0")[: _WIDTHS[version]]
        try:
            network = ipaddress.ip_network((whole, bits))
        except ValueError:
            self.left[where] = None
            return
        _set_data(data, 3, self.moves.network(network).network_address.packed[: len(value)])

    def _compare_all(self, data: Pairs, fields: Sequence[tuple[int, int]], where: str) -> None:
        if fields and _operator(data) not in (_EQ, _NEQ):
            self.left[where] = None
        elif fields:
            self._fields(data, 3, fields)

    def _ranged(self, data: Pairs, what: tuple[int, int], where: str) -> None:
        first, last = _data(data, 3), _data(data, 4)
        if len(first) == len(last) == _WIDTHS[what[0]]:
            low, high = self.range(first, last, what[0], where)
            _set_data(data, 3, low)
            _set_data(data, 4, high)
        else:
            self.left[where] = None

    def _use(self, name: str, values: dict[int, bytes], immediate: dict[int, Pairs], version: int, where: str) -> None:
        at_first, at_last, at_family = _USES[name]
        first, last = (number(values.get(kind, b""), "be") for kind in (at_first, at_last))
        if not first or first not in immediate:
            return  # not told here; from a map, whose elements are gone through
        version = _VERSIONS.get(number(values.get(at_family, b""), "be"), version) if at_family else version
        ends = [immediate[first], immediate.get(last or first, immediate[first])]
        packed = [_data(one, 2) for one in ends]
        if any(len(one) != _WIDTHS.get(version) for one in packed):
            self.left[where] = None
            return
        for one, found in zip(ends, self.range(packed[0], packed[1], version, where), strict=True):
            _set_data(one, 2, found)


def _loads(name: str, values: dict[int, bytes], version: int, *, macs: bool) -> tuple[int, int] | None:
    """The version of the address, and how many bits of it, that an expression loads; None when it loads no address.

    MACs only where some are to be moved.
    """
    if name == "ct":
        found = _CT_ADDRESSES.get(number(values.get(2, b""), "be"), 0)
        return (found, 8 * _WIDTHS[found]) if found else None
    if name != "payload":
        return None
    base, offset, length = (number(values.get(kind, b""), "be") for kind in (2, 3, 4))
    if macs and length == _WIDTHS[_MAC] and offset in _MAC_PLACES.get(base, ()):
        return _MAC, 8 * length
    for candidate, places in _PLACES.items():
        sure = version == candidate or (not version and length == _WIDTHS[candidate])
        if base == _NETWORK_HEADER and offset in places and 0 < length <= _WIDTHS[candidate] and sure:
            return candidate, 8 * length
    return None


@dataclass(frozen=True, slots=True)
class _Merged:
    """Bytes of a packet in which there are several of a header's fields: nft loads neighbours with one expression.

    ``fields`` are the place and the version of each address among them, ``at`` that of the protocol, -1 for none.
    """

    fields: tuple[tuple[int, int], ...]
    at: int

    @classmethod
    def of(cls, values: dict[int, bytes], version: int, *, macs: bool) -> _Merged:
        """What a payload expression loads; MACs only where some are to be moved."""
        base, offset, length = (number(values.get(kind, b""), "be") for kind in (2, 3, 4))
        known = [(place, _MAC) for place in _MAC_PLACES.get(base, ()) if macs]
        if base == _NETWORK_HEADER:
            known += [(place, version) for place in _PLACES.get(version, ())]
        fields = [(place - offset, one) for place, one in known if offset <= place <= offset + length - _WIDTHS[one]]
        is_there = base == _LINK_HEADER and offset <= _ETHERTYPE <= offset + length - 2
        return cls(tuple(fields), _ETHERTYPE - offset if is_there else -1)

    def protocol(self, value: bytes) -> int:
        """The version that the value of the protocol stands for, 0 unknown."""
        return _PROTOCOLS.get(value[self.at : self.at + 2], 0) if self.at >= 0 else 0


def _mask(loaded: dict[int, tuple[int, int]], values: dict[int, bytes]) -> None:
    """A mask of leading ones leaves a prefix; another one leaves nothing that is known."""
    version, _ = loaded.pop(number(values[1], "be"))
    if version == _MAC:
        return
    mask = parse(values.get(4, b"")).get(_VALUE, b"")
    bits = bin(int.from_bytes(mask.ljust(_WIDTHS[version], b"\0"), "big"))[2:].zfill(8 * _WIDTHS[version])
    length = len(bits.rstrip("0"))
    if "0" not in bits[:length] and not any(parse(values.get(5, b"")).get(_VALUE, b"")):
        loaded[number(values.get(2, b""), "be")] = (version, length)


def _operator(comparison: Pairs) -> int:
    return number(dict(comparison).get(2, b""), "be")


def _data(pairs_: Pairs, kind: int) -> bytes:
    return parse(dict(pairs_).get(kind, b"")).get(_VALUE, b"")


def _set_data(pairs_: Pairs, kind: int, value: bytes) -> None:
    for position, (one, _) in enumerate(pairs_):
        if one == kind:
            pairs_[position] = (kind, attribute(_VALUE, value))


def _is_end(element: Pairs) -> bool:
    return bool(number(dict(element).get(_FLAGS, b""), "be") & _END)


def _joined(parts: Pairs) -> bytes:
    return b"".join(attribute(kind, value) for kind, value in parts)


def _plus(packed: bytes, count: int) -> bytes:
    return (int.from_bytes(packed, "big") + count).to_bytes(len(packed), "big")


def _ip(packed: bytes) -> Ip:
    return ipaddress.ip_address(packed)
