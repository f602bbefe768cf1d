"""A third reader of the same namespace: pyroute2, which shares no code with ckpt's netlink."""

from __future__ import annotations

from pyroute2 import IPRoute

from ckpt.kernel import netns, rtnl
from ckpt.kernel.run import run
from tests.net.spaces import fresh

SCENE = """link add va type veth peer name vb
link add br1 type bridge
link set vb master br1 up
link set va up
link set br1 up
address add 10.1.0.1/24 dev va
address add fd01::1/64 dev va nodad
route add 10.2.0.0/16 via 10.1.0.9
route add fd02::/32 via fd01::9
"""


def test_read_shows_what_pyroute2_shows() -> None:
    with fresh() as space:
        run(["ip", "-batch", "-"], input=SCENE.encode(), netns=space)
        network = rtnl.read_network(space)
        with netns.entered(space), IPRoute() as other:
            links = {
                (link.get("ifname"), link["index"], link.get("mtu"), link.get("address")) for link in other.get_links()
            }
            addresses = {f"{one.get('address')}/{one['prefixlen']}" for one in other.get_addr()}
            gateways = {
                (f"{one.get('dst')}/{one['dst_len']}", one.get("gateway"))
                for one in other.get_routes()
                if one.get("gateway")
            }
    assert {(link.ifname, link.ifindex, link.mtu, link.mac) for link in network.links} == links
    assert {one.address for one in network.addresses} == addresses
    assert {(one.destination, one.gateway) for one in network.routes if one.gateway} == gateways
    assert ("10.2.0.0/16", "10.1.0.9") in gateways
