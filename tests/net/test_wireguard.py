"""WireGuard: interfaces made again have the keys and peers that ``wg`` shows, and send where they sent before."""

from __future__ import annotations

import base64
import socket
from pathlib import Path

import pytest

from ckpt.errors import NetworkError
from ckpt.kernel import rtnl
from ckpt.model.finding import blocking
from ckpt.model.network import Network
from ckpt.model.travel import cannot_travel
from tests.net import spaces
from tests.net.oracle import assert_copy_equal, need
from tests.net.spaces import fresh, restored, settle, shell

MADE = "ip link add wg0 index 60 type wireguard"
SET = """wg set wg0 private-key private listen-port 51821 fwmark 0x77
    wg set wg0 peer $(cat one.pub) preshared-key shared endpoint 192.0.2.1:7 persistent-keepalive 25 \
        allowed-ips 10.9.0.0/16,10.8.0.0/16,fd09::/64
    wg set wg0 peer $(cat two.pub) endpoint '[2001:db8::5]:88' allowed-ips 0.0.0.0/0,::/0
    wg set wg0 peer $(cat three.pub) endpoint '[fe80::5%eth0]:88'
    ip link set wg0 mtu 1400 up; ip addr add 10.9.0.1/16 dev wg0; ip addr add fd09::1/64 dev wg0
    ip route add 10.8.0.0/16 dev wg0; ip rule add not fwmark 0x77 table 77; ip route add default dev wg0 table 77
    """
COMMANDS = ("wg showconf wg0", "wg show wg0 dump | cut -f 1-5,8", "ip -j -d link", "ip -j addr", "ip rule", "ip route")


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with keys, which is the working directory."""
    need("ip link add wg0 type wireguard; wg show wg0", "WireGuard")
    monkeypatch.chdir(tmp_path)
    shell("umask 077; wg genpsk > shared; for one in private one two three; do wg genkey > $one; done")
    shell("for one in one two three; do wg pubkey < $one > $one.pub; done")
    return tmp_path


def carriers(network: Network) -> list[str]:
    return [device.carrier.value for device in network.wireguard]


def test_copy_of_interface_is_equal(group: int, keys: Path) -> None:
    shell(f"{MADE}\n{SET}", group)
    network = assert_copy_equal(group, COMMANDS)
    assert carriers(network) == ["own"]
    assert [found.code for found in cannot_travel(network)] == ["wireguard-keys"]
    private = (keys / "private").read_text().strip()
    assert private not in repr(network)


@pytest.mark.parametrize(
    "script",
    ["", "wg set wg0 listen-port 51822", "wg set wg0 peer $(cat one.pub)", "wg set wg0 private-key private fwmark 5"],
)
def test_copy_of_interface_that_is_down_is_equal(group: int, keys: Path, script: str) -> None:
    shell(f"{MADE}\n{script}", group)
    network = assert_copy_equal(group, COMMANDS)
    assert carriers(network) == ["unknown"]
    assert "wireguard-carrier" in [found.code for found in cannot_travel(network)]


def test_port_that_the_kernel_chose_is_kept(group: int, keys: Path) -> None:
    shell(f"{MADE}; wg set wg0 private-key private; ip link set wg0 up", group)
    network = assert_copy_equal(group, COMMANDS)
    assert network.wireguard[0].listen_port > 0


def test_many_peers_with_many_allowed_ips_are_equal(group: int, keys: Path) -> None:
    lines = ["[Interface]", "ListenPort = 5000"]
    for number in range(1, 301):
        allowed = 2000 if number == 7 else 3
        lines += ["[Peer]", f"PublicKey = {base64.b64encode(number.to_bytes(32, 'big')).decode()}"]
        lines += [f"AllowedIPs = fd00:{number:x}::{one:x}/128" for one in range(1, allowed + 1)]
    (keys / "many").write_text("\n".join(lines))
    shell(f"{MADE}; wg setconf wg0 many; ip link set wg0 up", group)
    network = assert_copy_equal(group, ("wg showconf wg0",))
    assert [len(peer.allowed_ips) for peer in network.wireguard[0].peers][5:8] == [3, 2000, 3]


def move(there: int, group: int) -> None:
    """Make wg0 in the namespace ``there`` and move it into the group's, as people do with containers."""
    shell(f"{MADE}; ip link set wg0 netns {spaces.path(group)}", there)
    shell(SET, group)
    settle(group)


def test_interface_that_sends_in_the_hosts_namespace_does_so_again(host: int, group: int, keys: Path) -> None:
    move(host, group)
    network = rtnl.read_network(group)
    assert carriers(network) == ["caller"]
    assert [found.code for found in cannot_travel(network)] == ["wireguard-keys"]
    before = shell("wg showconf wg0", group)
    shell("ip link del wg0; ip link del eth0", group)
    with restored(network) as copy:
        assert shell("wg showconf wg0", copy) == before
        assert carriers(rtnl.read_network(copy)) == ["caller"]
        assert "51821" in shell("ss -Hnul")
        assert "51821" not in shell("ss -Hnul", copy)
        assert "wg0" not in shell("ip -br link")


def test_port_that_is_taken_on_the_host_is_named(host: int, group: int, keys: Path) -> None:
    move(host, group)
    network = rtnl.read_network(group)
    shell("ip link del wg0; ip link del eth0", group)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 51821))
        with pytest.raises(NetworkError) as caught, restored(network):
            pass
    assert (caught.value.code, caught.value.brief) == ("link-refused", "cannot bring up the link wg0")
    assert "wg0" not in shell("ip -br link")


def test_interface_that_sends_in_a_third_namespace_cannot_travel(host: int, group: int, keys: Path) -> None:
    with fresh() as third:
        move(third, group)
        network = rtnl.read_network(group)
    assert carriers(network) == ["elsewhere"]
    [found] = blocking(cannot_travel(network))
    assert (found.code, found.subject) == ("wireguard-carrier", "link wg0")


def test_tunnel_works_between_copies(host: int, keys: Path) -> None:
    """Two interfaces in two namespaces that reach each other over the bridge; one is made again."""
    ends = """ip link add {0} type veth peer name eth0 netns {1}; ip link set {0} master br0 up"""
    with fresh() as left, fresh() as right:
        for space, number, own, other in ((left, 1, "one", "two"), (right, 2, "two", "one")):
            shell(ends.format(f"veth{number}", spaces.path(space)))
            shell(
                f"""ip link set lo up; ip link set eth0 up; ip addr add 192.0.2.{number}/24 dev eth0
                ip link add wg0 type wireguard; wg set wg0 private-key {own} listen-port 7
                wg set wg0 peer $(cat {other}.pub) endpoint 192.0.2.{3 - number}:7 allowed-ips 10.9.0.{3 - number}/32
                ip link set wg0 up; ip addr add 10.9.0.{number}/24 dev wg0""",
                space,
            )
        shell("ping -c 1 -W 10 10.9.0.2", left)
        settle(left)
        network = rtnl.read_network(left)
        shell("ip link del veth1")
        with restored(network) as copy:
            settle(copy)
            shell("ping -c 5 -W 10 10.9.0.2", copy)
            shell("ping -c 1 -W 10 10.9.0.1", right)
