"""Changing the books by hand: for a context whose set changes while its processes stand still, and after a crash.

Each socket on `*` has an entry for each address of its set. An address that comes needs entries of its own, with the
counts and flags of the others; one that goes loses its entries. Everybody else writes the books at the same time, so
an entry is made only where there is none, and what was made is taken back when one cannot be.

An entry whose socket is gone would keep its port for ever. That it is gone only the kernel knows, and by asking for the
port: a socket has that from before it is booked until after it has given the entry back. Not so one whose port the
kernel chose, and may take away (inet_csk_destroy_sock and __udp_disconnect spare those of SOCK_BINDPORT_LOCK), while
the entry stays until it is closed: of those ports nothing can be told.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from ckpt.errors import ExistsError, NotFoundError
from ckpt.kernel import bpf_calls, context_floor, context_sockets
from ckpt.kernel.context_maps import CLAIM, KEY, WILD4, WILD6, Claim, Surroundings, address_bytes, decode_claim
from ckpt.model.context import Context, Member
from ckpt.model.socket import IPPROTO_TCP

_STAMP_BITS = 48
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78


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


def leaked(contexts: Iterable[Context], around: Surroundings) -> Iterator[Claim]:
    """Entries that nobody will give back; ``contexts`` are all that there are, and nobody may be changing one.

    They are of an address that has left its context's set, or of a socket that is gone.
    """
    known = tuple(contexts)
    bound = {(one.protocol, one.local.address, one.local.port) for _, one in context_sockets.everywhere()}
    for claim in claims():
        stray = _is_stray(claim, known)
        if stray or (claim.protocol_name, claim.primary, claim.port) not in bound:
            with _abandoned(claim, around, stray=stray) as gone:
                found = gone
            if found:
                yield claim


def strike_leaked(claim: Claim, contexts: Iterable[Context], around: Surroundings) -> None:
    """Remove an entry that ``leaked`` has found; NotFoundError when it went by itself, or somebody has it again."""
    with context_floor.opened() as floor, _abandoned(claim, around, stray=_is_stray(claim, contexts)) as gone:
        if floor is None or not gone:
            raise NotFoundError(f"{claim} is not left in the books", code="booking-missing")
        bpf_calls.map_delete(floor.books, KEY.pack(address_bytes(claim.address), claim.port, claim.protocol, 0))


def _is_stray(claim: Claim, contexts: Iterable[Context]) -> bool:
    """Whether the context of an entry is there, and has another set."""
    return any(
        claim.number == one.number
        and claim.address not in {one.loopback4, one.loopback6, *(member.address for member in one.members)}
        for one in contexts
    )


@contextlib.contextmanager
def _abandoned(claim: Claim, around: Surroundings, *, stray: bool) -> Iterator[bool]:
    """Whether nobody will give an entry back. For the time of the block nobody new gets its port."""
    if stray:
        yield claim in claims()
        return
    if around.low <= claim.port <= around.high:
        yield False
        return
    six = ":" in claim.primary
    kind = socket.SOCK_STREAM if claim.protocol == IPPROTO_TCP else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind) as asking:
        # The address may have left the host.
        if six:
            asking.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            asking.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        else:
            asking.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        try:
            asking.bind((claim.primary, claim.port))
        except OSError:
            yield False
        else:
            yield claim in claims()


def claims() -> tuple[Claim, ...]:
    """The books of the caller's namespace."""
    with context_floor.opened() as floor:
        if floor is None:
            return ()
        found = []
        for key in list(bpf_calls.map_keys(floor.books, KEY.size)):
            value = bpf_calls.map_lookup(floor.books, key, CLAIM.size)
            if value is not None:
                found.append(decode_claim(key, value))
        return tuple(found)


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
