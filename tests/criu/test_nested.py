"""Groups of which some tasks have network namespaces of their own, with links between these and to the outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from ckpt import registry
from ckpt.diff import Difference, diff
from ckpt.errors import NetworkError, RefusedError, RestoreError
from ckpt.image import Reader
from ckpt.kernel import netns, proc, rtnl_group, sockdiag
from ckpt.live import read_checkpoint
from ckpt.model.network import Network
from ckpt.model.process import FileKind
from ckpt.sections import KNOWN, read
from tests import lab
from tests.criu.capture import capturing
from tests.criu.fault_lab import left_behind
from tests.criu.groups import Group, Starter, python, wait_for
from tests.criu.nested_groups import (
    SERVER,
    command,
    configure,
    inside,
    nested_pids,
    routed,
    wait_until_reachable,
)
from tests.criu.segment import run
from tests.net.spaces import assert_equal, comparable, settle


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
    """A server in a nested namespace, behind a router in the root task's."""
    return routed(start)


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


def test_diff_of_a_router_and_its_image_looks_into_every_namespace(router: Group) -> None:
    name = str(router.target)
    router.round_trip()
    assert _differences(router.image, name) == []
    [server] = nested_pids(router)
    inside(server, "ip", "link", "add", "new0", "type", "bridge")
    [found] = _differences(router.image, name)
    assert (found.name, found.change) == ("ckpt-netns-1", "changed")


def _differences(image: Path, name: str) -> list[Difference]:
    found = diff(read_checkpoint(image), read_checkpoint(name))
    return [one for one in found if one.section.startswith(("network", "nested"))]


def test_inspect_shows_every_namespace(router: Group) -> None:
    router.dump()
    shown = run(sys.executable, "-c", "from ckpt.cli.main import main; main()", "inspect", str(router.image))
    assert "nested network namespace ckpt-netns-1" in shown
    assert "down0@eth0 in ckpt-netns-1" in shown
    assert "eth0@down0 in ckpt-netns " in shown


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
    wait_until_reachable(start.segment, "10.79.0.2", "10.79.0.3")
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


# -- where they are attached, and who holds what -------------------------------------------------------------------


def test_round_trip_of_a_nested_namespace_on_the_hosts_bridge(
    start: Starter, stack: ExitStack, unique: Callable[[str], str]
) -> None:
    group = start(command(SERVER))
    group.wait_for_log("ready")
    [server] = nested_pids(group)
    addresses, port = start.segment.addresses(), unique("po")
    run(
        "ip",
        "link",
        "add",
        port,
        "master",
        start.segment.bridge,
        "up",
        "type",
        "veth",
        "peer",
        "eth0",
        "netns",
        str(server),
    )
    stack.callback(subprocess.run, ["ip", "link", "delete", port], capture_output=True)
    configure(
        server,
        f"""ip link set lo up
        ip link set eth0 up
        ip addr add {addresses.v4}/24 dev eth0""",
    )
    wait_until_reachable(start.segment, addresses.v4)
    stream = stack.enter_context(group.stream(addresses.v4))
    stream.progress()
    for _ in range(2):
        group.dump()
        assert f"link {port}" not in lab.traces()
        group.restore()
        assert f"link {port}" in lab.traces()
        assert f"{addresses.v4}/24" in registry.get(str(group.target)).addresses
        stream.progress()
    stream.finish()


def test_round_trip_keeps_the_name_of_a_nested_namespace(
    start: Starter, stack: ExitStack, unique: Callable[[str], str]
) -> None:
    group = start(command(SERVER))
    group.wait_for_log("ready")
    name = unique("ns")
    run("ip", "netns", "attach", name, str(nested_pids(group)[0]))
    stack.callback(subprocess.run, ["ip", "netns", "delete", name], capture_output=True)
    group.dump()
    assert f"network namespace {name}" not in lab.traces()
    group.restore()
    [server] = nested_pids(group)
    assert Path("/run/netns", name).stat().st_ino == os.stat(f"/proc/{server}/ns/net").st_ino


@pytest.mark.parametrize("arguments", [(), ("--namespace",)], ids=["socket", "socket and namespace"])
def test_round_trip_of_what_is_held_across_namespaces(start: Starter, arguments: tuple[str, ...]) -> None:
    group = start(python("crossing.py", *arguments))
    group.wait_for_log("ready")
    for _ in range(2):
        group.round_trip()
        [child] = nested_pids(group)
        [listener] = [one for one in sockdiag.read_sockets(proc.read_tree(group.pid)) if one.state == "listen"]
        assert {owner.pid for owner in listener.owners} == {*proc.tree_pids(group.pid)} - {group.pid}
        assert listener.netns == os.stat(f"/proc/{child}/ns/net").st_ino
        files = [file for process in proc.read_tree(group.pid) for file in process.files]
        held = [file.inode for file in files if file.kind is FileKind.NAMESPACE]
        assert held == [listener.netns for _ in arguments]


def test_restore_beside_the_first_makes_all_namespaces_again(
    start: Starter, children: list[int], tmp_path: Path, unique: Callable[[str], str]
) -> None:
    """Its PIDs are taken by itself, so that the copy gets a PID namespace, with one more task in it."""
    log = tmp_path / "log"
    with log.open("w") as output:
        argv = ["unshare", "--net", "--", *command(SERVER)]
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    child.returncode = 0
    children.append(child.pid)
    wait_for(lambda: "ready" in log.read_text(), "the program is ready")
    group = start.adopt(child.pid, start.segment.addresses())
    first = {os.stat(f"/proc/{pid}/ns/net").st_ino for pid in (group.pid, *nested_pids(group))}
    group.dump(leave_running=True)
    group.child = None  # the original goes on, and is no more what this speaks of
    assert group.restore(name=unique("g")).own_pid_namespace
    second = {os.stat(f"/proc/{pid}/ns/net").st_ino for pid in (group.pid, *nested_pids(group))}
    assert len(first | second) == 4
    group.round_trip()
    assert len(nested_pids(group)) == 1


# -- what is refused, and what fails -------------------------------------------------------------------------------


def refusal(group: Group) -> RefusedError:
    """Why it is not dumped. It goes on as before."""
    with pytest.raises(RefusedError) as caught:
        group.dump()
    assert not group.image.exists()
    assert locks(group) == []
    return caught.value


def test_dump_refuses_a_nested_namespace_that_others_are_in(start: Starter, children: list[int]) -> None:
    group = start(command(SERVER))
    group.wait_for_log("ready")
    [server] = nested_pids(group)
    stranger = subprocess.Popen(["nsenter", f"--net=/proc/{server}/ns/net", "sleep", "1000"])
    stranger.returncode = 0
    children.append(stranger.pid)
    space = os.stat(f"/proc/{server}/ns/net").st_ino
    wait_for(lambda: os.stat(f"/proc/{stranger.pid}/ns/net").st_ino == space, "the stranger is in")
    error = refusal(group)
    assert (error.code, f"PID {stranger.pid}" in str(error.details)) == ("netns-shared", True)


def test_dump_refuses_a_link_into_a_namespace_of_nobody(start: Starter, stack: ExitStack) -> None:
    group = start(command(SERVER))
    group.wait_for_log("ready")
    [server] = nested_pids(group)
    third = netns.create()
    stack.callback(os.close, third)
    inside(server, "ip", "link", "add", "lost0", "type", "veth", "peer", "found0")
    with netns.entered(netns_of(server, stack)):
        run("ip", "link", "set", "found0", "netns", f"/proc/{os.getpid()}/fd/{third}")
    error = refusal(group)
    assert error.code == "link-kind"
    assert "link lost0 in nested network namespace 1: its other end is in a third network namespace" in str(
        error.details
    )


def netns_of(pid: int, stack: ExitStack) -> int:
    """A descriptor of the network namespace of ``pid``, for the time of the test."""
    descriptor = netns.open_of(pid)
    stack.callback(os.close, descriptor)
    return descriptor


def test_dump_refuses_a_nested_mount_namespace(start: Starter) -> None:
    group = start(["sh", "-c", f"unshare --net --mount -- {SERVER} & wait"])
    group.wait_for_log("ready")
    assert refusal(group).code == "namespace-nested"


def fail(*_: object, **__: object) -> tuple[str, ...]:
    raise NetworkError("cannot go on", code="test-failure")


def differ(*_: object, **__: object) -> tuple[str, ...]:
    return ("a socket is elsewhere",)


@pytest.mark.parametrize(
    ("where", "what", "code"),
    [
        ("ckpt.kernel.apply_links.LinkMaker._make_across", fail, "test-failure"),
        ("ckpt.kernel.apply._Applier._settle_sysctls", fail, "test-failure"),
        ("ckpt.restore.compare", differ, "restore-differs"),
        ("ckpt.restore.misplaced", differ, "restore-differs"),
    ],
    ids=["making links", "last step", "sockets", "tasks"],
)
def test_restore_that_fails_leaves_nothing(
    router: Group, stack: ExitStack, where: str, what: Callable[..., object], code: str
) -> None:
    stream = stack.enter_context(router.stream("10.78.0.2"))
    stream.progress()
    router.dump()
    before, strays, known = lab.traces(), lab.strays(), left_behind(router.images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, what)
        with pytest.raises(RestoreError) as caught:
            router.restore()
    assert caught.value.code == code
    assert lab.traces() == before
    assert lab.strays() == strays
    assert left_behind(router.images) == known
    router.restore()
    stream.progress()
    stream.finish()
