"""Conntrack entries: from ctnetlink to records, and created again.

An established connection matches ``ct state established`` after a restore only if its entry is there before the first
packet. The kernel does not tell a TCP entry's window, and starts again from the first packet it sees; all else that
it can be told comes back. NAT is not a status that can be set: the entry is created as if untranslated, together with
the translation, so that the kernel sets it up as for a first packet. Counters cannot be set and are not kept.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ckpt.errors import NetworkError
from ckpt.kernel import netlink
from ckpt.kernel.netlink import KernelRefusal, Netlink, attribute, ip_bytes, ip_text, nested, number, pairs, parse, u8
from ckpt.kernel.run import run
from ckpt.model.network import ConntrackEntry, FlowTuple, Unread

_SUBSYSTEM = 1 << 8
_CT_NEW = _SUBSYSTEM | 0
_CT_GET = _SUBSYSTEM | 1
_CT_DELETE = _SUBSYSTEM | 2
_CT_GET_STATS = _SUBSYSTEM | 5
_STATS_ENTRIES = 1
_ANY_FAMILY = struct.pack("=BBH", 0, 0, 0)

_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _PROTOINFO, _HELP, _NAT_SRC, _TIMEOUT, _MARK = 1, 2, 3, 4, 5, 6, 7, 8
_NAT_DST, _TUPLE_MASTER, _SEQ_ADJ_ORIG, _SEQ_ADJ_REPLY, _ZONE, _LABELS, _SYNPROXY = 13, 14, 15, 16, 18, 22, 24
# Counters, use count, id, security context and timestamps are the kernel's own.
_KNOWN = {1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 22, 24}

_ICMP, _DCCP, _SCTP = 1, 33, 132
_PROTOINFO_TCP = 1
_TCP_NUMBERS = {1: "state", 2: "wscale_original", 3: "wscale_reply"}
_TCP_FLAGS = {4: "flags_original", 5: "flags_reply"}
# The other protocols that have a state: their number of it, and its attributes with their sizes, which are big-endian.
_OTHER_STATES: Mapping[int, tuple[int, Mapping[int, tuple[str, int]]]] = {
    _DCCP: (2, {1: ("state", 1), 2: ("role", 1), 3: ("handshake_seq", 8)}),
    _SCTP: (3, {1: ("state", 1), 2: ("vtag_original", 4), 3: ("vtag_reply", 4)}),
}
_SYN_PROXY = {1: "isn", 2: "its", 3: "tsoff"}
_TUPLE_ZONE = 3
_SEQUENCE = {1: "correction_pos", 2: "offset_before", 3: "offset_after"}

_IPS_EXPECTED = 0x1
_IPS_SRC_NAT_DONE = 0x80
_IPS_DST_NAT_DONE = 0x100

_AF_INET, _AF_INET6 = 2, 10


def read_entries(netns: int) -> tuple[tuple[ConntrackEntry, ...], tuple[Unread, ...]]:
    """Every entry that ``netns`` tracks, and what of them cannot travel."""
    entries: list[ConntrackEntry] = []
    unread: list[Unread] = []
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        try:
            # Listing them walks a table that all namespaces share, which may have a quarter of a million buckets.
            if not _count(connection):
                return (), ()
            messages = connection.dump(_CT_GET, _ANY_FAMILY)
        except KernelRefusal:
            return (), ()  # a kernel without conntrack tracks nothing
    for kind, body in messages:
        if kind == _CT_NEW:
            entries.append(_decode(body, unread))
    there = {(one.original, one.protocol) for one in entries}
    unread += [
        Unread(code="conntrack-attribute", subject=_subject(one), what="has outlived the entry it was expected by")
        for one in entries
        if one.master is not None and (one.master, one.master_protocol) not in there
    ]
    return tuple(entries), tuple(unread)


def _count(connection: Netlink) -> int:
    """How many entries the socket's namespace has."""
    for _, body in connection.request(_CT_GET_STATS, _ANY_FAMILY):
        return number(parse(body, len(_ANY_FAMILY)).get(_STATS_ENTRIES, b""), "be")
    return 0


def _subject(entry: ConntrackEntry) -> str:
    flow = entry.original
    return f"conntrack entry {flow.source} to {flow.destination}, protocol {entry.protocol}"


def _decode(body: bytes, unread: list[Unread]) -> ConntrackEntry:
    found = parse(body, 4)
    protocol, original = decode_tuple(found[_TUPLE_ORIG])
    _, reply = decode_tuple(found[_TUPLE_REPLY])
    master_protocol, master = decode_tuple(found[_TUPLE_MASTER]) if _TUPLE_MASTER in found else (0, None)
    zone, zone_direction = _decode_zone(found)
    sequence: dict[str, int] = {}
    for kind, direction in ((_SEQ_ADJ_ORIG, "original"), (_SEQ_ADJ_REPLY, "reply")):
        for item, value in parse(found.get(kind, b"")).items():
            sequence[f"{direction}_{_SEQUENCE[item]}"] = number(value, "be")
    status = number(found[_STATUS], "be")
    protocol_state = _protocol_state(protocol, found.get(_PROTOINFO, b""))
    syn_proxy = {_SYN_PROXY.get(kind, ""): number(value, "be") for kind, value in pairs(found.get(_SYNPROXY, b""))}
    subject = f"conntrack entry {original.source} to {original.destination}, protocol {protocol}"
    for present, what in (
        (master is None and status & _IPS_EXPECTED, "was expected by another entry and will stand alone"),
        (_PROTOINFO in found and not protocol_state, "has the state of an unknown protocol"),
        (found.keys() - _KNOWN, f"has unknown attributes {sorted(found.keys() - _KNOWN)}"),
    ):
        if present:
            unread.append(Unread(code="conntrack-attribute", subject=subject, what=what))
    return ConntrackEntry(
        original=original,
        reply=reply,
        protocol=protocol,
        status=status,
        timeout=number(found.get(_TIMEOUT, b""), "be"),
        mark=number(found.get(_MARK, b""), "be"),
        zone=zone,
        helper=netlink.text(parse(found.get(_HELP, b"")).get(1, b"")),
        labels=found.get(_LABELS, b"") if any(found.get(_LABELS, b"")) else b"",
        protocol_state=protocol_state,
        sequence_adjust=sequence,
        zone_direction=zone_direction,
        master=master,
        master_protocol=master_protocol,
        syn_proxy=syn_proxy if any(syn_proxy.values()) else {},
    )


def _decode_zone(found: Mapping[int, bytes]) -> tuple[int, str]:
    """The zone and its direction: one of both directions is an attribute of the entry, others of the tuple."""
    for kind, direction in ((_TUPLE_ORIG, "original"), (_TUPLE_REPLY, "reply")):
        zone = parse(found[kind]).get(_TUPLE_ZONE)
        if zone is not None:
            return number(zone, "be"), direction
    return number(found.get(_ZONE, b""), "be"), ""


def decode_tuple(data: bytes) -> tuple[int, FlowTuple]:
    """The protocol and the rest of a nested tuple."""
    parts = parse(data)
    addresses, ports = parse(parts[1]), parse(parts[2])
    source, destination = (1, 2) if 1 in addresses else (3, 4)
    icmp = 4 if 4 in ports else 7

    def optional(kind: int) -> int:
        return number(ports[kind], "be") if kind in ports else -1

    return number(ports[1]), FlowTuple(
        source=ip_text(addresses[source]),
        destination=ip_text(addresses[destination]),
        source_port=number(ports.get(2, b""), "be"),
        destination_port=number(ports.get(3, b""), "be"),
        icmp_id=optional(icmp),
        icmp_type=optional(icmp + 1),
        icmp_code=optional(icmp + 2),
    )


def _protocol_state(protocol: int, data: bytes) -> dict[str, int]:
    if protocol in _OTHER_STATES:
        kind, known = _OTHER_STATES[protocol]
        return {
            known[item][0]: number(value, "be") for item, value in pairs(parse(data).get(kind, b"")) if item in known
        }
    tcp = parse(parse(data).get(_PROTOINFO_TCP, b""))
    state = {name: number(tcp[kind]) for kind, name in _TCP_NUMBERS.items() if kind in tcp}
    # struct nf_ct_tcp_flags: the flags, and a mask that is empty on the way out.
    state |= {name: tcp[kind][0] for kind, name in _TCP_FLAGS.items() if kind in tcp}
    return state


def create_entries(netns: int, entries: Iterable[ConntrackEntry]) -> None:
    """Create every entry, each after the one that it was expected by. Raises NetworkError that names the flow."""
    ordered = tuple(_masters_first(entries))
    room = _room_for_labels(netns) if any(entry.labels for entry in ordered) else contextlib.nullcontext()
    with room, Netlink(netlink.NETFILTER, netns=netns) as connection:
        for entry in ordered:
            try:
                _create(connection, _encode(entry))
            except KernelRefusal as error:
                flow = entry.original
                raise NetworkError(
                    f"cannot create the conntrack entry {flow.source}:{flow.source_port} to "
                    f"{flow.destination}:{flow.destination_port}, protocol {entry.protocol}",
                    code="conntrack-refused",
                    details=error.strerror,
                ) from error


def _create(connection: Netlink, body: bytes) -> None:
    try:
        connection.request(_CT_NEW, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)
    except KernelRefusal as error:
        if error.errno != errno.EEXIST:
            raise
        # The kernel says by itself which groups it is in, and may have done so a moment ago: what was is to be.
        with contextlib.suppress(KernelRefusal):
            connection.request(_CT_DELETE, body)
        connection.request(_CT_NEW, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)


@contextlib.contextmanager
def _room_for_labels(netns: int) -> Iterator[None]:
    """While it is open, new entries can have labels: the kernel drops them in silence unless some rule sets labels."""
    table = f"ckpt-labels-{secrets.token_hex(4)}"
    run(["nft", f"add table ip {table}; add chain ip {table} c; add rule ip {table} c ct label set 0"], netns=netns)
    try:
        yield
    finally:
        run(["nft", f"delete table ip {table}"], netns=netns)


def _masters_first(entries: Iterable[ConntrackEntry]) -> Iterator[ConntrackEntry]:
    """The entries in an order in which they can be made; one whose master is not among them stands alone."""
    waiting = list(entries)
    made: set[tuple[FlowTuple, int, int]] = set()
    while waiting:
        ready: list[ConntrackEntry] = []
        rest: list[ConntrackEntry] = []
        for one in waiting:
            alone = one.master is None or (one.master, one.master_protocol, one.zone) in made
            (ready if alone else rest).append(one)
        if not ready:
            ready, rest = [replace(one, master=None, master_protocol=0) for one in rest], []
        made |= {(one.original, one.protocol, one.zone) for one in ready}
        yield from ready
        waiting = rest


def _encode(entry: ConntrackEntry) -> bytes:
    translated = entry.status & (_IPS_SRC_NAT_DONE | _IPS_DST_NAT_DONE)
    reply = _inverse(entry) if translated else entry.reply
    parts = [
        nested(_TUPLE_ORIG, *encode_tuple(entry.original, entry.protocol), *_tuple_zone(entry, "original")),
        nested(_TUPLE_REPLY, *encode_tuple(reply, entry.protocol), *_tuple_zone(entry, "reply")),
        attribute(_STATUS, struct.pack(">I", entry.status & ~_IPS_EXPECTED)),
        attribute(_TIMEOUT, struct.pack(">I", entry.timeout)),
    ]
    if entry.status & _IPS_SRC_NAT_DONE:
        parts.append(nested(_NAT_SRC, *_translation(entry.reply.destination, entry.reply.destination_port)))
    if entry.status & _IPS_DST_NAT_DONE:
        parts.append(nested(_NAT_DST, *_translation(entry.reply.source, entry.reply.source_port)))
    if entry.mark:
        parts.append(attribute(_MARK, struct.pack(">I", entry.mark)))
    if entry.zone and not entry.zone_direction:
        parts.append(attribute(_ZONE, struct.pack(">H", entry.zone)))
    if entry.helper:
        parts.append(nested(_HELP, attribute(1, netlink.string(entry.helper))))
    if entry.labels:
        parts.append(attribute(_LABELS, entry.labels))
    if entry.protocol_state:
        parts.append(nested(_PROTOINFO, _encode_state(entry)))
    if entry.master:
        parts.append(nested(_TUPLE_MASTER, *encode_tuple(entry.master, entry.master_protocol)))
    if entry.syn_proxy:
        values = [attribute(kind, struct.pack(">I", entry.syn_proxy.get(name, 0))) for kind, name in _SYN_PROXY.items()]
        parts.append(nested(_SYNPROXY, *values))
    for kind, direction in ((_SEQ_ADJ_ORIG, "original"), (_SEQ_ADJ_REPLY, "reply")):
        adjusted = [
            attribute(item, struct.pack(">I", entry.sequence_adjust[f"{direction}_{name}"]))
            for item, name in _SEQUENCE.items()
            if f"{direction}_{name}" in entry.sequence_adjust
        ]
        if adjusted:
            parts.append(nested(kind, *adjusted))
    family = _AF_INET6 if ":" in entry.original.source else _AF_INET
    return struct.pack("=BBH", family, 0, 0) + b"".join(parts)


def _inverse(entry: ConntrackEntry) -> FlowTuple:
    """The reply to ``original`` as it would be without translation; an ICMP reply keeps its own type."""
    return FlowTuple(
        source=entry.original.destination,
        destination=entry.original.source,
        source_port=entry.original.destination_port,
        destination_port=entry.original.source_port,
        icmp_id=entry.original.icmp_id,
        icmp_type=entry.reply.icmp_type,
        icmp_code=entry.reply.icmp_code,
    )


def _tuple_zone(entry: ConntrackEntry, direction: str) -> tuple[bytes, ...]:
    zone = attribute(_TUPLE_ZONE, struct.pack(">H", entry.zone))
    return (zone,) if entry.zone_direction == direction else ()


def encode_tuple(flow: FlowTuple, protocol: int) -> tuple[bytes, bytes]:
    """The mirror of ``decode_tuple``."""
    source = ip_bytes(flow.source)
    first = 1 if len(source) == 4 else 3
    addresses = nested(1, attribute(first, source), attribute(first + 1, ip_bytes(flow.destination)))
    parts = [attribute(1, u8(protocol))]
    if flow.icmp_id >= 0:
        icmp = 4 if protocol == _ICMP else 7
        parts.append(attribute(icmp, struct.pack(">H", flow.icmp_id)))
        parts.append(attribute(icmp + 1, u8(flow.icmp_type)))
        parts.append(attribute(icmp + 2, u8(flow.icmp_code)))
    else:
        parts.append(attribute(2, struct.pack(">H", flow.source_port)))
        parts.append(attribute(3, struct.pack(">H", flow.destination_port)))
    return addresses, nested(2, *parts)


def _translation(address: str, port: int) -> list[bytes]:
    value = ip_bytes(address)
    first, last = (1, 2) if len(value) == 4 else (4, 5)
    parts = [attribute(first, value), attribute(last, value)]
    if port:
        packed = struct.pack(">H", port)
        parts.append(nested(3, attribute(1, packed), attribute(2, packed)))
    return parts


def _encode_state(entry: ConntrackEntry) -> bytes:
    if entry.protocol not in _OTHER_STATES:
        return nested(_PROTOINFO_TCP, *_encode_tcp(entry.protocol_state))
    kind, known = _OTHER_STATES[entry.protocol]
    state = entry.protocol_state
    values = [(item, state.get(name, 0).to_bytes(size, "big")) for item, (name, size) in known.items()]
    return nested(kind, *(attribute(item, value) for item, value in values))


def _encode_tcp(state: Mapping[str, int]) -> list[bytes]:
    parts = [attribute(kind, u8(state[name])) for kind, name in _TCP_NUMBERS.items() if name in state]
    # The mask says which flags to take: all of them.
    parts += [attribute(kind, bytes([state[name], 0xFF])) for kind, name in _TCP_FLAGS.items() if name in state]
    return parts
