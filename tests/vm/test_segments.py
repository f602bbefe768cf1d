"""Hosts in two segments, and a router between them: an address cannot follow, unless it is mapped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.vm.machines import Client, Machines
from tests.vm.moving import LIMIT, Group
from tests.vm.test_links import shell
from tests.vm.test_migrate import REDIS

Run = Callable[..., Group]
Start = Callable[..., Client]

NEAR, FAR = "10.97.21", "10.97.22"


@pytest.fixture
def segments(machines: Machines) -> Iterator[None]:
    """A is in the segment of the bridge near, B in that of far; C is the router, and a client that has another address.

    On the wire they are two VLANs: neither host is in the other's.
    """
    bridge = (
        "ip link add wire{number} link br0 up type vlan id {number};"
        " ip link add {name} up type bridge forward_delay 0; ip link set wire{number} master {name}"
    )
    machines.a.sh(bridge.format(number=21, name="near"))
    machines.b.sh(bridge.format(number=22, name="far"))
    machines.c.sh(
        f"ip link add wire21 link br0 up type vlan id 21; ip address add {NEAR}.1/24 dev wire21;"
        f" ip link add wire22 link br0 up type vlan id 22; ip address add {FAR}.1/24 dev wire22;"
        " sysctl -qw net.ipv4.ip_forward=1"
    )
    yield
    for host, links in ((machines.a, ("near", "wire21")), (machines.b, ("far", "wire22"))):
        host.sh("; ".join(f"ip link del {link}" for link in links))
    machines.c.sh("ip link del wire21; ip link del wire22; sysctl -qw net.ipv4.ip_forward=0")


def test_migrate_to_another_segment_is_refused_and_goes_on_under_a_mapped_address(
    run: Run, client: Start, segments: None
) -> None:
    group = run(*REDIS, link="near", network=f"{NEAR}.10/24", gateway=f"{NEAR}.1")
    counting = client("redis_client.py", f"{NEAR}.10")
    counting.progress()
    words = ["migrate", group.name, "--host", group.there.name, "--downtime-limit", LIMIT]
    refused = group.here.ckpt(*words)
    assert refused.status == 3
    assert json.loads(refused.err)["error"]["code"] == "link-missing", refused.err
    # The bridge alone is not enough: the connection's other end knows the old address, and the gateway is not there.
    words += ["--map-link", "near=far", "--map-address", f"{NEAR}.0/24={FAR}.0/24"]
    refused = group.here.ckpt(*words)
    assert refused.status == 3
    assert json.loads(refused.err)["error"]["code"] == "map-connection", refused.err
    counting.progress()
    counting.finish()
    group.here.must(*words, "--tcp-close", timeout=300)
    group.moved()
    # What it had counted is there, at its new address: through the router, and from a client that comes anew.
    another = client("redis_client.py", f"{FAR}.10", "--goes-on")
    another.progress()
    another.finish()


def test_migrate_under_a_mapped_address_takes_the_peer_of_a_wireguard_tunnel_along(
    run: Run, segments: None, machines: Machines
) -> None:
    """The peer is the router, which is in both segments: by its address in the group's own."""
    inner, far, port = "10.97.8.1", "10.97.8.2", 5555
    keys = machines.c.sh("for end in near far; do key=$(wg genkey); echo $key; echo $key | wg pubkey; done").split()
    near_key, near_public, far_key, far_public = keys
    group = run(
        *shell(
            "ip link add wg0 type wireguard",
            f"echo {near_key} | wg set wg0 private-key /proc/self/fd/0",
            f"wg set wg0 peer {far_public} allowed-ips {far}/32 endpoint {NEAR}.1:{port}",
            f"ip address add {inner}/24 dev wg0; ip link set wg0 up",
        ),
        link="near",
        network=f"{NEAR}.20/24",
        gateway=f"{NEAR}.1",
    )
    machines.c.sh("ip link add wg0 type wireguard")
    machines.c.sh(
        f"echo {far_key} | wg set wg0 listen-port {port} private-key /proc/self/fd/0"
        f" peer {near_public} allowed-ips {inner}/32; ip address add {far}/24 dev wg0; ip link set wg0 up"
    )
    reach = f"for once in $(seq 20); do ping -c 1 -W 2 {far} && exit; done; exit 1"
    try:
        group.inside(reach)
        group.options = ["--map-link", "near=far", "--map-address", f"{NEAR}.0/24={FAR}.0/24"]
        group.migrate()
        assert group.inside("wg show wg0 endpoints").split() == [far_public, f"{FAR}.1:{port}"]
        group.inside(reach)
        # It has heard of the group from there.
        (peer, endpoint) = machines.c.sh("wg show wg0 endpoints").split()
        assert (peer, endpoint.partition(":")[0]) == (near_public, f"{FAR}.20")
    finally:
        machines.c.sh("ip link del wg0")
