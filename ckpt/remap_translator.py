"""A mapping applied to words: addresses, prefixes and endpoints in, the same as the target has them out.

Whoever goes through an image's records asks one ``Translator`` for each of them, so that in the end it knows what has
followed which entry of the mapping (``followed``) and which addresses have moved (``moved``): bytes that nobody can
read are then searched for those. Text that is no address comes back as it was.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re

from ckpt.mapping import AddressMap, Ip, Mapping, Network
from ckpt.model.socket import Endpoint

# An address literal in a tool's own language, perhaps with a prefix length, and perhaps the last of a range behind it.
_FOUR = r"\d{1,3}(?:\.\d{1,3}){3}"
_SIX = r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:(?<=:)" + _FOUR + ")?"
_HARDWARE = re.compile(r"(?<![\w:])[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}(?![\w:])")
_LITERAL = re.compile(rf"(?<![\w:.])({_FOUR}|{_SIX})(?:/(\d{{1,3}})(?![.\d])|-({_FOUR}|{_SIX}))?(?![\w.])")


class Translator:
    """Applies ``mapping``. ``what`` names, in the plural, what is gone through now."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.what = ""
        self.followed: dict[str, dict[str, int]] = {}
        self.moved: dict[Ip, Ip] = {}
        self.moved_macs: dict[bytes, bytes] = {}
        self.left: dict[tuple[str, str], None] = {}

    def follows(self, entry: object) -> None:
        """Count one more of ``what`` for this entry of the mapping."""
        counts = self.followed.setdefault(str(entry), {})
        counts[self.what] = counts.get(self.what, 0) + 1

    def address(self, address: Ip) -> Ip:
        """Where ``address`` is on the target."""
        found, entry = self.mapping.address(address)
        if entry is not None:
            self.follows(entry)
            self._note(address, found)
        return found

    def ip(self, text: str) -> str:
        """An address without a prefix length."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return text
        found = self.address(address)
        return text if found == address else _text(found)

    def interface(self, text: str) -> str:
        """An address with the length of its own prefix, which it keeps."""
        plain, slash, length = text.partition("/")
        return f"{self.ip(plain)}{slash}{length}"

    def prefix(self, text: str) -> str:
        """A prefix, or an address that stands for the prefix of itself alone."""
        if "/" not in text:
            return self.ip(text)
        try:
            network = ipaddress.ip_network(text)
        except ValueError:
            return text
        found = self.network(network)
        return text if found == network else str(found)

    def network(self, network: Network) -> Network:
        """Where ``network`` is on the target."""
        found, entry = self.mapping.network(network)
        if entry is not None:
            self.follows(entry)
            if network.prefixlen == network.max_prefixlen:
                self._note(network.network_address, found.network_address)
        return found

    def endpoint(self, endpoint: Endpoint) -> Endpoint:
        """The address of an endpoint; its port stays."""
        return dataclasses.replace(endpoint, address=self.ip(endpoint.address))

    def mac(self, text: str) -> str:
        """A link-layer address; one that is not mapped, or of another kind, comes back as it was."""
        entry = next((one for one in self.mapping.macs if one.old == text.lower()), None)
        if entry is None:
            return text
        self.follows(entry)
        self.moved_macs[_packed(entry.old)] = _packed(entry.new)
        return entry.new

    def hardware(self, packed: bytes) -> bytes:
        """As ``mac``, for its six bytes."""
        return _packed(self.mac(packed.hex(":")))

    @property
    def macs(self) -> frozenset[bytes]:
        """The MACs that are mapped."""
        return frozenset(_packed(one.old) for one in self.mapping.macs)

    def option(self, text: str) -> str:
        """A word of which nobody says whether it is an IP address, a MAC or neither."""
        return self.mac(self.ip(text))

    def words(self, text: str) -> str:
        """Every literal of an address, a prefix, a range or a MAC in ``text``."""
        return _HARDWARE.sub(lambda found: self.mac(found[0]), _LITERAL.sub(self._literal, text))

    def stays(self, subject: str, why: str) -> None:
        """Note that ``subject`` names what is mapped, and cannot follow."""
        self.left[subject, why] = None

    def holds_moved(self, *values: bytes) -> bool:
        """Whether an address that has moved, and that no other has become, is among these bytes."""
        packed = [address.packed for address in self.moved.keys() - self.moved.values()]
        packed += {*self.moved_macs} - {*self.moved_macs.values()}
        return any(address in value for address in packed for value in values)

    def _literal(self, match: re.Match[str]) -> str:
        first, length, last = match.groups()
        if length is not None:
            return self.prefix(match[0])
        if last is None:
            return self.ip(first)
        if self._entry(first) is not self._entry(last):
            self.stays(f"the range {match[0]}", "only a part of it is mapped")
            return match[0]
        return f"{self.ip(first)}-{self.ip(last)}"

    def _entry(self, text: str) -> AddressMap | None:
        try:
            return self.mapping.address(ipaddress.ip_address(text))[1]
        except ValueError:
            return None

    def _note(self, old: Ip, new: Ip) -> None:
        if old != new:
            self.moved[_plain(old)] = _plain(new)


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _plain(address: Ip) -> Ip:
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return inner or address


def _text(address: Ip) -> str:
    """As the kernel and the C library write it: an IPv4 address inside an IPv6 one with dots."""
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return f"::ffff:{inner}" if inner is not None else str(address)
