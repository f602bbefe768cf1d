"""The oracle over kinds of link that few kernels have: HSR and PRP, MACsec, AMT; and those that are refused by name.

What this machine's kernel lacks skips, with the reason, wherever it runs; the machines of the lab have it.
"""

from __future__ import annotations

import pytest

from ckpt.kernel import rtnl
from ckpt.model.finding import blocking
from ckpt.model.travel import cannot_travel
from tests.net.oracle import assert_copy_equal, copied, need
from tests.net.spaces import settle, shell

PAIRS = """ip link add va address 02:00:00:00:00:0a type veth peer name wa
    ip link add vb address 02:00:00:00:00:0b type veth peer name wb
    for one in va vb wa wb; do ip link set $one up; done
"""
RING = "type hsr slave1 va slave2 vb"

RARE = {
    "hsr": f"ip link add ring index 60 {RING} supervision 45; ip link set ring up; ip addr add 10.5.0.1/24 dev ring",
    "hsr-version-1": f"ip link add ring {RING} supervision 1 version 1; ip link set ring mtu 1300 up",
    "prp": f"ip link add ring {RING} supervision 7 proto 1; ip link set ring up; ip addr add 10.5.0.1/24 dev ring",
    "prp-down": f"ip link add ring {RING} proto 1",
    "prp-numbered-before-its-ports": """ip link add vc index 71 type veth peer name wc index 72
        ip link add vd index 73 type veth peer name wd index 74; ip link set vc up; ip link set wc up
        ip link add ring index 60 type hsr slave1 vd slave2 vc proto 1; ip link set ring up""",
    "macsec": """ip link add link va name ms0 index 60 type macsec; ip link set ms0 mtu 1400 up
        ip addr add 10.5.0.1/24 dev ms0""",
    "macsec-options": """ip link add link va name ms0 type macsec sci 0200000000550009 icvlen 12 cipher gcm-aes-256 \\
            encrypt on protect on replay on window 77 validate check encodingsa 2
        ip link add link va name ms1 type macsec port 11 encrypt on; ip link set ms1 up
        ip link add link wb name ms2 type macsec send_sci off end_station on validate disabled protect off""",
    "macsec-without-its-sci": "ip link add link va name ms0 type macsec port 5 send_sci off scb on; ip link set ms0 up",
    "amt-relay": """ip addr add 10.6.0.1/24 dev va
        ip link add am0 index 60 type amt mode relay local 10.6.0.1 dev va relay_port 2269 max_tunnels 7
        ip link set am0 mtu 1300 up""",
    "amt-gateway": """ip addr add 10.6.0.1/24 dev va
        ip link add am0 type amt mode gateway local 10.6.0.1 discovery 10.6.0.2 dev va gateway_port 2300
        ip link set am0 up""",
    "vsockmon": "ip link add vm0 index 60 type vsockmon; ip link set vm0 up; ip link add vm1 mtu 4000 type vsockmon",
}
COMMANDS = ("ip -j -d link", "ip -j addr", "ip macsec show", "ip -j -d route show table all")


@pytest.mark.parametrize("what", RARE)
def test_copy_of_a_rare_link_is_equal(group: int, what: str) -> None:
    need(PAIRS + RARE[what], f"links as in {what}")
    shell(PAIRS + RARE[what], group)
    settle(group)
    network = assert_copy_equal(group, COMMANDS)
    assert cannot_travel(network) == ()


def test_macsec_copies_speak_to_each_other_once_they_have_keys(group: int) -> None:
    """What was made without keys is whole: with the same keys, frames pass as they do between originals."""
    script = (
        PAIRS
        + """ip link add link va name ms0 type macsec port 1 encrypt on; ip link set ms0 up
        ip link add link wa name ms1 address 02:00:00:00:00:0f type macsec port 1 encrypt on; ip link set ms1 up"""
    )
    need(script, "macsec")
    shell(script, group)
    with copied(group) as (_, copy):
        key = "0123456789abcdef0123456789abcdef"
        mine, other = ("port 1 address 02:00:00:00:00:0f", "port 1 address 02:00:00:00:00:0a")
        for link, peer in (("ms0", mine), ("ms1", other)):
            shell(f"ip macsec add {link} tx sa 0 pn 1 on key 01 {key}; ip macsec add {link} rx {peer}", copy)
            shell(f"ip macsec add {link} rx {peer} sa 0 pn 1 on key 01 {key}", copy)
        shell("ip addr add fd05::1/64 dev ms0 nodad; ip link add red type vrf table 9; ip link set red up", copy)
        shell("ip link set ms1 master red; ip addr add fd05::2/64 dev ms1 nodad; ping -c 1 -W 20 fd05::2", copy)


KEYS = {
    "sending": ("ip macsec add x0 tx sa 0 pn 1 on key 01 0123456789abcdef0123456789abcdef", "1 keys", "0 peers"),
    "receiving": (
        """ip macsec add x0 rx port 1 address 02:00:00:00:00:0f
        ip macsec add x0 rx port 1 address 02:00:00:00:00:0f sa 0 pn 1 on key 02 0123456789abcdef0123456789abcdef""",
        "1 keys",
        "1 peers",
    ),
    "peer": ("ip macsec add x0 rx port 1 address 02:00:00:00:00:0f", "0 keys", "1 peers"),
}


@pytest.mark.parametrize("what", KEYS)
def test_macsec_that_has_keys_or_peers_cannot_travel(group: int, what: str) -> None:
    script, keys, peers = KEYS[what]
    script = f"{PAIRS} ip link add link va name x0 type macsec; {script}"
    need(script, "macsec")
    shell(script, group)
    [found] = blocking(cannot_travel(rtnl.read_network(group)))
    assert (found.code, found.subject) == ("macsec-keys", "link x0")
    assert keys in found.reason and peers in found.reason


def test_ring_that_speaks_no_version_that_can_be_heard_cannot_travel(group: int) -> None:
    need(PAIRS + f"ip link add ring {RING}", "links of kind hsr")
    shell(PAIRS + f"ip link add ring {RING}", group)
    [found] = blocking(cannot_travel(rtnl.read_network(group)))
    assert (found.code, found.subject) == ("link-kind", "link ring")
    assert "which version of HSR" in found.reason


def test_ring_that_lost_a_port_cannot_travel(group: int) -> None:
    need(PAIRS + f"ip link add ring {RING} proto 1", "links of kind hsr")
    shell(PAIRS + f"ip link add ring {RING} proto 1; ip link del vb", group)
    [found] = blocking(cannot_travel(rtnl.read_network(group)))
    assert (found.subject, found.reason) == (
        "link ring",
        "it has lost one of its two ports, without which none is made",
    )


REFUSED = {
    "batadv": ("ip link add x0 type batadv", "a protocol that ckpt does not speak"),
    "gtp": ("ip link add x0 type gtp role sgsn", "which sockets a gtp sends by"),
    "pfcp": ("ip link add x0 type pfcp", "in which network namespace"),
    "rmnet": ("ip link add link v0 name x0 type rmnet mux_id 5", "the modem that an rmnet stands on"),
    "ovpn": ("ip link add x0 type ovpn", "the keys of an ovpn"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_link_that_cannot_be_made_again_is_refused_with_the_reason(group: int, kind: str) -> None:
    script, reason = REFUSED[kind]
    need(script, f"links of kind {kind}")
    shell(f"ip link add v0 type veth peer name v1; {script}", group)
    found = {one.subject: one.reason for one in blocking(cannot_travel(rtnl.read_network(group)))}
    assert reason in found["link x0"]
