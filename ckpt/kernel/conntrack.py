"""Conntrack entries: from ctnetlink to records, and created again.

An established connection matches ``ct state established`` after a restore only if its entry is there before the first
packet. The kernel does not tell a TCP entry's window, and starts again from the first packet it sees; all else that
it can be told comes back. NAT is not a status that can be set: the entry is created as if untranslated, together with
the translation, so that the kernel sets it up as for a first packet. Counters cannot be set and are not kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from ckpt.errors import NetworkError
from ckpt.kernel import netlink
from ckpt.kernel.netlink import KernelRefusal, Netlink, attribute, ip_bytes, ip_text, nested, number, parse, u8
from ckpt.model.network import ConntrackEntry, FlowTuple, Unread

_SUBSYSTEM = 1 << 8
_CT_NEW = _SUBSYSTEM | 0
_CT_GET = _SUBSYSTEM | 1

_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _PROTOINFO, _HELP, _NAT_SRC, _TIMEOUT, _MARK = 1, 2, 3, 4, 5, 6, 7, 8
_NAT_DST, _TUPLE_MASTER, _SEQ_ADJ_ORIG, _SEQ_ADJ_REPLY, _ZONE, _LABELS, _SYNPROXY = 13, 14, 15, 16, 18, 22, 24
# Counters, use count, id, security context and timestamps are the kernel's own.
_KNOWN = {1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 22, 24}

_ICMP = 1
_PROTOINFO_TCP = 1
_TCP_NUMBERS = {1: "state", 2: "wscale_original", 3: "wscale_reply"}
_TCP_FLAGS = {4: "flags_original", 5: "flags_reply"}
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
            messages = connection.dump(_CT_GET, struct.pack("=BBH", 0, 0, 0))
        except KernelRefusal:
            return (), ()  # a kernel without conntrack tracks nothing
    for kind, body in messages:
        if kind == _CT_NEW:
            entries.append(_decode(body, unread))
    return tuple(entries), tuple(unread)


def _decode(body: bytes, unread: list[Unread]) -> ConntrackEntry:
    found = parse(body, 4)
    protocol, original = _decode_tuple(found[_TUPLE_ORIG])
    _, reply = _decode_tuple(found[_TUPLE_REPLY])
    sequence: dict[str, int] = {}
    for kind, direction in ((_SEQ_ADJ_ORIG, "original"), (_SEQ_ADJ_REPLY, "reply")):
        for item, value in parse(found.get(kind, b"")).items():
            sequence[f"{direction}_{_SEQUENCE[item]}"] = number(value, "be")
    status = number(found[_STATUS], "be")
    protocol_state = _protocol_state(found.get(_PROTOINFO, b""))
    subject = f"conntrack entry {original.source} to {original.destination}, protocol {protocol}"
    for present, what in (
        (_TUPLE_MASTER in found or status & _IPS_EXPECTED, "was expected by another entry and will stand alone"),
        (any(any(value) for value in parse(found.get(_SYNPROXY, b"")).values()), "goes through a SYN proxy"),
        (_PROTOINFO in found and not protocol_state, "has the state of a protocol other than TCP"),
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
        zone=number(found.get(_ZONE, b""), "be"),
        helper=netlink.text(parse(found.get(_HELP, b"")).get(1, b"")),
        labels=found.get(_LABELS, b"") if any(found.get(_LABELS, b"")) else b"",
        protocol_state=protocol_state,
        sequence_adjust=sequence,
    )


def _decode_tuple(data: bytes) -> tuple[int, FlowTuple]:
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


def _protocol_state(data: bytes) -> dict[str, int]:
    tcp = parse(parse(data).get(_PROTOINFO_TCP, b""))
    state = {name: number(tcp[kind]) for kind, name in _TCP_NUMBERS.items() if kind in tcp}
    # struct nf_ct_tcp_flags: the flags, and a mask that is empty on the way out.
    state |= {name: tcp[kind][0] for kind, name in _TCP_FLAGS.items() if kind in tcp}
    return state


def create_entries(netns: int, entries: Iterable[ConntrackEntry]) -> None:
    """Create every entry. Raises NetworkError that names the flow."""
    with Netlink(netlink.NETFILTER, netns=netns) as connection:
        for entry in entries:
            try:
                connection.request(_CT_NEW, _encode(entry), netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)
            except KernelRefusal as error:
                flow = entry.original
                raise NetworkError(
                    f"cannot create the conntrack entry {flow.source}:{flow.source_port} to "
                    f"{flow.destination}:{flow.destination_port}, protocol {entry.protocol}",
                    code="conntrack-refused",
                    details=error.strerror,
                ) from error


def _encode(entry: ConntrackEntry) -> bytes:
    translated = entry.status & (_IPS_SRC_NAT_DONE | _IPS_DST_NAT_DONE)
    reply = _inverse(entry) if translated else entry.reply
    parts = [
        nested(_TUPLE_ORIG, *_encode_tuple(entry.original, entry.protocol)),
        nested(_TUPLE_REPLY, *_encode_tuple(reply, entry.protocol)),
        attribute(_STATUS, struct.pack(">I", entry.status & ~_IPS_EXPECTED)),
        attribute(_TIMEOUT, struct.pack(">I", entry.timeout)),
    ]
    if entry.status & _IPS_SRC_NAT_DONE:
        parts.append(nested(_NAT_SRC, *_translation(entry.reply.destination, entry.reply.destination_port)))
    if entry.status & _IPS_DST_NAT_DONE:
        parts.append(nested(_NAT_DST, *_translation(entry.reply.source, entry.reply.source_port)))
    if entry.mark:
        parts.append(attribute(_MARK, struct.pack(">I", entry.mark)))
    if entry.zone:
        parts.append(attribute(_ZONE, struct.pack(">H", entry.zone)))
    if entry.helper:
        parts.append(nested(_HELP, attribute(1, netlink.string(entry.helper))))
    if entry.labels:
        parts.append(attribute(_LABELS, entry.labels))
    if entry.protocol_state:
        parts.append(nested(_PROTOINFO, nested(_PROTOINFO_TCP, *_encode_tcp(entry.protocol_state))))
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


def _encode_tuple(flow: FlowTuple, protocol: int) -> tuple[bytes, bytes]:
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


def _encode_tcp(state: Mapping[str, int]) -> list[bytes]:
    parts = [attribute(kind, u8(state[name])) for kind, name in _TCP_NUMBERS.items() if name in state]
    # The mask says which flags to take: all of them.
    parts += [attribute(kind, bytes([state[name], 0xFF])) for kind, name in _TCP_FLAGS.items() if name in state]
    return parts
