"""Revalidation: every code is raised by the one change that is its cause, and by nothing of what fits."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace

import pytest

from ckpt.image.defect import Place as ImagePlace
from ckpt.image.schema import decode, encode
from ckpt.model.checkpoint import Checkpoint, CriuNotes, Group, InheritedFile, Mount, NestedNetwork
from ckpt.model.finding import Finding, Severity, blocking
from ckpt.model.host import (
    Answer,
    BusySocket,
    FileFacts,
    FileRole,
    HostFacts,
    KnownGroup,
    LinkFacts,
    Needs,
    PeerPath,
    Probe,
    TargetFacts,
)
from ckpt.model.network import Address, Counterpart, Link, Network, Place, Route
from ckpt.model.process import Executable, FileKind, Isolation, MappedFile, Memory, OpenFile, Process, Thread
from ckpt.model.socket import IPPROTO_TCP, IPPROTO_UDP, Endpoint, Owner, Socket, SocketOptions
from ckpt.model.wireguard import WireguardDevice, WireguardPeer
from ckpt.revalidate import needs_of, revalidate

MIB = 1 << 20
REGULAR = stat.S_IFREG | 0o644
PROGRAM = stat.S_IFREG | 0o755
SERVER, LIBRARY, DATA, LOG, FIFO, NODE = "/srv/server", "/srv/lib.so", "/srv/data", "/srv/log", "/srv/fifo", "/dev/zero"
WORK, ROOT, SOCKETS, SOCKET = "/srv/work", "/srv/root", "/run/server", "/run/server/socket"
MAC = "02:00:00:00:00:02"


def open_file(fd: int, path: str, kind: FileKind = FileKind.REGULAR, **values: object) -> OpenFile:
    base = OpenFile(
        fd=fd, kind=kind, path=path, flags=os.O_RDWR, position=0, mount_id=1, mode=REGULAR, inode=fd, device="8:1"
    )
    return replace(base, **values)  # type: ignore[arg-type]


def tcp(local: str, port: int, state: str = "listen", remote: Endpoint | None = None, **values: object) -> Socket:
    base = Socket(
        inode=port,
        netns=1,
        family="inet6" if ":" in local else "inet",
        type="stream",
        protocol=IPPROTO_TCP,
        state=state,
        local=Endpoint(address=local, port=port),
        remote=remote,
        owners=(Owner(pid=71, fd=9, ns_pid=1),),
    )
    return replace(base, **values)  # type: ignore[arg-type]


def udp(local: str, port: int) -> Socket:
    return replace(tcp(local, port, "close"), type="dgram", protocol=IPPROTO_UDP)


PEER = Endpoint(address="10.9.0.9", port=40000)

PROCESS = Process(
    pid=71,
    ns_pids=(71, 1),
    ppid=1,
    pgid=71,
    sid=71,
    name="server",
    exe=Executable(path=SERVER, device="8:1", inode=2, size=1000, mode=PROGRAM, build_id="aa"),
    cwd=WORK,
    root=ROOT,
    state="S",
    start_time=1,
    threads=(
        Thread(tid=71, name="server", state="S", ns_ids=(71, 1)),
        Thread(tid=72, name="w", state="S", ns_ids=(72, 2)),
    ),
    memory=Memory(private=100 * MIB),
    files=(
        open_file(3, DATA, size=50),
        open_file(4, LOG, size=60, flags=os.O_WRONLY | os.O_APPEND),
        open_file(5, FIFO, FileKind.FIFO, mode=stat.S_IFIFO | 0o600),
        open_file(6, NODE, FileKind.CHARACTER, special="1:5", mode=stat.S_IFCHR | 0o666),
        open_file(7, "/srv/gone", deleted=True),
        open_file(8, "/proc/71/stat"),
    ),
    maps=(
        MappedFile(path=SERVER, device="8:1", inode=2, size=1000, mode=PROGRAM, build_id="aa", executable=True),
        MappedFile(path=LIBRARY, device="8:1", inode=3, size=2000, mode=REGULAR, build_id="bb", executable=True),
        MappedFile(path="/dev/zero", device="0:1", inode=4, deleted=True, mode=REGULAR),
    ),
)

NETWORK = Network(
    links=(
        Link(ifname="lo", kind="loopback"),
        Link(
            ifname="eth0",
            kind="veth",
            mac=MAC,
            mtu=1500,
            counterpart=Counterpart(place=Place.CALLER, ifname="ckptaaaa", kind="veth", master="br0"),
        ),
        Link(
            ifname="eth1",
            kind="macvlan",
            mtu=1500,
            counterpart=Counterpart(place=Place.CALLER, ifname="host1"),
        ),
        Link(
            ifname="p2p0",
            kind="veth",
            mtu=1500,
            counterpart=Counterpart(
                place=Place.CALLER,
                ifname="ckptbbbb",
                kind="veth",
                addresses=(Address(ifname="ckptbbbb", address="10.2.0.1/30"),),
            ),
        ),
    ),
    addresses=(
        Address(ifname="lo", address="127.0.0.1/8", scope="host"),
        Address(ifname="eth0", address="10.0.0.2/24"),
        Address(ifname="eth0", address="fd00::2/64"),
        Address(ifname="eth0", address="fe80::2/64", scope="link"),
        Address(ifname="eth1", address="10.1.0.2/24"),
    ),
)

CHECKPOINT = Checkpoint(
    group=Group(name="web", isolation=Isolation.NETNS, root_pid=71, pid_namespace=True),
    source=HostFacts(
        hostname="a", machine="x86_64", kernel="6.12.1-amd64", criu=(4, 1, 1), cpu_flags=("avx2", "ibrs", "sse2")
    ),
    processes=(PROCESS,),
    sockets=(
        tcp("10.0.0.2", 80, options=SocketOptions(congestion="cubic")),
        Socket(inode=1, netns=1, family="unix", type="stream", protocol=0, state="listen", path=SOCKET),
        Socket(inode=2, netns=1, family="unix", type="stream", protocol=0, state="listen", path="@abstract"),
    ),
    network=NETWORK,
    criu=CriuNotes(),
)

# The same program in the host's own namespaces.
PLAIN = replace(
    CHECKPOINT,
    group=replace(CHECKPOINT.group, isolation=Isolation.NONE, pid_namespace=False),
    processes=(replace(PROCESS, ns_pids=(71,), threads=(Thread(tid=71, name="server", state="S", ns_ids=(71,)),)),),
    sockets=(
        tcp("192.0.2.1", 80),
        tcp("2001:db8::1", 80),
        tcp("0.0.0.0", 81),
        tcp("::", 82, options=SocketOptions(v6only=True)),
        tcp("127.0.0.1", 83),
        tcp("192.0.2.1", 80, "established", PEER),
        udp("192.0.2.255", 90),
        udp("224.0.0.251", 91),
        replace(udp("fe80::1", 92), local=Endpoint(address="fe80::1", port=92, scope=2)),
    ),
    network=None,
)

TARGET = TargetFacts(
    host=HostFacts(
        hostname="b", machine="x86_64", kernel="6.12.9", criu=(4, 2, 0), cpu_flags=("avx2", "avx512f", "sse2")
    ),
    files={
        SERVER: FileFacts(kind=FileKind.REGULAR, size=1000, mode=PROGRAM, build_id="aa"),
        LIBRARY: FileFacts(kind=FileKind.REGULAR, size=2000, mode=REGULAR, build_id="bb"),
        DATA: FileFacts(kind=FileKind.REGULAR, size=50, mode=REGULAR),
        LOG: FileFacts(kind=FileKind.REGULAR, size=60, mode=REGULAR),
        FIFO: FileFacts(kind=FileKind.FIFO, mode=stat.S_IFIFO | 0o600),
        NODE: FileFacts(kind=FileKind.CHARACTER, special="1:5", mode=stat.S_IFCHR | 0o666),
        WORK: FileFacts(kind=FileKind.DIRECTORY),
        ROOT: FileFacts(kind=FileKind.DIRECTORY),
        SOCKETS: FileFacts(kind=FileKind.DIRECTORY),
        SOCKET: FileFacts(kind=FileKind.SOCKET),
    },
    links=(
        LinkFacts(ifname="lo", ifindex=1, kind="loopback", mtu=65536),
        LinkFacts(ifname="host1", ifindex=2, mtu=1500),
        LinkFacts(ifname="br0", ifindex=3, kind="bridge", mtu=1500),
        LinkFacts(ifname="port", ifindex=4, kind="veth", mtu=1500, master="br0"),
    ),
    addresses=(
        Address(ifname="host1", address="192.0.2.1/24"),
        Address(ifname="host1", address="2001:db8::1/64"),
        Address(ifname="host1", address="fe80::1/64", scope="link"),
    ),
    congestion=("reno", "cubic"),
    paths=(PeerPath(local="192.0.2.1", remote="10.9.0.9", mtu=1500),),
    pid_max=32768,
    memory_available=1000 * MIB,
    swap_free=100 * MIB,
)

Change = Callable[[TargetFacts], TargetFacts]


def host(**values: object) -> Change:
    return lambda target: replace(target, host=replace(target.host, **values))  # type: ignore[arg-type]


def without(path: str) -> Change:
    return lambda target: replace(target, files={key: value for key, value in target.files.items() if key != path})


def file(path: str, **values: object) -> Change:
    return lambda target: replace(
        target,
        files={**target.files, path: replace(target.files[path], **values)},  # type: ignore[arg-type]
    )


def link(ifname: str, **values: object) -> Change:
    return lambda target: replace(
        target,
        links=tuple(
            replace(one, **values) if one.ifname == ifname else one  # type: ignore[arg-type]
            for one in target.links
        ),
    )


def no_link(ifname: str) -> Change:
    return lambda target: replace(target, links=tuple(one for one in target.links if one.ifname != ifname))


def more(field: str, *values: object) -> Change:
    return lambda target: replace(target, **{field: (*getattr(target, field), *values)})  # type: ignore[arg-type]


def other(**values: object) -> Change:
    return lambda target: replace(target, **values)  # type: ignore[arg-type]


def busy(protocol: int, local: str, port: int, state: str, remote: Endpoint | None = None) -> Change:
    endpoint = Endpoint(address=local, port=port)
    return more("sockets", BusySocket(protocol=protocol, state=state, local=endpoint, remote=remote))


def no_address(address: str) -> Change:
    return lambda target: replace(
        target, addresses=tuple(one for one in target.addresses if not one.address.startswith(address))
    )


def alarming(found: tuple[Finding, ...]) -> list[tuple[Severity, str, str]]:
    return [(one.severity, one.code, one.subject) for one in found if one.severity is not Severity.OK]


def named(found: tuple[Finding, ...], code: str) -> Finding:
    return next(one for one in found if one.code == code)


GROUP = KnownGroup(name="other", pid=5, addresses=("10.0.0.2/24",), links=("br0",))


@pytest.mark.parametrize("checkpoint", [CHECKPOINT, PLAIN], ids=["netns", "none"])
def test_revalidate_fitting_target_finds_nothing(checkpoint: Checkpoint) -> None:
    found = revalidate(checkpoint, TARGET)
    assert alarming(found) == []
    assert all(one.remedy == "" for one in found)


@pytest.mark.parametrize(
    ("change", "severity", "code", "subject"),
    [
        (host(machine="aarch64"), Severity.BLOCK, "host-arch", "processor"),
        (host(cpu_flags=("sse2",)), Severity.BLOCK, "host-cpu", "processor"),
        (host(criu=(4, 0, 9)), Severity.BLOCK, "criu-version", "CRIU"),
        (host(kernel="6.6.99"), Severity.WARN, "kernel", "kernel"),
        (other(tools_missing=("nft",)), Severity.BLOCK, "tool-missing", "nft"),
        (more("groups", KnownGroup(name="web", pid=5)), Severity.BLOCK, "group-name-taken", "web"),
        (more("groups", KnownGroup(name="web", pid=5, alive=False)), Severity.BLOCK, "group-name-taken", "web"),
        (other(checkpoint_restore=False), Severity.BLOCK, "kernel-checkpoint", "kernel"),
        (other(capabilities_missing=("CAP_SYS_ADMIN",)), Severity.BLOCK, "capability", "CAP_SYS_ADMIN"),
        (other(users_missing=(71, 72)), Severity.WARN, "user-unknown", "user 71, 72"),
        (other(cgroups_missing=("pids",)), Severity.WARN, "cgroup-missing", "cgroup controllers pids"),
        (
            more("addresses", Address(ifname="x", address="10.2.0.6/29")),
            Severity.WARN,
            "route-overlap",
            "10.2.0.0/30",
        ),
        (other(pid_max=2), Severity.BLOCK, "pid-max", "PID 2"),
        (other(memory_available=10 * MIB, swap_free=0), Severity.BLOCK, "memory", "memory"),
        (other(memory_available=105 * MIB), Severity.WARN, "memory", "memory"),
        (without(SERVER), Severity.BLOCK, "exe-missing", SERVER),
        (file(SERVER, build_id="cc"), Severity.BLOCK, "exe-differs", SERVER),
        (file(SERVER, size=1001), Severity.BLOCK, "exe-differs", SERVER),
        (file(SERVER, mode=stat.S_IFREG | 0o700), Severity.BLOCK, "exe-differs", SERVER),
        (file(SERVER, kind=FileKind.DIRECTORY), Severity.BLOCK, "exe-differs", SERVER),
        (without(LIBRARY), Severity.BLOCK, "mapped-missing", LIBRARY),
        (file(LIBRARY, build_id=None), Severity.BLOCK, "mapped-differs", LIBRARY),
        (without(DATA), Severity.BLOCK, "file-missing", DATA),
        (without(FIFO), Severity.BLOCK, "file-missing", FIFO),
        (without(NODE), Severity.BLOCK, "file-missing", NODE),
        (file(DATA, size=51), Severity.BLOCK, "file-differs", DATA),
        (file(DATA, size=49), Severity.BLOCK, "file-shrunk", DATA),
        (file(LOG, size=59), Severity.BLOCK, "file-shrunk", LOG),
        (file(DATA, mode=stat.S_IFREG | 0o600), Severity.WARN, "file-mode", DATA),
        (file(FIFO, mode=stat.S_IFIFO | 0o644), Severity.WARN, "file-mode", FIFO),
        (file(DATA, kind=FileKind.DIRECTORY), Severity.BLOCK, "file-kind", DATA),
        (file(NODE, special="1:3"), Severity.BLOCK, "file-kind", NODE),
        (without(WORK), Severity.BLOCK, "cwd-missing", WORK),
        (file(WORK, kind=FileKind.REGULAR), Severity.BLOCK, "cwd-missing", WORK),
        (without(ROOT), Severity.BLOCK, "root-missing", ROOT),
        (without(SOCKETS), Severity.BLOCK, "socket-directory-missing", SOCKETS),
        (file(SOCKET, bound=True), Severity.BLOCK, "socket-path-taken", SOCKET),
        (file(SOCKET, kind=FileKind.REGULAR), Severity.BLOCK, "socket-path-taken", SOCKET),
        (other(kinds_missing=("macvlan",)), Severity.BLOCK, "link-kind", "links of kind macvlan"),
        (no_link("br0"), Severity.BLOCK, "link-missing", "br0"),
        (no_link("host1"), Severity.BLOCK, "link-missing", "host1"),
        (link("br0", kind=""), Severity.BLOCK, "link-not-bridge", "br0"),
        (link("br0", mtu=1400), Severity.WARN, "link-mtu", "br0"),
        (link("host1", mtu=1400), Severity.BLOCK, "link-mtu", "host1"),
        (link("br0", up=False), Severity.WARN, "link-down", "br0"),
        (more("addresses", Address(ifname="x", address="10.0.0.2/32")), Severity.BLOCK, "address-in-use", "10.0.0.2"),
        (more("addresses", Address(ifname="x", address="10.2.0.1/32")), Severity.BLOCK, "address-in-use", "10.2.0.1"),
        (more("groups", GROUP), Severity.BLOCK, "address-in-use", "10.0.0.2"),
        (
            more("answers", Answer(address="10.1.0.2", ifname="host1", mac=MAC)),
            Severity.BLOCK,
            "address-in-use",
            "10.1.0.2",
        ),
        (other(congestion=("reno",)), Severity.WARN, "socket-congestion", "cubic"),
    ],
)
def test_revalidate_one_thing_amiss_says_so(change: Change, severity: Severity, code: str, subject: str) -> None:
    assert alarming(revalidate(CHECKPOINT, change(TARGET))) == [(severity, code, subject)]


@pytest.mark.parametrize(
    ("change", "severity", "code", "subject"),
    [
        (no_address("2001:db8::1"), Severity.BLOCK, "address-missing", "2001:db8::1"),
        (link("host1", ifindex=7), Severity.BLOCK, "address-missing", "fe80::1"),
        (
            busy(IPPROTO_TCP, "192.0.2.1", 80, "listen"),
            Severity.BLOCK,
            "port-in-use",
            "TCP 192.0.2.1:80 (PID 71, fd 9)",
        ),
        (busy(IPPROTO_TCP, "0.0.0.0", 83, "listen"), Severity.BLOCK, "port-in-use", "TCP 127.0.0.1:83 (PID 71, fd 9)"),
        (busy(IPPROTO_TCP, "10.3.3.3", 81, "listen"), Severity.BLOCK, "port-in-use", "TCP 0.0.0.0:81 (PID 71, fd 9)"),
        (busy(IPPROTO_TCP, "::", 81, "listen"), Severity.WARN, "port-in-use", "TCP 0.0.0.0:81 (PID 71, fd 9)"),
        (busy(IPPROTO_UDP, "0.0.0.0", 91, "close"), Severity.BLOCK, "port-in-use", "UDP 224.0.0.251:91 (PID 71, fd 9)"),
        (
            other(paths=()),
            Severity.BLOCK,
            "route-missing",
            "TCP 192.0.2.1:80 (PID 71, fd 9)",
        ),
        (
            other(paths=(PeerPath(local="192.0.2.1", remote="10.9.0.9", mtu=30),)),
            Severity.WARN,
            "route-mtu",
            "TCP 192.0.2.1:80 (PID 71, fd 9)",
        ),
        (
            busy(IPPROTO_TCP, "192.0.2.1", 80, "time_wait", PEER),
            Severity.BLOCK,
            "connection-taken",
            "TCP 192.0.2.1:80 (PID 71, fd 9)",
        ),
    ],
)
def test_revalidate_plain_group_one_thing_amiss_says_so(
    change: Change, severity: Severity, code: str, subject: str
) -> None:
    assert alarming(revalidate(PLAIN, change(TARGET))) == [(severity, code, subject)]


@pytest.mark.parametrize(
    "change",
    [
        other(capabilities_missing=("CAP_SYS_RESOURCE",)),
        other(ephemeral_ports=(80, 90)),
        busy(IPPROTO_TCP, "192.0.2.1", 80, "established", replace(PEER, port=1)),
        busy(IPPROTO_TCP, "192.0.2.2", 80, "listen"),
        busy(IPPROTO_UDP, "192.0.2.1", 80, "close"),
        busy(IPPROTO_TCP, "0.0.0.0", 82, "listen"),
        busy(IPPROTO_UDP, "192.0.2.255", 90, "established", PEER),
        more("groups", GROUP),
        host(criu=(4, 1, 0)),
        host(kernel="7.0"),
        host(cpu_flags=("avx2", "sse2")),
    ],
)
def test_revalidate_harmless_neighbour_is_no_finding(change: Change) -> None:
    assert alarming(revalidate(PLAIN, change(TARGET))) == []


@pytest.mark.parametrize(
    "change",
    [
        more("groups", replace(GROUP, links=("br1",))),
        more("groups", replace(GROUP, alive=False)),
        more("answers", Answer(address="10.0.0.2", ifname="elsewhere", mac=MAC)),
        more("sockets", BusySocket(protocol=IPPROTO_TCP, state="listen", local=Endpoint(address="0.0.0.0", port=80))),
        no_address("2001:db8::1"),
        link("br0", mtu=9000),
    ],
)
def test_revalidate_netns_group_is_not_concerned(change: Change) -> None:
    assert alarming(revalidate(CHECKPOINT, change(TARGET))) == []


def test_revalidate_listeners_without_their_address_block_or_warn_by_family() -> None:
    checkpoint = replace(PLAIN, sockets=PLAIN.sockets[:2])
    bare = replace(TARGET, addresses=())
    assert alarming(revalidate(checkpoint, bare)) == [
        (Severity.BLOCK, "address-missing", "192.0.2.1"),
        (Severity.BLOCK, "address-missing", "2001:db8::1"),
    ]
    assert alarming(revalidate(checkpoint, replace(bare, nonlocal_bind=True))) == [
        (Severity.WARN, "address-missing", "192.0.2.1"),
        (Severity.BLOCK, "address-missing", "2001:db8::1"),
    ]


def test_revalidate_bindable_address_needs_no_link() -> None:
    checkpoint = replace(PLAIN, sockets=PLAIN.sockets[:1])
    target = replace(TARGET, addresses=(), bindable=(Endpoint(address="192.0.2.1", port=0),))
    assert alarming(revalidate(checkpoint, target)) == []


@pytest.mark.parametrize("name", [".hidden", "../../etc/x", "a\0b"])
def test_revalidate_group_name_that_is_a_path_blocks(name: str) -> None:
    checkpoint = replace(CHECKPOINT, group=replace(CHECKPOINT.group, name=name))
    assert alarming(revalidate(checkpoint, TARGET)) == [(Severity.BLOCK, "group-name-invalid", repr(name))]
    assert alarming(revalidate(checkpoint, TARGET, name="web")) == []


@pytest.mark.parametrize("name", ["../../etc/x", "a/b", "", "."])
def test_revalidate_netns_name_that_is_a_path_blocks(name: str) -> None:
    checkpoint = replace(CHECKPOINT, group=replace(CHECKPOINT.group, netns_names=(name,)))
    assert alarming(revalidate(checkpoint, TARGET)) == [(Severity.BLOCK, "netns-name-invalid", f"/run/netns/{name}")]


def test_revalidate_taken_netns_name_blocks() -> None:
    checkpoint = replace(CHECKPOINT, group=replace(CHECKPOINT.group, netns_names=("blue",)))
    assert alarming(revalidate(checkpoint, TARGET)) == []
    target = replace(TARGET, files={**TARGET.files, "/run/netns/blue": FileFacts(kind=FileKind.REGULAR)})
    assert alarming(revalidate(checkpoint, target)) == [(Severity.BLOCK, "netns-name-taken", "/run/netns/blue")]


def test_revalidate_address_that_is_none_blocks_alone() -> None:
    network = replace(NETWORK, addresses=(Address(ifname="eth0", address="10.0.0.2/99"),))
    sockets = (tcp("example.org", 80),)
    found = revalidate(replace(CHECKPOINT, network=network, sockets=sockets), TARGET)
    assert [(one.code, one.subject) for one in found] == [
        ("address-invalid", "'10.0.0.2/99'"),
        ("address-invalid", "'example.org'"),
    ]


def test_revalidate_group_address_is_compared_as_an_address() -> None:
    target = more("groups", replace(GROUP, addresses=("FD00:0::2/64",)))(TARGET)
    assert alarming(revalidate(CHECKPOINT, target)) == [(Severity.BLOCK, "address-in-use", "fd00::2")]


def test_revalidate_numbers_no_kernel_has_do_no_harm() -> None:
    huge = (1 << 64) - 1
    process = replace(
        PROCESS,
        files=(open_file(3, DATA, size=huge, mode=huge),),
        maps=(MappedFile(path=LIBRARY, device="8:1", inode=3, size=huge, mode=huge),),
    )
    found = revalidate(replace(CHECKPOINT, processes=(process,)), TARGET)
    assert {"file-mode", "file-shrunk"} <= {one.code for one in found}


def test_revalidate_shared_port_warns() -> None:
    one = tcp("192.0.2.1", 80, options=SocketOptions(reuse_port=True))
    target = busy(IPPROTO_TCP, "192.0.2.1", 80, "listen")(TARGET)
    assert alarming(revalidate(replace(PLAIN, sockets=(one,)), target)) == [
        (Severity.WARN, "port-in-use", "TCP 192.0.2.1:80 (PID 71, fd 9)")
    ]


def test_revalidate_tcp_close_leaves_connections_out() -> None:
    target = busy(IPPROTO_TCP, "192.0.2.1", 80, "established", PEER)(TARGET)
    assert blocking(revalidate(PLAIN, target))
    assert alarming(revalidate(PLAIN, target, tcp_close=True)) == []


def test_revalidate_mapped_ipv4_address_is_that_address() -> None:
    one = tcp("::ffff:192.0.2.1", 80, "established", Endpoint(address="::ffff:10.9.0.9", port=40000))
    checkpoint = replace(PLAIN, sockets=(one,))
    assert alarming(revalidate(checkpoint, TARGET)) == []
    target = busy(IPPROTO_TCP, "192.0.2.1", 80, "established", PEER)(TARGET)
    assert [code for _, code, _ in alarming(revalidate(checkpoint, target))] == ["connection-taken"]


def test_revalidate_missing_device_blocks() -> None:
    sockets = (tcp("10.0.0.2", 80, device="eth0"), tcp("10.0.0.2", 81, device="eth7"))
    assert revalidate(replace(CHECKPOINT, sockets=sockets), TARGET)[-1] == Finding(
        severity=Severity.BLOCK,
        code="socket-device-missing",
        subject="TCP 10.0.0.2:81 (PID 71, fd 9)",
        reason="it is bound to the link eth7, and that is not there",
        remedy="make a link called eth7, or name another: --map-link eth7=LINK",
        needed="eth7",
    )


def test_revalidate_another_name_gets_round_a_taken_one() -> None:
    target = more("groups", KnownGroup(name="web", pid=5))(TARGET)
    found = revalidate(CHECKPOINT, target)
    assert named(found, "group-name-taken") == Finding(
        severity=Severity.BLOCK,
        code="group-name-taken",
        subject="web",
        reason="a group of that name is there and runs as PID 5",
        remedy="choose another name with --name, or `ckpt stop web` first",
    )
    assert alarming(revalidate(CHECKPOINT, target, name="web2")) == []


def test_revalidate_what_ckpt_gets_round_is_ok() -> None:
    checkpoint = replace(CHECKPOINT, group=replace(CHECKPOINT.group, bridge_made=True, pid_namespace=False))
    target = more("links", LinkFacts(ifname="ckptaaaa", ifindex=9, kind="veth"))(no_link("br0")(TARGET))
    found = revalidate(checkpoint, replace(target, pids_taken=(1, 2)))
    assert alarming(found) == []
    assert {"link-made", "link-name-taken", "pids-taken"} <= {one.code for one in found}


def test_revalidate_grown_log_is_ok_and_a_grown_file_is_not() -> None:
    found = revalidate(CHECKPOINT, file(LOG, size=100)(TARGET))
    assert alarming(found) == []
    assert named(found, "file-grown") == Finding(
        severity=Severity.OK,
        code="file-grown",
        subject=LOG,
        reason="PID 71, fd 4 appends to it; it has 100 bytes instead of 60, and it goes on at the end",
    )


@pytest.mark.parametrize(("flags", "blocks"), [(os.O_RDONLY, True), (os.O_RDWR | os.O_APPEND, False)])
def test_revalidate_grown_log_that_is_read_too_blocks_unless_for_appending(flags: int, blocks: bool) -> None:
    reader = replace(PROCESS, files=(open_file(9, LOG, size=60, flags=flags),))
    checkpoint = replace(CHECKPOINT, processes=(PROCESS, reader))
    found = revalidate(checkpoint, file(LOG, size=100)(TARGET))
    assert alarming(found) == ([(Severity.BLOCK, "file-differs", LOG)] if blocks else [])


def test_revalidate_answer_names_who_has_the_address() -> None:
    def say(mac: str) -> Finding:
        target = more("answers", Answer(address="10.0.0.2", ifname="br0", mac=mac))(TARGET)
        return named(revalidate(CHECKPOINT, target), "address-in-use")

    assert say("02:00:00:00:00:99") == Finding(
        severity=Severity.BLOCK,
        code="address-in-use",
        subject="10.0.0.2",
        reason="02:00:00:00:00:99 answers for it on br0",
        remedy="stop what has it, give the group another with --map-address, or restore where it is free",
        needed="10.0.0.2",
    )
    assert say(MAC).reason == f"{MAC} (the group's own: it or a copy of it still runs) answers for it on br0"


def test_revalidate_counts_what_is_as_it_was() -> None:
    found = {one.code: one.subject for one in revalidate(CHECKPOINT, TARGET)}
    assert found["programs"] == "2 programs and libraries"
    assert found["files"] == "4 open files"
    assert found["directories"] == "2 directories"


def test_revalidate_differing_program_names_every_difference() -> None:
    assert named(revalidate(CHECKPOINT, file(SERVER, build_id="cc", size=999)(TARGET)), "exe-differs") == Finding(
        severity=Severity.BLOCK,
        code="exe-differs",
        subject=SERVER,
        reason="PID 71 runs it, and its build-id is cc here instead of aa; its size is 999 here instead of 1000",
        remedy="install the version of it that the source has",
        needed="1000 bytes, mode 0755, build-id aa",
        there="999 bytes, mode 0755, build-id cc",
    )


def test_revalidate_known_pages_decide_over_the_processes_memory() -> None:
    # three processes that share all their memory
    checkpoint = replace(CHECKPOINT, processes=(PROCESS,) * 3)
    target = replace(TARGET, memory_available=150 * MIB, swap_free=0)
    assert [code for _, code, _ in alarming(revalidate(checkpoint, target))] == ["memory"]
    assert alarming(revalidate(checkpoint, target, pages=100 * MIB)) == []
    assert blocking(revalidate(checkpoint, target, pages=200 * MIB))


def test_revalidate_unknown_target_facts_are_no_finding() -> None:
    target = replace(TARGET, memory_available=0, pid_max=0, congestion=(), host=replace(TARGET.host, cpu_flags=()))
    assert alarming(revalidate(CHECKPOINT, target)) == []


def test_needs_of_isolated_group_asks_for_its_segments_and_no_pids() -> None:
    found = needs_of(CHECKPOINT)
    assert found.probes == (
        Probe(address="10.0.0.2", ifname="br0"),
        Probe(address="fd00::2", ifname="br0"),
        Probe(address="10.1.0.2", ifname="host1"),
    )
    assert found.kinds == ("macvlan", "veth")
    assert (found.pids, found.ports) == ((), ())


def test_needs_of_group_ask_for_the_kind_of_a_fallback_device_that_was_used() -> None:
    assert CHECKPOINT.network is not None
    for flags, kinds in (((), ("macvlan", "veth")), (("up",), ("ipip", "macvlan", "veth"))):
        links = (*CHECKPOINT.network.links, Link(ifname="tunl0", kind="ipip", flags=flags))
        assert needs_of(replace(CHECKPOINT, network=replace(CHECKPOINT.network, links=links))).kinds == kinds


def test_needs_of_plain_group_asks_for_pids_and_ports() -> None:
    found = needs_of(PLAIN)
    assert found.pids == (71,)
    assert found.ports == (80, 81, 82, 83, 90, 91, 92)
    assert found.binds == (
        Endpoint(address="192.0.2.1", port=0),
        Endpoint(address="2001:db8::1", port=0),
        Endpoint(address="127.0.0.1", port=0),
        Endpoint(address="192.0.2.255", port=0),
        Endpoint(address="224.0.0.251", port=0),
        Endpoint(address="fe80::1", port=0, scope=2),
    )
    assert (found.probes, found.kinds) == ((), ())


def test_needs_of_leaves_out_what_has_no_path_on_the_target() -> None:
    paths = {need.path for need in needs_of(CHECKPOINT).files}
    assert paths == set(TARGET.files)


def test_needs_of_program_is_not_asked_for_twice() -> None:
    roles = [need.role for need in needs_of(CHECKPOINT).files if need.path == SERVER]
    assert roles == [FileRole.EXECUTABLE]


def test_needs_of_bridge_inside_probes_where_its_port_leads() -> None:
    network = Network(
        links=(
            Link(ifname="in0", kind="bridge"),
            replace(NETWORK.links[1], master="in0"),
            Link(ifname="v7", kind="vlan", counterpart=Counterpart(place=Place.INSIDE, ifname="eth0")),
        ),
        addresses=(Address(ifname="in0", address="10.0.0.2/24"), Address(ifname="v7", address="10.7.0.2/24")),
    )
    assert needs_of(replace(CHECKPOINT, network=network)).probes == (Probe(address="10.0.0.2", ifname="br0"),)


def test_needs_of_own_mounts_are_looked_for_at_their_source() -> None:
    mounts = (
        Mount(target="/srv", kind="bind", source="/var/srv"),
        Mount(target="/srv/work", kind="sysfs"),
    )
    paths = {need.path for need in needs_of(replace(CHECKPOINT, criu=CriuNotes(mounts=mounts))).files}
    assert "/var/srv/data" in paths
    assert not any(path.startswith("/srv") or path.endswith("/work") for path in paths)


def test_needs_of_inherited_file_may_differ_but_must_be_there() -> None:
    notes = CriuNotes(files=(InheritedFile(key="file[1:3]", path=DATA, flags=0, position=0),))
    checkpoint = replace(CHECKPOINT, criu=notes)
    assert alarming(revalidate(checkpoint, file(DATA, size=7, mode=0)(TARGET))) == []
    assert alarming(revalidate(checkpoint, without(DATA)(TARGET))) == [(Severity.BLOCK, "file-missing", DATA)]


@pytest.mark.parametrize("record", [needs_of(CHECKPOINT), needs_of(PLAIN), TARGET, CHECKPOINT.source])
def test_records_can_travel_as_those_of_an_image(record: Needs | TargetFacts | HostFacts) -> None:
    place = ImagePlace("test")
    assert decode(type(record), encode(record), "record", place) == record


NESTED = NestedNetwork(
    key="ckpt-netns-1",
    inode=99,
    netns_names=("blue",),
    network=Network(
        links=(
            Link(
                ifname="eth0",
                kind="veth",
                counterpart=Counterpart(place=Place.ELSEWHERE, netns="ckpt-netns", ifname="port0"),
            ),
            Link(
                ifname="routed0",
                kind="veth",
                counterpart=Counterpart(place=Place.ELSEWHERE, netns="ckpt-netns", ifname="port1"),
            ),
        ),
        addresses=(
            Address(ifname="eth0", address="10.0.0.7/24"),
            Address(ifname="routed0", address="10.9.0.7/24"),
        ),
    ),
)

BRIDGED = replace(
    CHECKPOINT,
    criu=replace(CHECKPOINT.criu, netns_key="ckpt-netns"),
    network=replace(
        NETWORK,
        links=(
            *(replace(link, master="br1") if link.ifname == "eth0" else link for link in NETWORK.links),
            Link(ifname="br1", kind="bridge"),
            Link(
                ifname="port0",
                kind="veth",
                master="br1",
                counterpart=Counterpart(place=Place.ELSEWHERE, netns="ckpt-netns-1", ifname="eth0"),
            ),
            Link(
                ifname="port1",
                kind="veth",
                counterpart=Counterpart(place=Place.ELSEWHERE, netns="ckpt-netns-1", ifname="routed0"),
            ),
        ),
    ),
    nested=(NESTED,),
)
"""A namespace nested in the group: one of its links is bridged to the host's segment, one is not."""


def test_needs_of_nested_namespace_probes_what_a_bridge_leads_out() -> None:
    found = needs_of(BRIDGED)
    assert set(found.probes) - set(needs_of(CHECKPOINT).probes) == {Probe(address="10.0.0.7", ifname="br0")}
    assert "bridge" in found.kinds
    assert "/run/netns/blue" in {need.path for need in found.files}


def test_revalidate_nested_address_in_use_blocks() -> None:
    target = replace(TARGET, answers=(Answer(address="10.0.0.7", ifname="br0", mac="02:00:00:00:00:99"),))
    found = blocking(revalidate(BRIDGED, target))
    assert [(one.code, one.subject) for one in found if one.code == "address-in-use"] == [
        ("address-in-use", "10.0.0.7")
    ]


def test_revalidate_nested_device_is_looked_for_in_its_own_namespace() -> None:
    bound = [replace(one, device="routed0") for one in CHECKPOINT.sockets[:1]]
    for netns, codes in ((99, []), (CHECKPOINT.sockets[0].netns, ["socket-device-missing"])):
        checkpoint = replace(BRIDGED, sockets=tuple(replace(one, netns=netns) for one in bound))
        found = revalidate(checkpoint, TARGET)
        assert [one.code for one in found if one.code == "socket-device-missing"] == codes


@pytest.mark.parametrize(
    "checkpoint",
    [
        replace(BRIDGED, nested=(NESTED, NESTED)),
        replace(BRIDGED, nested=(replace(NESTED, key="ckpt-netns"),)),
        replace(BRIDGED, network=None),
    ],
)
def test_revalidate_namespaces_that_cannot_be_told_apart_block(checkpoint: Checkpoint) -> None:
    assert [one.code for one in blocking(revalidate(checkpoint, TARGET))] == ["netns-invalid"]


SOURCE_MAC, STRANGER = "02:00:00:00:00:02", "02:00:00:00:00:99"


def test_revalidate_address_that_the_source_still_holds_is_ok() -> None:
    target = more("answers", Answer(address="10.0.0.2", ifname="br0", mac=SOURCE_MAC))(TARGET)
    assert [code for _, code, _ in alarming(revalidate(CHECKPOINT, target))] == ["address-in-use"]
    found = revalidate(CHECKPOINT, target, held_by=[SOURCE_MAC])
    assert alarming(found) == []
    assert named(found, "address-held").there == SOURCE_MAC


def test_revalidate_stranger_beside_the_source_is_told_apart() -> None:
    answers = tuple(Answer(address="10.0.0.2", ifname="br0", mac=mac) for mac in (SOURCE_MAC, STRANGER))
    found = revalidate(CHECKPOINT, replace(TARGET, answers=answers), held_by=[SOURCE_MAC])
    assert alarming(found) == [(Severity.BLOCK, "address-in-use", "10.0.0.2")]
    assert STRANGER in named(found, "address-in-use").reason


TUNL0 = Link(ifname="tunl0", kind="ipip", ifindex=3, flags=())


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        (Link(ifname="eth0", kind="dummy", ifindex=3), "the index 3 of eth0 is taken by tunl0"),
        (replace(TUNL0, ifindex=5, flags=("up",)), "tunl0 has the index 3 and not 5"),
        (Link(ifname="eth0", kind="dummy", ifindex=4), ""),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_revalidate_link_of_a_driver_in_the_way_blocks_unless_it_is_avoidable(
    link: Link, reason: str, nested: bool
) -> None:
    network = Network(links=(link,))
    checkpoint = replace(CHECKPOINT, network=network)
    if nested:
        checkpoint = replace(CHECKPOINT, nested=(replace(NESTED, network=network),))
    for avoidable, severity in ((True, Severity.OK), (False, Severity.BLOCK)):
        found = revalidate(checkpoint, replace(TARGET, fallbacks=(TUNL0,), fallbacks_avoidable=avoidable))
        those = [one for one in found if one.code == "fallback-device"]
        assert [(one.severity, one.subject) for one in those] == ([(severity, "tunl0")] if reason else [])
        assert [one.reason.startswith(reason) for one in those] == [True] * len(those)


def test_revalidate_gateway_that_does_not_answer_warns() -> None:
    routes = (
        Route(destination="0.0.0.0/0", gateway="10.0.0.1", ifname="eth0"),
        Route(destination="::/0", gateway="fe80::1", ifname="eth0"),
    )
    checkpoint = replace(CHECKPOINT, network=replace(NETWORK, routes=routes))
    assert needs_of(checkpoint).gateways == (Probe(address="10.0.0.1", ifname="br0"),)
    assert alarming(revalidate(checkpoint, TARGET)) == [(Severity.WARN, "gateway-silent", "10.0.0.1")]
    answer = Answer(address="10.0.0.1", ifname="br0", mac=STRANGER)
    assert alarming(revalidate(checkpoint, replace(TARGET, gateways=(answer,)))) == []
    own = more("addresses", Address(ifname="br0", address="10.0.0.1/24"))(TARGET)
    assert alarming(revalidate(checkpoint, own)) == []


def test_revalidate_clock_behind_the_source_warns_where_wireguard_has_peers() -> None:
    peers = (WireguardPeer(public_key="k"),)
    devices = (WireguardDevice(ifname="wg0", peers=peers), WireguardDevice(ifname="wg1"))
    checkpoint = replace(CHECKPOINT, network=replace(NETWORK, wireguard=devices))
    target = replace(TARGET, clock=1000.0)
    assert alarming(revalidate(checkpoint, target, made=1060.0)) == [(Severity.WARN, "wireguard-clock", "wg0")]
    assert "60 s behind" in named(revalidate(checkpoint, target, made=1060.0), "wireguard-clock").reason
    for made, clock in ((1000.5, 1000.0), (900.0, 1000.0), (None, 1000.0), (1060.0, 0.0)):
        assert alarming(revalidate(checkpoint, replace(TARGET, clock=clock), made=made)) == []
    assert alarming(revalidate(CHECKPOINT, target, made=1060.0)) == []


def test_revalidate_full_disk_blocks_where_the_size_is_known() -> None:
    target = replace(TARGET, disk_free=10 * MIB, memory_available=1000 * MIB)
    assert alarming(revalidate(CHECKPOINT, target)) == []
    assert alarming(revalidate(CHECKPOINT, target, pages=500 * MIB)) == []
    found = revalidate(CHECKPOINT, target, pages=501 * MIB)
    assert alarming(found) == [(Severity.BLOCK, "disk", "disk")]
    assert (named(found, "disk").needed, named(found, "disk").there) == (str(501 * MIB), str(10 * MIB))


def test_needs_of_processes_name_their_users_and_limits() -> None:
    process = replace(PROCESS, uids=(33, 33, 33, 33), cgroups=("5:cpu,cpuacct:/x", "4:pids:/", "0::/y"))
    needs = needs_of(replace(CHECKPOINT, processes=(process,)))
    assert (needs.users, needs.cgroups) == ((33,), ("cpu", "cpuacct"))


def test_needs_of_connections_in_the_hosts_network_name_their_paths() -> None:
    assert needs_of(PLAIN).paths == (PeerPath(local="192.0.2.1", remote="10.9.0.9"),)
    assert needs_of(CHECKPOINT).paths == ()
