"""WireGuard: settings survive the way through the kernel's attributes, and nobody is shown a key."""

from __future__ import annotations

import base64
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt import sections
from ckpt.cli import main, render
from ckpt.image import Writer
from ckpt.kernel import wireguard
from ckpt.kernel.netlink import attribute, nested, parse, u16, u32
from ckpt.model.checkpoint import Checkpoint, CriuNotes, Group
from ckpt.model.host import HostFacts
from ckpt.model.ipsec import Ipsec, XfrmKey, XfrmState
from ckpt.model.network import Counterpart, Link, Network, Place, Unread
from ckpt.model.process import Isolation
from ckpt.model.secret import Secret
from ckpt.model.socket import Endpoint
from ckpt.model.travel import cannot_travel
from ckpt.model.wireguard import Carrier, WireguardDevice, WireguardPeer
from ckpt.plan import plan_network, steps
from ckpt.plan_group import plan_networks

KEY = bytes(range(32))
DEVICE = WireguardDevice(ifname="wg0", private_key=Secret(value=KEY), listen_port=51820)

_keys = st.binary(min_size=32, max_size=32).filter(any)
_secrets = st.none() | st.builds(Secret, value=_keys)
_ports = st.integers(0, 65535)
_endpoints = st.builds(Endpoint, address=st.ip_addresses(v=4).map(str), port=_ports) | st.builds(
    Endpoint, address=st.ip_addresses(v=6).map(lambda one: str(one.compressed)), port=_ports, scope=_ports
).filter(lambda one: "." not in one.address and not one.address.startswith("::"))


def prefix(address: object, length: int) -> str:
    return str(ip_network((str(address), length), strict=False))


_prefixes = st.builds(prefix, st.ip_addresses(v=4), st.integers(0, 32)) | st.builds(
    prefix, st.ip_addresses(v=6, network="fd00::/8"), st.integers(16, 128)
)
_peers = st.builds(
    WireguardPeer,
    public_key=_keys.map(lambda key: base64.b64encode(key).decode()),
    preshared_key=_secrets,
    endpoint=st.none() | _endpoints,
    keepalive=_ports,
    allowed_ips=st.lists(_prefixes, max_size=5).map(tuple),
)
_devices = st.builds(
    WireguardDevice,
    ifname=st.just("wg0"),
    private_key=_secrets,
    listen_port=_ports,
    fwmark=st.integers(0, 2**32 - 1),
    peers=st.lists(_peers, max_size=5, unique_by=lambda peer: peer.public_key).map(tuple),
)


def through_the_kernel(device: WireguardDevice) -> WireguardDevice:
    unread: list[Unread] = []
    messages = list(wireguard.encode(device, 7))
    assert all(len(message) < 60000 for message in messages)
    found = wireguard.decode(device.ifname, [parse(message) for message in messages], unread)
    assert unread == []
    return found


@given(_devices)
def test_decode_is_the_mirror_of_encode(device: WireguardDevice) -> None:
    assert through_the_kernel(device) == device


def test_many_peers_and_allowed_ips_go_in_several_messages() -> None:
    def peer(number: int, allowed: int) -> WireguardPeer:
        return WireguardPeer(
            public_key=base64.b64encode(number.to_bytes(32, "big")).decode(),
            allowed_ips=tuple(f"fd00::{number:x}:{one:x}/128" for one in range(1, allowed + 1)),
        )

    device = replace(DEVICE, peers=(peer(1, 3000), *(peer(number, 2) for number in range(2, 500)), peer(500, 1001)))
    assert len(list(wireguard.encode(device, 7))) > 5
    assert through_the_kernel(device) == device


def test_unknown_attributes_are_named() -> None:
    unread: list[Unread] = []
    peer = nested(0, attribute(1, KEY) + attribute(99, b""))
    message = attribute(6, u16(0)) + attribute(7, u32(0)) + attribute(77, b"") + nested(8, peer)
    wireguard.decode("wg0", [parse(message)], unread)
    assert [one.what for one in unread] == ["has the unknown WireGuard attributes 77, 99 of a peer"]


@pytest.mark.parametrize(
    ("up", "own", "callers", "carrier"),
    [
        (True, {51820}, set(), Carrier.OWN),
        (True, {51820}, {51820}, Carrier.OWN),
        (True, {5}, {51820}, Carrier.CALLER),
        (True, set(), {5}, Carrier.ELSEWHERE),
        (False, {51820}, {51820}, Carrier.UNKNOWN),
    ],
)
def test_socket_tells_where_it_sends(up: bool, own: set[int], callers: set[int], carrier: Carrier) -> None:
    names = {"wg0"} if up else set()
    [found] = wireguard.with_carriers([DEVICE], names, frozenset(own), frozenset(callers))
    assert found.carrier is carrier


def test_of_two_with_one_port_nobody_knows_whose_socket_it_is() -> None:
    both = [DEVICE, replace(DEVICE, ifname="wg1")]
    found = wireguard.with_carriers(both, {"wg0", "wg1"}, frozenset({51820}), frozenset({51820}))
    assert [device.carrier for device in found] == [Carrier.ELSEWHERE, Carrier.ELSEWHERE]


@pytest.mark.parametrize(
    ("carrier", "said"),
    [
        (Carrier.OWN, [("warn", "wireguard-keys")]),
        (Carrier.CALLER, [("warn", "wireguard-keys")]),
        (Carrier.ELSEWHERE, [("block", "wireguard-carrier"), ("warn", "wireguard-keys")]),
        (Carrier.UNKNOWN, [("warn", "wireguard-carrier"), ("warn", "wireguard-keys")]),
    ],
)
def test_finding_for_keys_and_for_a_namespace_that_is_not_known(carrier: Carrier, said: list[object]) -> None:
    found = cannot_travel(Network(wireguard=(replace(DEVICE, carrier=carrier),)))
    assert [(one.severity, one.code) for one in found] == said


def test_interface_that_sends_in_another_namespace_of_the_group_is_made_there() -> None:
    there = Counterpart(place=Place.ELSEWHERE, netns="b")
    link, device = Link(ifname="wg0", kind="wireguard", counterpart=there), replace(DEVICE, carrier=Carrier.ELSEWHERE)
    wanted = Network(links=(link,), wireguard=(device,))
    assert [one.code for one in cannot_travel(wanted)] == ["wireguard-keys"]
    planned = plan_networks({"a": wanted, "b": Network()}, {"a": Network(), "b": Network()})
    assert ("a", steps.MakeLink(link=link)) in planned


@pytest.mark.parametrize("carrier", [Carrier.OWN, Carrier.CALLER])
def test_plan_sets_it_up_before_it_comes_up(carrier: Carrier) -> None:
    wanted = Network(links=(Link(ifname="wg0", kind="wireguard"),), wireguard=(replace(DEVICE, carrier=carrier),))
    planned = plan_network(wanted, Network())
    kinds = [type(step) for step in planned]
    assert kinds.index(steps.MakeLink) < kinds.index(steps.SetWireguard) < kinds.index(steps.BringUp)
    assert [step.from_outside for step in planned if isinstance(step, steps.MakeLink)] == [carrier is Carrier.CALLER]


def test_commands_show_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = XfrmState(family=4, source="1.1.1.1", destination="2.2.2.2", spi=1, protocol=50, mode=0)
    state = replace(state, keys={"enc": XfrmKey(value=b"cbc(aes)".ljust(72, b"\0") + KEY)})
    peer = WireguardPeer(public_key=base64.b64encode(KEY[::-1]).decode(), preshared_key=Secret(value=KEY))
    network = Network(wireguard=(replace(DEVICE, peers=(peer,)),), ipsec=Ipsec(states=(state,)))
    one, other = str(tmp_path / "one.ckpt"), str(tmp_path / "other.ckpt")
    _write(one, network)
    _write(other, Network())
    shown = ""
    for arguments in (["inspect", one], ["diff", one, other], ["diff", other, one, "-v"]):
        main.invoke(arguments)
        main.invoke([*arguments, "--json"])
        out = capsys.readouterr().out
        assert "WireGuard" in out or "wg0" in out
        shown += out
    assert KEY.hex() not in shown and base64.b64encode(KEY).decode() not in shown
    assert str(Secret(value=KEY)) in shown and peer.public_key in shown


def _write(path: str, network: Network) -> None:
    group = Group(name="web", isolation=Isolation.NETNS, root_pid=1, pid_namespace=True)
    source = HostFacts(hostname="one", machine="x86_64", kernel="6.1")
    checkpoint = Checkpoint(group=group, source=source, criu=CriuNotes(), processes=(), sockets=(), network=network)
    with open(path, "wb") as out, Writer(out) as writer:
        sections.write(writer, checkpoint)
        writer.finish()


@pytest.mark.parametrize("secret", [Secret(value=KEY), XfrmKey(value=b"rfc4106(gcm(aes))".ljust(72, b"\0") + KEY)])
def test_no_key_is_ever_shown(secret: Secret) -> None:
    for shown in (str(secret), repr(secret), repr([secret]), render.to_json({"key": secret})):
        assert KEY.hex() not in shown and str(KEY)[2:-1] not in shown
        assert "SHA-256" in shown
