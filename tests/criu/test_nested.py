"""Groups of which some tasks have network namespaces of their own, with links between these and to the outside."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from ckpt.image import Reader
from ckpt.kernel import netns, proc, rtnl_group
from ckpt.model.network import Network
from ckpt.sections import KNOWN, read
from tests import lab
from tests.criu.capture import capturing
from tests.criu.groups import Group, Starter, python, wait_for
from tests.criu.segment import run
from tests.net.spaces import assert_equal, comparable, settle

NESTED = "unshare --net -- {} &"
SERVER = " ".join(python("stream_server.py"))


def command(*children: str) -> list[str]:
    """A shell that starts ``children``, each in a network namespace of its own, and waits for them."""
    return ["sh", "-c", " ".join(NESTED.format(child) for child in children) + " wait"]


def inside(pid: int, *argv: str) -> str:
    """What a command says in the network namespace of ``pid``."""
    return run("nsenter", f"--net=/proc/{pid}/ns/net", *argv)


def configure(pid: int, script: str) -> None:
    """Run each line of ``script`` as a command in the network namespace of ``pid``."""
    for line in filter(None, map(str.strip, script.splitlines())):
        inside(pid, *line.split())


def nested_pids(group: Group) -> list[int]:
    """The tasks that are not in the root task's network namespace, in their order."""
    root = os.stat(f"/proc/{group.pid}/ns/net").st_ino
    return [pid for pid in proc.tree_pids(group.pid) if os.stat(f"/proc/{pid}/ns/net").st_ino != root]


def networks(group: Group) -> dict[str, Network]:
    """All namespaces of a group as records, the root task's first."""
    with ExitStack() as stack:
        opened = {}
        for number, pid in enumerate((group.pid, *nested_pids(group))):
            opened["ckpt-netns" + (f"-{number}" if number else "")] = descriptor = netns.open_of(pid)
            stack.callback(os.close, descriptor)
            settle(descriptor)
        return {key: comparable(network) for key, network in rtnl_group.read_networks(opened).items()}


def locks(group: Group) -> list[str]:
    """The lock tables in the group's namespaces."""
    shown = (inside(pid, "nft", "list", "tables") for pid in (group.pid, *nested_pids(group)))
    return [line for text in shown for line in text.splitlines() if "ckpt-lock" in line]


@pytest.fixture
def router(start: Starter) -> Group:
    """A server in a nested namespace, behind a veth pair to the root task's, which forwards to the segment."""
    group = start(command(SERVER))
    group.wait_for_log("ready")
    [server] = nested_pids(group)
    configure(
        group.pid,
        f"""ip link add down0 index 40 mtu 1400 type veth peer name eth0 index 40 mtu 1400 netns {server}
        ip link set down0 up
        ip addr add 10.78.0.1/24 dev down0
        ip addr add fd78::1/64 dev down0 nodad
        sysctl -qw net.ipv4.ip_forward=1
        sysctl -qw net.ipv6.conf.all.forwarding=1""",
    )
    configure(
        server,
        """ip link set lo up
        ip link set eth0 up
        ip addr add 10.78.0.2/24 dev eth0
        ip addr add fd78::2/64 dev eth0 nodad
        ip route add default via 10.78.0.1
        ip route add default via fd78::1""",
    )
    start.segment.in_client("ip", "route", "add", "10.78.0.0/24", "via", group.addresses.v4)
    start.segment.in_client("ip", "route", "add", "fd78::/64", "via", group.addresses.v6)
    return group


def test_round_trip_of_a_router_keeps_the_connections_through_it(router: Group, stack: ExitStack) -> None:
    streams = [stack.enter_context(router.stream(address)) for address in ("10.78.0.2", "fd78::2")]
    for stream in streams:
        stream.progress()
    before, links = networks(router), lab.traces()
    with capturing() as capture:
        for _ in range(2):
            router.dump()
            assert len(links - lab.traces()) >= 1
            assert router.restore().connections == len(streams)
            for stream in streams:
                stream.progress()
            assert locks(router) == []
    assert capture.betrayals("10.78.0.2", "fd78::2") == []
    assert_equal(networks(router), before)
    for stream in streams:
        stream.finish()


def test_dump_of_a_router_left_running_disturbs_nothing(router: Group, stack: ExitStack) -> None:
    stream = stack.enter_context(router.stream("10.78.0.2"))
    before = networks(router)
    router.dump(leave_running=True)
    stream.progress()
    assert locks(router) == []
    assert_equal(networks(router), before)
    stream.finish()


def test_image_of_a_router_names_where_links_lead(router: Group) -> None:
    router.dump()
    with Reader(router.image, known=KNOWN) as reader:
        assert not reader.sections["nested-networks"].optional
        checkpoint = read(reader)
    [nested] = checkpoint.nested
    assert checkpoint.network is not None
    ends = [checkpoint.network.link("down0"), nested.network.link("eth0")]
    found = [(end.counterpart.netns, end.counterpart.ifname) for end in ends if end and end.counterpart]
    assert found == [("ckpt-netns-1", "eth0"), ("ckpt-netns", "down0")]


def test_round_trip_of_a_namespace_with_lo_only(start: Starter, stack: ExitStack) -> None:
    """The socket is asked in there: it must not come back in the root task's namespace."""
    group = start(command(SERVER))
    group.wait_for_log("ready")
    [server] = nested_pids(group)
    inside(server, "ip", "link", "set", "lo", "up")
    for _ in range(2):
        group.round_trip()
        [server] = nested_pids(group)
        assert [link["ifname"] for link in _links(server)] == ["lo"]
        assert ":7000" in inside(server, "ss", "-Hltn")
        assert ":7000" not in inside(group.pid, "ss", "-Hltn")


def _links(pid: int) -> list[dict[str, str]]:
    import json

    found = json.loads(inside(pid, "ip", "-j", "link"))
    assert isinstance(found, list)
    return found


@pytest.fixture
def bridged(start: Starter) -> Group:
    """Two servers, each in a nested namespace, on a bridge in the root task's namespace, which routes to it."""
    group = start(command(SERVER, SERVER))
    wait_for(lambda: group.log().count("ready") == 2, "both servers are ready")
    configure(group.pid, "ip link add br9 type bridge\nip link set br9 up\nip addr add 10.79.0.1/24 dev br9")
    for number, server in enumerate(nested_pids(group), start=2):
        configure(
            group.pid,
            f"""ip link add port{number} master br9 type veth peer name eth0 netns {server}
            ip link set port{number} up""",
        )
        configure(
            server,
            f"""ip link set lo up
            ip link set eth0 up
            ip addr add 10.79.0.{number}/24 dev eth0
            ip route add default via 10.79.0.1""",
        )
    inside(group.pid, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    start.segment.in_client("ip", "route", "add", "10.79.0.0/24", "via", group.addresses.v4)
    return group


def test_round_trip_of_namespaces_joined_by_a_bridge(bridged: Group, stack: ExitStack) -> None:
    streams = [stack.enter_context(bridged.stream(f"10.79.0.{number}")) for number in (2, 3)]
    for stream in streams:
        stream.progress()
    before = networks(bridged)
    for _ in range(2):
        bridged.round_trip()
        for stream in streams:
            stream.progress()
    assert_equal(networks(bridged), before)
    first, _ = nested_pids(bridged)
    inside(first, "ping", "-c1", "-W5", "10.79.0.3")
    for stream in streams:
        stream.finish()
