"""Groups on links that are more than a veth in a bridge: an ipvlan, a VLAN on a bond, a WireGuard tunnel."""

from __future__ import annotations

from collections.abc import Callable

from tests.vm.machines import Client, Machines
from tests.vm.moving import Group
from tests.vm.test_migrate import STREAM
from tests.vm.test_services import both_ways

Run = Callable[..., Group]
Start = Callable[..., Client]

UNTIL_IT_HAS_AN_ADDRESS = "until ip -4 -o address show scope global | grep -q .; do sleep 0.2; done"


def shell(*lines: str) -> list[str]:
    """A group's command: do that, then serve."""
    return ["sh", "-ec", "; ".join([*lines, f"exec {' '.join(STREAM)}"])]


def test_migrate_ipvlan_keeps_the_connection(run: Run, client: Start, machines: Machines) -> None:
    group = run(*shell(UNTIL_IT_HAS_AN_ADDRESS), attached=False, number=105)
    pid = group.pid
    group.here.sh(
        f"ip link add inner0 link br0 netns {pid} type ipvlan mode l2; nsenter -t {pid} -n sh -ec"
        f" 'ip link set inner0 up; ip address add {group.address}/24 dev inner0'"
    )
    # An ipvlan has the MAC of the link below: the client is told of the other host's.
    both_ways(group, client("stream_client.py", group.address, 7000))
    assert "ipvlan" in group.inside("ip -d link show inner0")


def test_migrate_vlan_on_a_bond_keeps_the_connection(run: Run, client: Start, machines: Machines) -> None:
    address = "10.97.7.1"
    group = run(
        *shell(
            "ip link add bond0 type bond mode active-backup miimon 100",
            "ip address flush dev eth0; ip link set eth0 down; ip link set eth0 master bond0; ip link set bond0 up",
            "ip address add {address}/24 dev bond0",
            f"ip link add bond0.7 link bond0 up type vlan id 7; ip address add {address}/24 dev bond0.7",
        ),
        number=106,
    )
    machines.c.sh("ip link add vlan7 link br0 up type vlan id 7; ip address add 10.97.7.2/24 dev vlan7")
    try:
        both_ways(group, client("stream_client.py", address, 7000))
        assert "active-backup" in group.inside("ip -d link show bond0")
    finally:
        machines.c.sh("ip link del vlan7")


def test_migrate_wireguard_tunnel_keeps_what_goes_through_it(run: Run, client: Start, machines: Machines) -> None:
    inner, far = "10.97.8.1", "10.97.8.2"
    keys = machines.c.sh("for end in near far; do key=$(wg genkey); echo $key; echo $key | wg pubkey; done").split()
    near_key, near_public, far_key, far_public = keys
    group = run(
        *shell(
            "ip link add wg0 type wireguard",
            f"echo {near_key} | wg set wg0 listen-port 5555 private-key /proc/self/fd/0",
            f"wg set wg0 peer {far_public} allowed-ips {far}/32",
            f"ip address add {inner}/24 dev wg0; ip link set wg0 up",
        ),
        number=107,
    )
    machines.c.sh("ip link add wg0 type wireguard")
    machines.c.sh(
        f"echo {far_key} | wg set wg0 private-key /proc/self/fd/0"
        f" peer {near_public} allowed-ips {inner}/32 endpoint {group.address}:5555;"
        f" ip address add {far}/24 dev wg0; ip link set wg0 up"
    )
    try:
        both_ways(group, client("stream_client.py", inner, 7000))
        assert machines.c.sh("wg show wg0 endpoints").split() == [near_public, f"{group.address}:5555"]
    finally:
        machines.c.sh("ip link del wg0")
