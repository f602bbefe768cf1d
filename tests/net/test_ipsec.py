"""IPsec: policies read and made again are equal to ``ip xfrm``; states too, where the kernel has ESP."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt.errors import NetworkError
from ckpt.kernel import rtnl, xfrm, xfrm_codec
from ckpt.model.finding import Severity
from ckpt.model.ipsec import NO_IPSEC, Ipsec, XfrmKey, XfrmPolicy, XfrmSelector, XfrmState
from ckpt.model.network import Network
from ckpt.model.travel import cannot_travel
from tests.net.spaces import differences, fresh, restored, shell

POLICIES = """
ip xfrm policy add src 10.0.0.0/24 dst 10.1.0.0/24 dir out priority 5 \
    tmpl src 1.1.1.1 dst 2.2.2.2 proto esp reqid 5 mode tunnel
ip xfrm policy add src 10.0.0.0/24 dst 10.1.0.0/24 dir in action block priority 5 mark 5 mask 0xff if_id 7
ip xfrm policy add src 10.0.0.0/24 dst 10.1.0.0/24 proto tcp sport 5 dport 6 dev v0 dir fwd index 50 priority 5 \
    flag localok limit byte-hard 500
ip xfrm policy add src fd00::/64 dst ::/0 dir out ptype sub tmpl src ::1 dst ::2 proto ah mode transport level use
ip xfrm policy add dir in
ip xfrm policy set hthresh4 24 16
ip xfrm policy setdefault in block
"""
STATES = """
ip xfrm state add src 1.1.1.1 dst 2.2.2.2 proto esp spi 0x100 reqid 5 mode tunnel replay-window 32 \
    aead 'rfc4106(gcm(aes))' 0x000102030405060708090a0b0c0d0e0f10111213 128 encap espinudp 4500 4500 0.0.0.0 \
    mark 5 mask 0xff if_id 7 replay-oseq 70 replay-seq 80 limit byte-hard 100000 sel src 10.0.0.0/24 dst 10.1.0.0/24
ip xfrm state add src ::1 dst ::2 proto esp spi 0x101 reqid 6 mode transport flag esn replay-window 64 \
    auth-trunc 'hmac(sha256)' 0x0102030405060708 128 enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f
"""
SHOWN = "ip -d xfrm policy; ip xfrm policy getdefault; ip xfrm policy count; ip -s -d xfrm state"


def links(space: int) -> None:
    shell("ip link add v0 index 70 type veth peer name v1 index 71", space)


def shown(space: int) -> list[str]:
    # When it was first and last used is the kernel's to count; a state's own selector is shown with its age.
    return re.sub(r"(add|use) \d{4}-\S+ \S+|lastused .*", "", shell(SHOWN, space)).splitlines()


def test_policies_made_again_look_equal() -> None:
    with fresh() as space:
        links(space)
        shell(POLICIES, space)
        network = rtnl.read_network(space)
        assert len(network.ipsec.policies) == 5
        assert (network.ipsec.blocked, network.ipsec.thresholds) == (("in",), {"4": "24/16"})
        with restored(network) as copy:
            assert differences(rtnl.read_network(copy).ipsec, network.ipsec) == []
            assert differences(shown(copy), shown(space)) == []


def test_states_made_again_look_equal() -> None:
    with fresh() as space:
        links(space)
        try:
            shell(STATES, space)
        except AssertionError as error:
            pytest.skip(f"this kernel has no ESP: tested on the machines that have: {error}")
        network = rtnl.read_network(space)
        assert len(network.ipsec.states) == 2
        with restored(network) as copy:
            assert differences(rtnl.read_network(copy).ipsec, network.ipsec) == []
            assert differences(shown(copy), shown(space)) == []


def test_namespace_without_ipsec_has_none() -> None:
    with fresh() as space:
        assert xfrm.read_ipsec(space, {}) == (NO_IPSEC, ())


def test_reserved_state_is_named() -> None:
    with fresh() as space:
        shell("ip xfrm state allocspi src 1.1.1.1 dst 2.2.2.2 proto esp min 0x200 max 0x200", space)
        found, unread = xfrm.read_ipsec(space, {})
    assert found.states == ()
    subject = "IPsec state 1.1.1.1 to 2.2.2.2, protocol 50, SPI 0x200"
    assert [(one.code, one.subject) for one in unread] == [("xfrm-reserved", subject)]


def test_lifetime_of_a_policy_is_named() -> None:
    with fresh() as space:
        shell("ip xfrm policy add dir in src 10.0.0.0/8 limit time-hard 600", space)
        _, unread = xfrm.read_ipsec(space, {})
    assert [(one.code, one.subject) for one in unread] == [
        ("xfrm-lifetime", "IPsec policy in 10.0.0.0/8 to 0.0.0.0/0"),
    ]


def test_refused_policy_is_named() -> None:
    wrong = XfrmPolicy(direction=1, selector=XfrmSelector(family=4, source="10.0.0.0/8", destination="0.0.0.0/0"))
    with fresh() as space, pytest.raises(NetworkError) as caught:
        xfrm.apply_ipsec(space, Ipsec(policies=(wrong, wrong)), {})
    assert caught.value.brief == "cannot make the IPsec policy out 10.0.0.0/8 to 0.0.0.0/0"
    assert caught.value.code == "xfrm-refused"


def test_key_is_shown_by_its_digest() -> None:
    secret = os.urandom(20)
    state = state_of(keys={"alg_aead": XfrmKey(value=b"rfc4106(gcm(aes))".ljust(64, b"\0") + bytes(8) + secret)})
    for text in (repr(state), str(state.keys["alg_aead"]), xfrm.describe(state)):
        assert repr(secret)[2:-1] not in text
        assert secret.hex() not in text
    assert str(state.keys["alg_aead"]).startswith("rfc4106(gcm(aes)) (SHA-256 ")


def test_states_are_told_to_hold_keys() -> None:
    (finding,) = cannot_travel(Network(ipsec=Ipsec(states=(state_of(),))))
    assert (finding.severity, finding.code, finding.subject) == (Severity.WARN, "ipsec-keys", "1 IPsec states")


def state_of(**changes: object) -> XfrmState:
    """An ESP tunnel."""
    fields: dict[str, object] = {
        "family": 4,
        "source": "1.1.1.1",
        "destination": "2.2.2.2",
        "spi": 256,
        "protocol": 50,
        "mode": 1,
    }
    return XfrmState(**fields | changes)  # type: ignore[arg-type]


_BYTES = st.binary(min_size=4, max_size=40)
_WORDS = st.integers(0, 0xFFFFFFFF)
_LONGS = st.integers(1, 2**64 - 2)
_SELECTORS = st.builds(
    XfrmSelector,
    family=st.just(6),
    source=st.just("fd00::/64"),
    destination=st.just("::/0"),
    source_port=st.integers(0, 65535),
    destination_port_mask=st.integers(0, 65535),
    protocol=st.integers(0, 255),
    ifname=st.sampled_from(["", "v0"]),
    user=_WORDS,
)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    state=st.builds(
        state_of,
        spi=_WORDS,
        reqid=_WORDS,
        sequence=_WORDS,
        replay_window=st.integers(0, 255),
        flags=st.integers(0, 255),
        selector=_SELECTORS,
        limits=st.dictionaries(st.sampled_from(["hard_byte_limit", "soft_add_expires_seconds"]), _LONGS),
        used=st.fixed_dictionaries(dict.fromkeys(("bytes", "packets", "add_time", "use_time"), _LONGS)),
        keys=st.dictionaries(st.sampled_from(["alg_aead", "alg_auth_trunc"]), st.builds(XfrmKey, value=_BYTES)),
        attributes=st.dictionaries(st.sampled_from(["encap", "mark", "replay_esn_val", "if_id"]), _BYTES),
    )
)
def test_state_decoded_from_its_bytes_is_equal(state: XfrmState) -> None:
    # What is used is told by an attribute of its own, which the kernel lists in the fixed part alone.
    body = xfrm_codec.encode_state(state, {"v0": 7})
    again, unknown = xfrm_codec.decode_state(body, {7: "v0"})
    assert differences(again, state) == []
    assert unknown == {9}
