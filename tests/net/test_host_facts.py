"""What `kernel.host` says of a host: real files, sockets, links, and stations that answer on a bridge."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckpt.kernel import arp, elf, host, netns
from ckpt.kernel.run import run
from ckpt.model.host import BusySocket, FileNeed, FileRole, HostFacts, Needs, PeerPath, Probe, TargetFacts
from ckpt.model.process import FileKind
from ckpt.model.socket import IPPROTO_TCP, IPPROTO_UDP, Endpoint
from tests.conftest import require

CRIU = (4, 2, 1)
STATION_MAC = "02:00:00:00:07:01"


@dataclass(frozen=True)
class Segment:
    """A bridge of the host with 10.77.0.1, and a station on it that has 10.77.0.2 and fd77::2."""

    bridge: str
    port: str


@pytest.fixture
def segment(unique: Callable[[str], str]) -> Iterator[Segment]:
    bridge, port, inner = unique("br"), unique("v"), unique("w")
    station = netns.create()
    try:
        run(["ip", "link", "add", bridge, "up", "type", "bridge"])
        run(["ip", "address", "add", "10.77.0.1/24", "dev", bridge])
        run(["ip", "link", "add", port, "up", "master", bridge, "type", "veth", "peer", "name", inner])
        run(["ip", "link", "set", inner, "netns", f"/proc/{os.getpid()}/fd/{station}"])
        run(["ip", "link", "set", inner, "address", STATION_MAC, "up"], netns=station)
        run(["ip", "address", "add", "10.77.0.2/24", "dev", inner], netns=station)
        run(["ip", "address", "add", "fd77::2/64", "dev", inner, "nodad"], netns=station)
        run(["ip", "link", "set", bridge, "mtu", "1400"])
        _wait_for_carrier(bridge)
        yield Segment(bridge=bridge, port=port)
    finally:
        os.close(station)
        for link in (port, bridge):
            subprocess.run(["ip", "link", "delete", link], check=False, stderr=subprocess.DEVNULL)


def _wait_for_carrier(bridge: str) -> None:
    """A bridge forwards some time after its port is up, when its own state has followed."""
    deadline = time.monotonic() + 20
    while b"state UP" not in run(["ip", "link", "show", bridge]):
        assert time.monotonic() < deadline, f"{bridge} does not come up"
        time.sleep(0.01)


def target(**needs: object) -> TargetFacts:
    return host.read_target(Needs(**needs), CRIU)  # type: ignore[arg-type]


def need(path: Path | str, role: FileRole = FileRole.OPEN, kind: FileKind = FileKind.REGULAR) -> FileNeed:
    return FileNeed(path=str(path), role=role, kind=kind, user="test")


def test_read_host_names_this_host() -> None:
    found = host.read_host(CRIU)
    names = os.uname()
    assert (found.hostname, found.machine, found.kernel) == (names.nodename, names.machine, names.release)
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert found.criu == CRIU
    assert found == host.read_host(CRIU)


def test_cpu_flags_are_those_of_every_cpu() -> None:
    text = "processor\t: 0\nflags\t\t: sse2 avx2 amx_tile\n\nprocessor\t: 1\nflags\t\t: sse2 avx2\n"
    assert host.cpu_flags(text) == ("avx2", "sse2")
    assert host.cpu_flags("Features\t: fp asimd\n") == ("asimd", "fp")
    assert host.cpu_flags("") == ()


def test_read_target_files_are_described(tmp_path: Path) -> None:
    program = shutil.copy2(sys.executable, tmp_path / "program")
    data, fifo, gone = tmp_path / "data", tmp_path / "fifo", tmp_path / "gone"
    data.write_bytes(b"12345")
    data.chmod(0o640)
    os.mkfifo(fifo)
    found = target(
        files=(
            need(program, FileRole.EXECUTABLE),
            need(data),
            need(fifo, kind=FileKind.FIFO),
            need(tmp_path, FileRole.WORKDIR, FileKind.DIRECTORY),
            need("/dev/null", kind=FileKind.CHARACTER),
            need(gone),
            need("a\0b"),
        )
    ).files
    assert set(found) == {str(program), str(data), str(fifo), str(tmp_path), "/dev/null"}
    assert found[str(program)].build_id == elf.build_id(sys.executable)
    assert (found[str(data)].size, found[str(data)].mode) == (5, 0o100640)
    assert found[str(data)].build_id is None
    assert found[str(fifo)].kind is FileKind.FIFO
    assert found[str(tmp_path)].kind is FileKind.DIRECTORY
    assert (found["/dev/null"].kind, found["/dev/null"].special) == (FileKind.CHARACTER, "1:3")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_read_target_tells_a_live_unix_socket_from_a_stale_one(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "a socket"
    wanted = (need(path, FileRole.SOCKET, FileKind.SOCKET),)
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(str(path))
        if kind is socket.SOCK_STREAM:
            server.listen()
        assert target(files=wanted).files[str(path)].bound
    assert not target(files=wanted).files[str(path)].bound


def test_read_target_sees_a_unix_server_in_another_network_namespace(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    script = (
        "import socket, sys\n"
        "server = socket.socket(socket.AF_UNIX)\n"
        "server.bind(sys.argv[1])\n"
        "server.listen()\n"
        "print('up', flush=True)\n"
        "sys.stdin.read()\n"
    )
    argv = ["unshare", "--net", sys.executable, "-c", script, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        found = target(files=(need(path, FileRole.SOCKET, FileKind.SOCKET),)).files
        server.communicate()
    assert found[str(path)].bound


def test_read_target_links_and_addresses_are_the_hosts(segment: Segment) -> None:
    found = target()
    bridge, port = found.link(segment.bridge), found.link(segment.port)
    assert bridge is not None and port is not None
    assert (bridge.kind, bridge.mtu, bridge.up, bridge.master) == ("bridge", 1400, True, "")
    assert (port.kind, port.master) == ("veth", segment.bridge)
    assert bridge.ifindex == socket.if_nametoindex(segment.bridge)
    assert (segment.bridge, "10.77.0.1/24") in [(one.ifname, one.address) for one in found.addresses]


@pytest.mark.parametrize("address", ["10.77.0.2", "fd77::2"])
def test_read_target_station_answers_for_its_address(segment: Segment, address: str) -> None:
    probes = (Probe(address=address, ifname=segment.bridge),)
    found = host.read_target(Needs(probes=probes), CRIU, probe_seconds=10)
    assert [(one.address, one.ifname, one.mac) for one in found.answers] == [(address, segment.bridge, STATION_MAC)]


def test_read_target_free_addresses_have_no_answer(segment: Segment) -> None:
    free = (Probe(address="10.77.0.9", ifname=segment.bridge), Probe(address="fd77::9", ifname=segment.bridge))
    assert target(probes=free).answers == ()


def test_read_target_probes_run_side_by_side(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(8)

    def probe(_: int | None, ifname: str, address: str, seconds: float) -> str | None:
        together.wait(seconds)
        return None

    monkeypatch.setattr(arp, "probe", probe)
    probes = [Probe(address=f"10.77.0.{number}", ifname=segment.bridge) for number in range(10, 18)]
    # a barrier that is waited for in vain raises, and is broken from then on
    assert host.ask(probes, host.read_links(), 30) == ()
    assert not together.broken


def test_ask_leaves_out_links_that_are_missing_or_down(segment: Segment) -> None:
    run(["ip", "link", "set", segment.bridge, "down"])
    probes = (Probe(address="10.77.0.2", ifname=segment.bridge), Probe(address="10.77.0.2", ifname="none"))
    assert target(probes=probes).answers == ()


def test_read_target_sends_nothing_unless_asked(segment: Segment) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as capture:
        capture.bind((segment.port, 0x0806))
        target()
        with pytest.raises(BlockingIOError):
            capture.recv(2000, socket.MSG_DONTWAIT)


def test_read_target_busy_sockets_are_those_on_the_ports() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams,
        socket.create_server(("127.0.0.1", 0)) as unasked,
    ):
        datagrams.bind(("::1", 0))
        tcp, udp = server.getsockname()[1], datagrams.getsockname()[1]
        with socket.create_connection(("127.0.0.1", tcp)) as client:
            found = target(ports=(tcp, udp)).sockets
            peer = Endpoint(address="127.0.0.1", port=client.getsockname()[1])
    local = Endpoint(address="127.0.0.1", port=tcp)
    assert BusySocket(protocol=IPPROTO_TCP, state="listen", local=local) in found
    assert BusySocket(protocol=IPPROTO_TCP, state="established", local=local, remote=peer) in found
    assert BusySocket(protocol=IPPROTO_UDP, state="close", local=Endpoint(address="::1", port=udp)) in found
    assert {one.local.port for one in found} == {tcp, udp}
    assert unasked.fileno() == -1


def test_read_target_without_ports_looks_at_no_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert target().sockets == ()


def test_read_target_taken_ids_are_of_processes_and_threads() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        free = 1 << 22  # the kernel's own limit of PIDs
        assert thread.native_id is not None
        found = target(pids=(os.getpid(), thread.native_id, free))
        assert found.pids_taken == (os.getpid(), thread.native_id)
        assert found.pid_max > os.getpid()
    finally:
        done.set()
        thread.join()


def test_read_target_names_missing_kinds_and_tools() -> None:
    require(os.path.exists("/dev/net/tun"), "no TUN device")
    found = target(kinds=("bridge", "nosuchkind", "tun"), tools=("ip", "no-such-tool"))
    assert found.kinds_missing == ("nosuchkind",)
    assert found.tools_missing == ("no-such-tool",)


def test_read_target_knows_memory_and_congestion_control() -> None:
    found = target()
    assert 0 < found.memory_available < 1 << 50
    assert "reno" in found.congestion
    assert isinstance(found.host, HostFacts)


def test_read_target_bindable_is_what_the_host_takes(segment: Segment) -> None:
    run(["ip", "route", "add", "local", "10.88.0.0/24", "dev", "lo"])
    scope = socket.if_nametoindex(segment.bridge)
    run(["ip", "address", "add", "fe80::77/64", "dev", segment.bridge, "nodad"])
    mine = (
        *(Endpoint(address=address, port=0) for address in ("10.77.0.1", "10.77.0.255", "10.88.0.9", "::1")),
        Endpoint(address="fe80::77", port=0, scope=scope),
    )
    others = ("10.77.0.2", "fd77::2", "example.org", "", "10.77.0.1\0")
    try:
        found = target(binds=(*mine, *(Endpoint(address=address, port=0) for address in others)))
    finally:
        run(["ip", "route", "delete", "local", "10.88.0.0/24", "dev", "lo"])
    assert found.bindable == mine


def test_read_target_nonlocal_bind_is_the_namespaces() -> None:
    assert target().nonlocal_bind is False
    path = Path("/proc/sys/net/ipv4/ip_nonlocal_bind")
    path.write_text("1")
    try:
        found = target(binds=(Endpoint(address="127.0.0.1", port=0),))
        assert (found.nonlocal_bind, found.bindable) == (True, ())
    finally:
        path.write_text("0")


def test_read_target_leaves_this_process_where_it_was(segment: Segment) -> None:
    before = (os.readlink("/proc/thread-self/ns/net"), sorted(os.listdir("/proc/self/fd")))
    target(
        probes=(Probe(address="10.77.0.9", ifname=segment.bridge),),
        kinds=("bridge",),
        ports=(1,),
        files=(need("/", FileRole.SOCKET),),
    )
    assert (os.readlink("/proc/thread-self/ns/net"), sorted(os.listdir("/proc/self/fd"))) == before


def test_read_target_paths_have_their_mtu_and_no_route_is_none(segment: Segment) -> None:
    paths = tuple(PeerPath(local="10.77.0.1", remote=remote) for remote in ("10.77.0.2", "203.0.113.7"))
    space = netns.create()
    try:
        with netns.entered(space):
            assert target(paths=paths).paths == ()
    finally:
        os.close(space)
    assert PeerPath(local="10.77.0.1", remote="10.77.0.2", mtu=1400) in target(paths=paths[:1]).paths


def test_read_target_gateways_are_apart_from_addresses(segment: Segment) -> None:
    gateway = Probe(address="10.77.0.2", ifname=segment.bridge)
    found = host.read_target(Needs(gateways=(gateway,)), CRIU, probe_seconds=3)
    assert ([one.mac for one in found.gateways], found.answers) == ([STATION_MAC], ())


def test_read_target_two_stations_with_one_address_both_answer(segment: Segment, unique: Callable[[str], str]) -> None:
    port, inner, other = unique("v"), unique("w"), netns.create()
    try:
        run(["ip", "link", "add", port, "up", "master", segment.bridge, "type", "veth", "peer", "name", inner])
        run(["ip", "link", "set", inner, "netns", f"/proc/{os.getpid()}/fd/{other}"])
        run(["ip", "link", "set", inner, "address", "02:00:00:00:07:02", "up"], netns=other)
        run(["ip", "address", "add", "10.77.0.2/24", "dev", inner], netns=other)
        probes = (Probe(address="10.77.0.2", ifname=segment.bridge),)
        deadline = time.monotonic() + 20
        while len(found := host.read_target(Needs(probes=probes), CRIU, probe_seconds=1).answers) < 2:
            assert time.monotonic() < deadline, found
        assert {one.mac for one in found} == {STATION_MAC, "02:00:00:00:07:02"}
    finally:
        os.close(other)
        subprocess.run(["ip", "link", "delete", port], check=False, stderr=subprocess.DEVNULL)


def test_read_target_users_and_room() -> None:
    found = host.read_target(Needs(users=(0, 4_000_000_000)), CRIU, scratch=(Path("/nowhere"), Path("/tmp")))
    assert found.users_missing == (4_000_000_000,)
    assert found.disk_free >= 0
    assert target().disk_free == -1
