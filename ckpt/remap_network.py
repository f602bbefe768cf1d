"""The records of a network namespace as they shall be on the target: every field that names an address, translated.

Which fields those are is said in one table; records within records are gone through by themselves. What the kernel
derives from an address (the route to its prefix, its broadcasts) follows the address, also where only the one address
is mapped. Bytes of the kernel's own that cannot be read are kept, and named when an address that moves is in them.
Names of links inside of the group stay; those of the host's links beside it are mapped. Pure.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from ckpt.kernel import nft_addresses, nft_objects, xfrm_addresses
from ckpt.mapping import Network as Prefix
from ckpt.model.bridging import ForwardingEntry, MulticastEntry, VniRange
from ckpt.model.encapsulation import FouPort, IsatapRouter
from ckpt.model.forwarding import LabelHop, NexthopObject
from ckpt.model.ipsec import XfrmPolicy, XfrmSelector, XfrmState
from ckpt.model.network import (
    Address,
    ConntrackEntry,
    Expectation,
    FlowTuple,
    Link,
    Neighbour,
    Network,
    Nexthop,
    NftTable,
    Place,
    Route,
    Rule,
)
from ckpt.model.traffic import Chain, Filter, Qdisc, Traffic, TrafficClass
from ckpt.model.wireguard import WireguardDevice, WireguardPeer
from ckpt.remap_translator import Translator

_RTPROT_KERNEL = 2

_FIELDS: Mapping[type, Mapping[str, str]] = {
    Nexthop: {"gateway": "ip"},
    Neighbour: {"address": "ip", "mac": "mac"},
    NexthopObject: {"gateway": "ip"},
    LabelHop: {"via": "ip"},
    ForwardingEntry: {"destination": "ip", "mac": "mac"},
    MulticastEntry: {"source": "ip", "sources": "ip", "destination": "ip"},
    VniRange: {"group": "ip"},
    IsatapRouter: {"address": "ip"},
    FouPort: {"local": "ip", "peer": "ip"},
    WireguardPeer: {"endpoint": "endpoint", "allowed_ips": "prefix"},
    XfrmSelector: {"source": "prefix", "destination": "prefix"},
    XfrmState: {"source": "ip", "destination": "ip"},
    FlowTuple: {"source": "ip", "destination": "ip"},
    Rule: {"values": "prefix"},
    Route: {"gateway": "ip", "source": "prefix", "preferred_source": "ip"},
}
"""The fields that hold an address, and as what; those of records within are not named here."""

_Record = TypeVar("_Record")


def remap_network(network: Network, translator: Translator, own: Collection[str]) -> Network:
    """``network`` as it shall be on the target; ``own`` are all addresses of the group, as they were."""
    derived = _Derived(network, translator)
    changes: dict[str, Any] = {"links": _each(network.links, "links", translator, _link)}
    changes["addresses"] = _each(network.addresses, "addresses", translator, _address)
    changes["routes"] = tuple(_route(one, derived, translator) for one in network.routes)
    for name in ("rules", "neighbours", "nexthops", "label_routes", "bridging", "wireguard", "fou", "isatap", "ipsec"):
        translator.what = _NAMES.get(name, name)
        changes[name] = translated(getattr(network, name), translator)
    changes["ipsec"] = dataclasses.replace(
        changes["ipsec"], policies=_each(changes["ipsec"].policies, "IPsec", translator, _policy)
    )
    changes["wireguard"] = _each(changes["wireguard"], "WireGuard ports", translator, _listening)
    changes["fou"] = _each(changes["fou"], "UDP ports of tunnels", translator, _receiving)
    translator.what = "filtering"
    changes["filtering"] = _filtering(network, translator)
    changes["nftables"] = tuple(_nft_table(one, translator) for one in network.nftables)
    changes["conntrack"] = tuple(_flows(network.conntrack, own, translator))
    changes["expectations"] = tuple(_expectations(network.expectations, translator))
    result = dataclasses.replace(network, **changes)
    _search(result, translator)
    return result


_NAMES = {"label_routes": "MPLS routes", "bridging": "forwarding entries", "wireguard": "WireGuard peers"}
_NAMES |= {"fou": "UDP ports of tunnels", "isatap": "ISATAP routers", "ipsec": "IPsec", "nexthops": "next hops"}


def translated(record: _Record, translator: Translator) -> _Record:
    """``record``, and all records within, with the fields of the table translated."""
    if isinstance(record, tuple):
        return tuple(translated(item, translator) for item in record)  # type: ignore[return-value]
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        return record
    kinds = _FIELDS.get(type(record), {})
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        kind = kinds.get(field.name)
        new = translated(value, translator) if kind is None else _value(value, getattr(translator, kind))
        if new != value:
            changes[field.name] = new
    return dataclasses.replace(record, **changes) if changes else record


def _value(value: Any, translate: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_value(item, translate) for item in value)
    if isinstance(value, Mapping):
        return {key: _value(item, translate) for key, item in value.items()}
    return translate(value) if value else value


def _each(records: tuple[Any, ...], what: str, translator: Translator, change: Any) -> tuple[Any, ...]:
    translator.what = what
    return tuple(change(one, translator) for one in records)


def _link(link: Link, translator: Translator) -> Link:
    """Addresses in options are ends of tunnels and what a bond asks for (a list), MACs those that a macvlan hears."""
    options = {key: " ".join(map(translator.option, value.split(" "))) for key, value in link.options.items()}
    other = link.counterpart
    if other is not None and other.place is Place.CALLER:
        other = dataclasses.replace(
            other,
            mac=translator.mac(other.mac) if other.mac else other.mac,
            ifname=_outside(other.ifname, translator),
            master=_outside(other.master, translator),
            addresses=tuple(_address(one, translator) for one in other.addresses),
        )
    mac = translator.mac(link.mac) if link.mac else link.mac
    return dataclasses.replace(link, mac=mac, options=options, counterpart=other)


def _outside(ifname: str, translator: Translator) -> str:
    entry = next((one for one in translator.mapping.links if one.old == ifname), None)
    if entry is not None:
        translator.follows(entry)
    return ifname if entry is None else entry.new


def _address(address: Address, translator: Translator) -> Address:
    moved = translator.interface(address.address)
    before, after = (ipaddress.ip_interface(text).network for text in (address.address, moved))
    broadcast = address.broadcast
    if broadcast and before != after:
        last = broadcast == str(before.broadcast_address)
        broadcast = str(after.broadcast_address) if last else translator.ip(broadcast)
    return dataclasses.replace(
        address, address=moved, peer=translator.interface(address.peer) if address.peer else "", broadcast=broadcast
    )


class _Derived:
    """The prefixes that addresses of links are in, where they leave them: the kernel's own routes go along."""

    def __init__(self, network: Network, translator: Translator) -> None:
        self._moved: dict[str, dict[Prefix, Prefix]] = {}
        for one in network.addresses:
            before = ipaddress.ip_interface(one.address)
            where = translator.mapping.address(before.ip)[0]
            after = ipaddress.ip_interface(f"{where}/{before.network.prefixlen}").network
            found = self._moved.setdefault(one.ifname, {})
            if found.setdefault(before.network, after) != after:
                split = f"the prefix {before.network} of {one.ifname}"
                translator.stays(split, SPLIT)

    def of(self, route: Route) -> str | None:
        """The destination of a route that came with an address; None for all others."""
        if route.protocol != _RTPROT_KERNEL:
            return None
        destination = ipaddress.ip_network(route.destination)
        for old, new in self._moved.get(route.ifname, {}).items():
            if destination == old:
                return str(new)
            for ends in ("broadcast_address", "network_address"):
                if destination.prefixlen == old.max_prefixlen and destination.network_address == getattr(old, ends):
                    return f"{getattr(new, ends)}/{old.max_prefixlen}"
        return None


FLOWS = "those of a mapped address with others are left out"
UNSURE = "it may name an address that is mapped, in a way that cannot be told here"
SPLIT = "its addresses would be in several prefixes"
"""Why a thing does not follow."""


def _route(route: Route, derived: _Derived, translator: Translator) -> Route:
    translator.what = "routes"
    destination = derived.of(route) or translator.prefix(route.destination)
    return dataclasses.replace(translated(route, translator), destination=destination)


def _policy(policy: XfrmPolicy, translator: Translator) -> XfrmPolicy:
    """The ends of the tunnels that it asks for."""
    changed = {
        key: xfrm_addresses.move_templates(value, translator.ip) if key == "tmpl" else value
        for key, value in policy.attributes.items()
    }
    return dataclasses.replace(policy, attributes=changed)


def _listening(device: WireguardDevice, translator: Translator) -> WireguardDevice:
    port = map_port(device.listen_port, "udp", translator)
    return device if port == device.listen_port else dataclasses.replace(device, listen_port=port)


def _receiving(one: FouPort, translator: Translator) -> FouPort:
    port = map_port(one.port, "udp", translator)
    return one if port == one.port else dataclasses.replace(one, port=port)


def map_port(port: int, protocol: str, translator: Translator) -> int:
    """What the local ``port`` is, counted for its entry."""
    entry = next((one for one in translator.mapping.ports if one.old == port and one.protocol in ("", protocol)), None)
    if entry is None:
        return port
    translator.follows(entry)
    return entry.new


def _filtering(network: Network, translator: Translator) -> object:
    """What is kept in its own tool's language: every address in the text is one."""
    filtering = network.filtering
    tables = tuple(dataclasses.replace(one, text=translator.words(one.text)) for one in filtering.legacy_tables)
    sets = tuple(
        dataclasses.replace(
            one, definition=translator.words(one.definition), members=tuple(map(translator.words, one.members))
        )
        for one in filtering.ip_sets
    )
    for old, new in zip(filtering.ip_sets, sets, strict=True):
        if " range " in old.definition and old.definition == new.definition and old.members != new.members:
            translator.stays(f"the ipset set {old.name}", "its range is not mapped with its members")
    return dataclasses.replace(
        filtering,
        legacy_tables=tables,
        ip_sets=sets,
        virtual_services=tuple(map(translator.words, filtering.virtual_services)),
    )


def _nft_table(table: NftTable, translator: Translator) -> NftTable:
    """The kernel's objects where there are any; the text beside them is for people."""
    translator.what = "nftables objects"
    moves = nft_addresses.Moves(
        address=translator.address, network=translator.network, hardware=translator.hardware, macs=translator.macs
    )
    objects, left = nft_addresses.translated(table.family, table.objects, moves)
    for one in left:
        translator.stays(
            f"nft table {table.family} {table.name}, {one}", "an address is in it, not in a way known here"
        )
    counting = translator if not table.objects else Translator(translator.mapping)
    return dataclasses.replace(table, text=counting.words(table.text), objects=objects)


def _flows(
    entries: tuple[ConntrackEntry, ...], own: Collection[str], translator: Translator
) -> Iterator[ConntrackEntry]:
    """Tracked flows between addresses of the group go on; others of a mapped address have ended with it."""
    counted = Translator(translator.mapping)
    for entry in entries:
        ends = {end for flow in (entry.original, entry.reply) for end in (flow.source, flow.destination)}
        moved = translated(entry, counted)
        if moved == entry or ends <= set(own):
            yield moved
        else:
            translator.stays("tracked flows", FLOWS)


def _expectations(entries: tuple[Expectation, ...], translator: Translator) -> Iterator[Expectation]:
    counted = Translator(translator.mapping)
    for entry in entries:
        if translated(entry, counted) == entry:
            yield entry
        else:
            translator.stays("tracked flows", FLOWS)


def _search(network: Network, translator: Translator) -> None:
    """Name the kernel's own bytes that still hold an address which has moved away."""
    for subject, values in _opaque(network):
        if translator.holds_moved(*values):
            translator.stays(subject, UNSURE)


def _opaque(network: Network) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    for table in network.nftables:
        for item in table.objects:
            where = f"nft table {table.family} {table.name}, {nft_objects.describe(item)}"
            yield where, (item.attributes,)
    for route in network.routes:
        encapsulations = [route.encapsulation_data, *(hop.encapsulation_data for hop in route.nexthops)]
        yield f"route {route.destination}", tuple(encapsulations)
    for hop in network.nexthops:
        yield f"next hop {hop.id}", (hop.encapsulation_data,)
    yield from _opaque_traffic(network.traffic)
    for state in network.ipsec.states:
        yield f"IPsec state {state.source} → {state.destination}", tuple(state.attributes.values())
    for policy in network.ipsec.policies:
        subject = f"IPsec policy {policy.selector.source} → {policy.selector.destination}"
        yield subject, tuple(policy.attributes.values())


def _opaque_traffic(traffic: Traffic) -> Iterator[tuple[str, tuple[bytes, ...]]]:
    shaping: list[Qdisc | TrafficClass] = [*traffic.qdiscs, *traffic.classes]
    for qdisc in shaping:
        yield f"traffic control of {qdisc.ifname} ({qdisc.kind})", (qdisc.options,)
    sorting: list[Chain | Filter] = [*traffic.chains, *traffic.filters]
    for one in sorting:
        where = one.ifname or f"block {one.block}"
        yield f"traffic control of {where} ({one.kind})", (one.options,)
    for action in traffic.actions:
        yield f"the action {action.kind} {action.index}", (action.attributes,)
