"""What shall be called otherwise on the target: addresses, links, ports and MACs, as the user has said it.

A ``Mapping`` is made from words (``10.0.0.2=10.1.0.2``, ``br0=br1``, ``80=8080/tcp``) and from TOML files; what cannot
be meant together is refused here, from the words alone. All of it holds at once: ``A=B`` beside ``B=A`` exchanges two.
``remap`` applies it to an image's records, ``kernel.criu_images`` to CRIU's own images. Nothing here does I/O.

A prefix maps the addresses and prefixes within it, each to its place in the new one; of several that cover an address
the longest counts. What lies around a mapped prefix is not changed.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from ckpt.errors import UsageError
from ckpt.records import dataclass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

PROTOCOLS = ("tcp", "udp")
_TABLES = ("address", "link", "port", "mac")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _NameMap:
    """What is called ``old`` in the image is called ``new`` on the target."""

    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.old}={self.new}"


class AddressMap(_NameMap):
    """``old`` and ``new`` are two addresses, or two prefixes of one length, in the kernel's form."""

    __slots__ = ()


class LinkMap(_NameMap):
    """``old`` and ``new`` are links of the hosts."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMap:
    """The local port ``old`` is ``new``; ``protocol`` is ``tcp``, ``udp``, or empty for both."""

    old: int
    new: int
    protocol: str = ""

    def __str__(self) -> str:
        return f"{self.old}={self.new}" + (f"/{self.protocol}" if self.protocol else "")


class MacMap(_NameMap):
    """``old`` and ``new`` are MACs of the group's links, in lower case."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """All that is mapped; an empty one changes nothing."""

    addresses: tuple[AddressMap, ...] = ()
    links: tuple[LinkMap, ...] = ()
    ports: tuple[PortMap, ...] = ()
    macs: tuple[MacMap, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.addresses or self.links or self.ports or self.macs)

    def link(self, ifname: str) -> str:
        """What the host's link ``ifname`` is called on the target."""
        return next((one.new for one in self.links if one.old == ifname), ifname)

    def port(self, port: int, protocol: str) -> int:
        """What the local ``port`` of ``protocol`` is on the target."""
        return next((one.new for one in self.ports if one.old == port and one.protocol in ("", protocol)), port)

    def network(self, network: Network) -> tuple[Network, AddressMap | None]:
        """Where ``network`` is on the target, and the entry that says so, None for one that stays."""
        covering = ((as_network(one.old), one) for one in self.addresses)
        fitting = [(old, one) for old, one in covering if _covers(old, network)]
        if not fitting:
            return network, None
        old, entry = max(fitting, key=lambda found: found[0].prefixlen)
        first = int(network.network_address) - int(old.network_address) + int(as_network(entry.new).network_address)
        return type(network)((first, network.prefixlen)), entry

    def address(self, address: Ip) -> tuple[Ip, AddressMap | None]:
        """As ``network``, for one address. An IPv4 address inside an IPv6 one goes by the entries of IPv4."""
        inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        if inner is not None:
            found, entry = self.address(inner)
            return ipaddress.IPv6Address((0xFFFF << 32) | int(found)), entry
        where, entry = self.network(as_network(str(address)))
        return where.network_address, entry


NO_MAPPING = Mapping()


def parse_mapping(
    addresses: Iterable[str] = (),
    links: Iterable[str] = (),
    ports: Iterable[str] = (),
    files: Sequence[str] = (),
    macs: Iterable[str] = (),
) -> Mapping:
    """The mapping that these words (``OLD=NEW``) and the texts of these TOML ``files`` say together.

    Raises UsageError: ``map-syntax``, ``map-file``, ``map-address``, ``map-family``, ``map-prefix``, ``map-link``,
    ``map-port``, ``map-mac``, ``map-twice`` for an OLD that is mapped twice, ``map-taken`` for a NEW that two OLDs
    would become.
    """
    tables = [_read_file(text) for text in files]

    def words(kind: str, given: Iterable[str]) -> Iterator[tuple[str, str]]:
        yield from (_split(word, kind) for word in given)
        for table in tables:
            yield from table.get(kind, {}).items()

    mapping = Mapping(
        addresses=tuple(_address(*pair) for pair in words("address", addresses)),
        links=tuple(_link(*pair) for pair in words("link", links)),
        ports=tuple(_port(*pair) for pair in words("port", ports)),
        macs=tuple(_mac(*pair) for pair in words("mac", macs)),
    )
    _check(mapping)
    return mapping


@functools.lru_cache(maxsize=4096)
def as_network(text: str) -> Network:
    """An address as the prefix that holds nothing else, or a prefix."""
    return ipaddress.ip_network(text)


def _covers(wide: Network, narrow: Network) -> bool:
    return wide.version == narrow.version and (wide.prefixlen <= narrow.prefixlen and narrow.network_address in wide)


def _read_file(text: str) -> dict[str, dict[str, str]]:
    """``[address]``, ``[link]``, ``[port]`` and ``[mac]``, each ``OLD = NEW``; a port may be a number."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        _refuse("map-file", "a mapping file is not TOML", details=str(error), cause=error)
    for name, table in found.items():
        if name not in _TABLES or not isinstance(table, dict):
            _refuse("map-file", f"a mapping file has no {name!r}", hint=f"it has the tables {', '.join(_TABLES)}")
        for old, new in table.items():
            if not isinstance(new, str) and (name != "port" or type(new) is not int):
                _refuse("map-file", f"{old!r} in a mapping file's [{name}] is mapped to {new!r}", hint="name one")
    return {name: {old: str(new) for old, new in table.items()} for name, table in found.items()}


def _split(word: str, kind: str) -> tuple[str, str]:
    old, equals, new = word.partition("=")
    if not equals or not old or not new:
        _refuse("map-syntax", f"{word!r} maps no {kind}", hint=f"--map-{kind} OLD=NEW")
    return old, new


def _address(old: str, new: str) -> AddressMap:
    if ("/" in old) != ("/" in new):
        _refuse("map-prefix", f"{old} cannot become {new}", hint="map an address to an address, a prefix to a prefix")
    found = [_parsed(text) for text in (old, new)]
    if found[0].version != found[1].version:
        _refuse("map-family", f"{old} cannot become {new}", hint="map IPv4 to IPv4, and IPv6 to IPv6")
    if found[0].prefixlen != found[1].prefixlen:
        _refuse("map-prefix", f"{old} cannot become {new}", hint="give both the same prefix length")
    texts = [str(one) if "/" in old else str(one.network_address) for one in found]
    return AddressMap(old=texts[0], new=texts[1])


def _parsed(text: str) -> Network:
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        _refuse("map-address", f"{text!r} is neither an address nor a prefix", details=str(error), cause=error)
    first = found.network_address
    if first.is_multicast or first.is_loopback or (first.is_unspecified and found.prefixlen):
        _refuse("map-address", f"{text} is nobody's own, and cannot be mapped")
    return found


def _link(old: str, new: str) -> LinkMap:
    for name in (old, new):
        if len(name.encode()) > 15 or "/" in name or any(sign.isspace() for sign in name) or name in (".", ".."):
            _refuse("map-link", f"{name!r} cannot be the name of a link")
    return LinkMap(old=old, new=new)


def _port(old: str, new: str) -> PortMap:
    new, slash, protocol = new.partition("/")
    if slash and protocol not in PROTOCOLS:
        _refuse("map-port", f"there are no ports of {protocol!r}", hint="--map-port OLD=NEW[/tcp|/udp]")
    for text in (old, new):
        if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
            _refuse("map-port", f"{text!r} is no port", hint="a port is a number from 1 to 65535")
    return PortMap(old=int(old), new=int(new), protocol=protocol)


def _mac(old: str, new: str) -> MacMap:
    for text in (old, new):
        if _MAC.fullmatch(text.lower()) is None:
            _refuse("map-mac", f"{text!r} is no MAC", hint="six octets, like 02:00:00:00:00:01")
        if int(text[:2], 16) & 1 or not text.strip("0:"):
            _refuse("map-mac", f"{text} is no link's own, and cannot be mapped")
    return MacMap(old=old.lower(), new=new.lower())


def _check(mapping: Mapping) -> None:
    """Refuse what cannot be meant together."""
    for first, second in itertools.combinations(mapping.addresses, 2):
        if first.old == second.old:
            _refuse_twice(first, second)
        if _overlap(first.new, second.new) and not _overlap(first.old, second.old):
            _refuse_taken(first, second)
    for one, other in itertools.combinations(mapping.links, 2):
        if one.old == other.old:
            _refuse_twice(one, other)
    for mac, another_mac in itertools.combinations(mapping.macs, 2):
        if mac.old == another_mac.old:
            _refuse_twice(mac, another_mac)
        if mac.new == another_mac.new:
            _refuse_taken(mac, another_mac)
    for port, another in itertools.combinations(mapping.ports, 2):
        if "" in (port.protocol, another.protocol) or port.protocol == another.protocol:
            if port.old == another.old:
                _refuse_twice(port, another)
            if port.new == another.new:
                _refuse_taken(port, another)


def _overlap(one: str, other: str) -> bool:
    first, second = as_network(one), as_network(other)
    return _covers(first, second) or _covers(second, first)


def _refuse_twice(first: object, second: object) -> NoReturn:
    _refuse("map-twice", "one thing is mapped twice", details=f"{first} and {second}", hint="leave one of them out")


def _refuse_taken(first: object, second: object) -> NoReturn:
    _refuse("map-taken", "two things would become one", details=f"{first} and {second}", hint="map one elsewhere")


def _refuse(
    code: str, brief: str, *, details: str | None = None, hint: str | None = None, cause: Exception | None = None
) -> NoReturn:
    raise UsageError(brief, code=code, details=details, hint=hint) from cause
