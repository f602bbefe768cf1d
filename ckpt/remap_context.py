"""The record of an IP-set context as it shall be on the target: its addresses, their links, and the ports. Pure.

The order of the set stays, and with it which address `*` stands for first. A port that a member of the set names by
itself follows its mapping; one within a range stays, and then has to be of it still.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt.model.checkpoint import Booking, ContextRecord, PlacedAddress
from ckpt.model.context import Member, PortRange
from ckpt.model.socket import IPPROTO_TCP
from ckpt.remap_network import map_port
from ckpt.remap_translator import Translator


def remap_context(record: ContextRecord, translator: Translator) -> ContextRecord:
    """``record`` with what the translator's mapping names called otherwise."""
    translator.what = "addresses of the set"
    members = tuple(_member(one, translator) for one in record.members)
    translator.what = "links of the set"
    places = tuple(_place(one, translator) for one in record.places)
    translator.what = "booked ports"
    bookings = tuple(_booking(one, translator) for one in record.bookings)
    return replace(record, members=members, places=places, bookings=bookings)


def _member(one: Member, translator: Translator) -> Member:
    return replace(one, address=translator.ip(one.address), ports=tuple(_range(item, translator) for item in one.ports))


def _range(one: PortRange, translator: Translator) -> PortRange:
    entry = next((item for item in translator.mapping.ports if item.old == one.low == one.high), None)
    if entry is None or (entry.protocol and entry.protocol != one.protocol):
        return one
    translator.follows(entry)
    return replace(one, low=entry.new, high=entry.new)


def _place(one: PlacedAddress, translator: Translator) -> PlacedAddress:
    entry = next((item for item in translator.mapping.links if item.old == one.ifname), None)
    if entry is not None:
        translator.follows(entry)
    return replace(one, address=translator.interface(one.address), ifname=one.ifname if entry is None else entry.new)


def _booking(one: Booking, translator: Translator) -> Booking:
    protocol = "tcp" if one.protocol == IPPROTO_TCP else "udp"
    return replace(
        one,
        address=translator.ip(one.address),
        primary=translator.ip(one.primary),
        port=map_port(one.port, protocol, translator),
    )
