"""Changing the books by hand, for a context whose set changes while its processes stand still.

Each socket on `*` has an entry for each address of its set. An address that comes needs entries of its own, with the
counts and flags of the others; one that goes loses its entries. Everybody else writes the books at the same time, so
an entry is made only where there is none, and what was made is taken back when one cannot be.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextlib import ExitStack

from ckpt.errors import ExistsError
from ckpt.kernel import bpf_calls, context_floor
from ckpt.kernel.context_maps import CLAIM, KEY, WILD4, WILD6, Claim, address_bytes, decode_claim
from ckpt.model.context import Context, Member
from ckpt.model.socket import IPPROTO_TCP

_STAMP_BITS = 48


def enter(context: Context, members: Iterable[Member]) -> None:
    """Enter what is new of ``members`` for every socket of the context on `*`.

    ExistsError when somebody has one of the ports; then nothing is entered.
    """
    before = {one.address: one for one in context.members}
    with context_floor.opened() as floor, ExitStack() as undo:
        if floor is None:
            return
        wild = _wild(floor.books, context)
        for member in members:
            kind = WILD4 if member.ip.version == 4 else WILD6
            for (port, protocol), (claim, value) in wild.items():
                had = member.address in before and _has_port(before[member.address], port, protocol)
                if claim.wild & kind and _has_port(member, port, protocol) and not had:
                    key = KEY.pack(address_bytes(member.address), port, protocol, 0)
                    _enter(floor.books, key, value, member, port)
                    undo.callback(bpf_calls.map_delete, floor.books, key)
        undo.pop_all()


def strike(context: Context, addresses: Iterable[str]) -> None:
    """Remove what the context has at ``addresses``."""
    gone = {address_bytes(address) for address in addresses}
    with context_floor.opened() as floor:
        if floor is None:
            return
        for key in list(bpf_calls.map_keys(floor.books, KEY.size)):
            if key[:16] in gone:
                value = bpf_calls.map_lookup(floor.books, key, CLAIM.size)
                if value is not None and decode_claim(key, value).number == context.number:
                    bpf_calls.map_delete(floor.books, key)


def _wild(books: int, context: Context) -> dict[tuple[int, int], tuple[Claim, bytes]]:
    """The context's entries of sockets on `*`, one for each port and protocol."""
    found: dict[tuple[int, int], tuple[Claim, bytes]] = {}
    for key in list(bpf_calls.map_keys(books, KEY.size)):
        value = bpf_calls.map_lookup(books, key, CLAIM.size)
        if value is None:
            continue
        claim = decode_claim(key, value)
        if claim.number == context.number and claim.wild:
            found[claim.port, claim.protocol] = (claim, value)
    return found


def _enter(books: int, key: bytes, value: bytes, member: Member, port: int) -> None:
    count, *rest = CLAIM.unpack(value)
    stamped = CLAIM.pack(secrets.randbits(_STAMP_BITS) << 16 | count & 0xFFFF, *rest)
    try:
        bpf_calls.map_update(books, key, stamped, bpf_calls.NOEXIST)
    except FileExistsError as error:
        raise ExistsError(
            f"{member.address} cannot be added: its port {port} is taken",
            code="address-in-use",
            details="the context has a socket on * with that port, which would answer there as well",
            hint="end one of the two, or add the address with other ports",
        ) from error


def _has_port(member: Member, port: int, protocol: int) -> bool:
    name = "tcp" if protocol == IPPROTO_TCP else "udp"
    return not member.ports or any(one.low <= port <= one.high and one.protocol in ("", name) for one in member.ports)
