"""xfrm's structures: from the kernel's bytes to records, and back. Nothing here talks to a kernel."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from ckpt.kernel.netlink import attribute, ip_bytes, ip_text, pairs
from ckpt.model.ipsec import XfrmKey, XfrmPolicy, XfrmSelector, XfrmState

# struct xfrm_selector, xfrm_id, xfrm_usersa_info and xfrm_userpolicy_info as the 64-bit kernel lays them out.
_SELECTOR = struct.Struct("=16s16s8sHBBB3xiI")
_ID = struct.Struct("=16s4sB3x")
_STATE = struct.Struct("=56s24s16s8Q4Q12xIIHBBB7x")
_POLICY = struct.Struct("=56s8Q4QIIBBBB4x")
_PORTS = struct.Struct(">4H")

_LIMITS = (
    "soft_byte_limit",
    "hard_byte_limit",
    "soft_packet_limit",
    "hard_packet_limit",
    "soft_add_expires_seconds",
    "hard_add_expires_seconds",
    "soft_use_expires_seconds",
    "hard_use_expires_seconds",
)
_USED = ("bytes", "packets", "add_time", "use_time")
_NO_LIMIT = {name: 0xFFFFFFFFFFFFFFFF if name.endswith("_limit") else 0 for name in _LIMITS}

_AF = {4: 2, 6: 10, 0: 0}
_FAMILY = {2: 4, 10: 6}

_LTIME_VAL = 9
ATTRIBUTES = {
    1: "alg_auth",
    2: "alg_crypt",
    3: "alg_comp",
    4: "encap",
    5: "tmpl",
    8: "sec_ctx",
    10: "replay_val",
    14: "coaddr",
    16: "policy_type",
    18: "alg_aead",
    20: "alg_auth_trunc",
    21: "mark",
    22: "tfcpad",
    23: "replay_esn_val",
    24: "sa_extra_flags",
    25: "proto",
    26: "address_filter",
    28: "offload_dev",
    29: "set_mark",
    30: "set_mark_mask",
    31: "if_id",
    32: "mtimer_thresh",
    33: "sa_dir",
    34: "nat_keepalive_interval",
    35: "sa_pcpu",
    36: "iptfs_drop_time",
    37: "iptfs_reorder_window",
    38: "iptfs_dont_frag",
    39: "iptfs_init_delay",
    40: "iptfs_max_qsize",
    41: "iptfs_pkt_size",
}
"""The attributes (XFRMA_*) that a state or policy keeps, by number."""
_ALGORITHMS = tuple(name for name in ATTRIBUTES.values() if name.startswith("alg_"))
_NUMBERS = {name: kind for kind, name in ATTRIBUTES.items()}

# The padding, and the time of the last use, which the kernel counts anew.
_PASSING = {15, 27}


def decode_state(body: bytes, names: Mapping[int, str]) -> tuple[XfrmState, frozenset[int]]:
    """A state and the numbers of the attributes that are not known; ``names`` are the links' by their index."""
    selector, identity, source, *rest = _STATE.unpack_from(body)
    limits, used, (seq, reqid, family, mode, window, flags) = rest[:8], rest[8:12], rest[12:]
    destination, spi, protocol = _ID.unpack(identity)
    attributes, unknown = _decode_attributes(body, _STATE.size)
    keys = {name: XfrmKey(value=attributes.pop(name)) for name in _ALGORITHMS if name in attributes}
    if "alg_auth_trunc" in keys:
        keys.pop("alg_auth", None)  # the same once more, for tools that know no truncation
    state = XfrmState(
        family=_FAMILY[family],
        source=_address(source, family),
        destination=_address(destination, family),
        spi=int.from_bytes(spi, "big"),
        protocol=protocol,
        mode=mode,
        reqid=reqid,
        sequence=seq,
        replay_window=window,
        flags=flags,
        selector=_decode_selector(selector, names),
        limits=_changed(dict(zip(_LIMITS, limits, strict=True)), _NO_LIMIT),
        used=dict(zip(_USED, used, strict=True)),
        keys=keys,
        attributes=attributes,
    )
    return state, unknown


def encode_state(state: XfrmState, indices: Mapping[str, int]) -> bytes:
    """The mirror of ``decode_state``; what was used is told by an attribute, which the kernel takes it from."""
    limits = {**_NO_LIMIT, **state.limits}
    used = [state.used.get(name, 0) for name in _USED]
    body = _STATE.pack(
        _encode_selector(state.selector, indices),
        _ID.pack(_packed(state.destination), state.spi.to_bytes(4, "big"), state.protocol),
        _packed(state.source),
        *(limits[name] for name in _LIMITS),
        *used,
        state.sequence,
        state.reqid,
        _AF[state.family],
        state.mode,
        state.replay_window,
        state.flags,
    )
    lifetime = attribute(_LTIME_VAL, struct.pack("=4Q", *used)) if state.used else b""
    keys = {name: key.value for name, key in state.keys.items()}
    return body + lifetime + _encode_attributes({**keys, **state.attributes})


def decode_policy(body: bytes, names: Mapping[int, str]) -> tuple[XfrmPolicy, frozenset[int]]:
    """A policy and the numbers of the attributes that are not known."""
    selector, *rest = _POLICY.unpack_from(body)
    limits, (priority, index, direction, action, flags, share) = rest[:8], rest[12:]
    attributes, unknown = _decode_attributes(body, _POLICY.size)
    if not any(attributes.get("policy_type", b"")):
        attributes.pop("policy_type", None)  # always told; the main type is the default
    policy = XfrmPolicy(
        direction=direction,
        selector=_decode_selector(selector, names),
        action=action,
        priority=priority,
        index=index,
        flags=flags,
        share=share,
        limits=_changed(dict(zip(_LIMITS, limits, strict=True)), _NO_LIMIT),
        attributes=attributes,
    )
    return policy, unknown


def encode_policy(policy: XfrmPolicy, indices: Mapping[str, int]) -> bytes:
    """The mirror of ``decode_policy``."""
    limits = {**_NO_LIMIT, **policy.limits}
    body = _POLICY.pack(
        _encode_selector(policy.selector, indices),
        *(limits[name] for name in _LIMITS),
        *(0, 0, 0, 0),
        policy.priority,
        policy.index,
        policy.direction,
        policy.action,
        policy.flags,
        policy.share,
    )
    return body + _encode_attributes(policy.attributes)


def _decode_attributes(body: bytes, offset: int) -> tuple[dict[str, bytes], frozenset[int]]:
    found = dict(pairs(body, offset))
    known = {ATTRIBUTES[kind]: value for kind, value in found.items() if kind in ATTRIBUTES}
    return known, frozenset(found.keys() - ATTRIBUTES.keys() - _PASSING)


def _encode_attributes(attributes: Mapping[str, bytes]) -> bytes:
    return b"".join(attribute(_NUMBERS[name], value) for name, value in attributes.items())


def _decode_selector(data: bytes, names: Mapping[int, str]) -> XfrmSelector:
    destination, source, ports, family, length_d, length_s, protocol, ifindex, user = _SELECTOR.unpack(data)
    dport, dport_mask, sport, sport_mask = _PORTS.unpack(ports)
    any_family = family not in _FAMILY
    return XfrmSelector(
        family=_FAMILY.get(family, 0),
        source="" if any_family else f"{_address(source, family)}/{length_s}",
        destination="" if any_family else f"{_address(destination, family)}/{length_d}",
        source_port=sport,
        source_port_mask=sport_mask,
        destination_port=dport,
        destination_port_mask=dport_mask,
        protocol=protocol,
        ifname=names.get(ifindex, str(ifindex)) if ifindex else "",
        user=user,
    )


def _encode_selector(selector: XfrmSelector, indices: Mapping[str, int]) -> bytes:
    destination, _, length_d = selector.destination.partition("/")
    source, _, length_s = selector.source.partition("/")
    masks = (selector.destination_port, selector.destination_port_mask)
    return _SELECTOR.pack(
        _packed(destination),
        _packed(source),
        _PORTS.pack(*masks, selector.source_port, selector.source_port_mask),
        _AF[selector.family],
        int(length_d or 0),
        int(length_s or 0),
        selector.protocol,
        (indices.get(selector.ifname) or int(selector.ifname)) if selector.ifname else 0,
        selector.user,
    )


def _address(data: bytes, family: int) -> str:
    return ip_text(data[:4] if family == _AF[4] else data)


def _packed(address: str) -> bytes:
    return ip_bytes(address).ljust(16, b"\0") if address else bytes(16)


def _changed(values: Mapping[str, int], defaults: Mapping[str, int]) -> dict[str, int]:
    return {name: value for name, value in values.items() if value != defaults[name]}
