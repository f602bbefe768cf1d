"""Asking a segment for an address, and telling it where one is."""

from __future__ import annotations

import select
import socket
import time

import pytest

from ckpt.errors import NetworkError, NotFoundError
from ckpt.kernel import arp, rtnl
from tests.net.spaces import settle, shell

MAC = "02:00:00:00:00:77"
SECONDS = 20.0


@pytest.fixture
def neighbour(group: int) -> int:
    """The group, at 10.0.0.2 and fd00::2, with a known MAC."""
    shell(f"ip link set eth0 address {MAC}; ip addr add 10.0.0.2/24 dev eth0; ip addr add fd00::2/64 dev eth0", group)
    settle(group)
    return group


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
def test_probe_names_who_answers(neighbour: int, address: str) -> None:
    assert arp.probe(None, "br0", address, SECONDS) == MAC


@pytest.mark.parametrize("address", ["10.0.0.3", "fd00::3"])
def test_probe_of_a_free_address_is_none(neighbour: int, address: str) -> None:
    # That the segment answers at all is seen first, so that silence means something.
    assert arp.probe(None, "br0", "10.0.0.2", SECONDS) == MAC
    assert arp.probe(None, "br0", address, 0.3) is None


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
def test_probe_from_inside_does_not_hear_itself(neighbour: int, address: str) -> None:
    assert arp.probe(neighbour, "eth0", address, 0.3) is None


def test_probe_on_a_missing_link_is_refused(host: int) -> None:
    with pytest.raises(NotFoundError) as caught:
        arp.probe(None, "nowhere", "10.0.0.2", 1)
    assert caught.value.code == "link-missing"


def test_probe_on_a_link_that_is_down_is_refused(host: int) -> None:
    shell("ip link set br0 down")
    with pytest.raises(NetworkError) as caught:
        arp.probe(None, "br0", "10.0.0.2", 1)
    assert caught.value.code == "link-down"


def test_announce_tells_every_address_once(neighbour: int) -> None:
    shell("ip addr add 10.0.0.3/24 dev eth0; ip addr add fd00::3/64 dev eth0", neighbour)
    settle(neighbour)
    network = rtnl.read_network(neighbour)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.bind(("veth0", 3))
        arp.announce(neighbour, network)
        wanted = {address.address.partition("/")[0] for address in network.addresses if address.ifname == "eth0"}
        told: list[str] = []
        deadline = time.monotonic() + SECONDS
        while set(told) != wanted and time.monotonic() < deadline:
            if select.select([wire], [], [], 0.1)[0]:
                told += _told(wire.recv(2048))
    assert sorted(told) == sorted(wanted)


def _told(frame: bytes) -> list[str]:
    """The address that a frame announces as being at MAC."""
    mac = bytes.fromhex(MAC.replace(":", ""))
    if frame[6:14] == mac + b"\x08\x06" and frame[28:32] == frame[38:42]:
        return [socket.inet_ntoa(frame[28:32])]
    if frame[6:14] == mac + b"\x86\xdd" and frame[54] == 136:
        return [socket.inet_ntop(socket.AF_INET6, frame[62:78])]
    return []


def test_announce_teaches_a_neighbour_the_new_mac(neighbour: int) -> None:
    shell("ip addr add 10.0.0.1/24 dev br0; ip addr add fd00::1/64 dev br0")
    for address in ("10.0.0.2", "fd00::2"):
        shell(f"ip neigh replace {address} lladdr 02:00:00:00:00:66 dev br0 nud stale")
    arp.announce(neighbour, rtnl.read_network(neighbour))
    deadline = time.monotonic() + SECONDS
    while shell("ip neigh show").count(MAC) < 2:
        assert time.monotonic() < deadline, shell("ip neigh show")
        time.sleep(0.05)


def test_announce_passes_over_a_link_that_has_gone(neighbour: int) -> None:
    network = rtnl.read_network(neighbour)
    shell("ip link del eth0", neighbour)
    arp.announce(neighbour, network)
