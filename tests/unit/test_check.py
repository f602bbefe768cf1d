"""What a check says of a group: each rule has facts that trigger it, and facts next to them that must not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ckpt.check import check_dump
from ckpt.model.finding import Finding, Severity
from ckpt.model.process import (
    FileKind,
    GroupFacts,
    Holder,
    Isolation,
    MappedFile,
    MountPlace,
    NestedNetns,
    OutsideEnd,
    SysvIpc,
    Thread,
)
from ckpt.model.socket import Endpoint, SocketOptions
from tests.unit.group_facts import NAMESPACES, NETNS, SLEEP, file, group, process, socket

SHELL = (Holder(pid=5, name="bash"),)


def with_file(kind: FileKind, path: str, **changes: object) -> GroupFacts:
    return group(process(files=(file(kind, path, **changes),)))


def with_socket(**changes: object) -> GroupFacts:
    return group(sockets=(socket(**changes),))


def device(special: str, kind: FileKind = FileKind.CHARACTER) -> GroupFacts:
    return with_file(kind, "/dev/x", special=special)


def udp(**changes: object) -> GroupFacts:
    return with_socket(**{"type": "dgram", "protocol": 17, "state": "close", "backlog": None, **changes})


def nested(name: str, **changes: object) -> GroupFacts:
    return group(process(), process(72, namespaces={**NAMESPACES, name: 99}), **changes)


def terminal(holders: tuple[Holder, ...]) -> OutsideEnd:
    return OutsideEnd(kind="tty", inode=4, path="/dev/pts/4", holders=holders)


def unix(**changes: Any) -> GroupFacts:
    end = OutsideEnd(kind="unix", inode=500, path="/run/log", peer=501, holders=SHELL)
    plain = socket(family="unix", type="stream", protocol=0, state="established", local=None, backlog=None, peer=501)
    return group(sockets=(dataclasses.replace(plain, **changes),), outside=(end,))


def unnamed(facts: GroupFacts) -> GroupFacts:
    """The same, with no name at the other end."""
    return dataclasses.replace(facts, outside=tuple(dataclasses.replace(end, path="") for end in facts.outside))


LEADER = (Thread(tid=71, name="a", state="Z"), Thread(tid=72, name="a", state="S"))
SHARED_SOCKET = OutsideEnd(kind="socket", inode=500, holders=SHELL)
INNER: dict[str, Any] = {"ns_pids": (71, 1), "ns_pgids": (71, 1)}

NESTED = (NestedNetns(inode=99, pid=72, congestion="cubic"),)

BLOCKS = [
    ("process-kernel-thread", group(process(kernel_thread=True))),
    ("process-self", group(self_and_ancestors=(900, 71, 1))),
    ("process-ended", group(process(state="Z"))),
    ("process-leader-ended", group(process(state="Z", threads=LEADER))),
    ("process-traced", group(process(tracer=5))),
    ("process-state", group(stuck=(Holder(pid=71, name="cp"),))),
    ("session-outside", group(process(**INNER, ns_sids=(60, 0)))),
    ("session-outside", group(process(sid=0, ns_sids=(0,), pgid=0, ns_pgids=(0,)))),
    ("session-outside", group(process(ns_pids=(71, 1), ns_sids=(71, 1), ns_pgids=(60, 0)))),
    ("namespace-nested", nested("ipc")),
    ("namespace-nested", nested("pid")),
    ("namespace-nested", nested("mnt")),
    ("namespace-nested", nested("net", isolation=Isolation.NONE)),
    ("user-namespace", group(userns_differs=True)),
    ("user-namespace", group(userns_differs=True, pidns_is_hosts=False)),
    ("thread-namespace", group(process(threads=(Thread(tid=72, name="a", state="S", own_namespaces=("net",)),)))),
    ("netns-shared", group(netns_sharers=SHELL)),
    ("netns-shared", nested("net", nested=(NestedNetns(inode=99, pid=72, sharers=SHELL),))),
    ("socket-shared", group(sockets=(socket(),), outside=(SHARED_SOCKET,))),
    ("unix-peer-outside", unix()),
    ("unix-peer-outside", unix(type="seqpacket")),
    ("unix-peer-outside", unnamed(unix(type="dgram"))),
    (
        "terminal-outside",
        group(process(files=(file(FileKind.TTY, "/dev/pts/4", special="136:4"),)), outside=(terminal(SHELL),)),
    ),
    (
        "terminal-outside",
        group(process(tty="136:4", files=(file(FileKind.TTY, "/dev/tty", special="5:0"),)), outside=(terminal(SHELL),)),
    ),
    ("sysv-shared", group(process(maps=(MappedFile(path="/SYSV00000000", device="0:1", inode=7),)))),
    ("io-uring", with_file(FileKind.ANON, "io_uring")),
    ("anon-inode", with_file(FileKind.ANON, "userfaultfd")),
    ("anon-inode", with_file(FileKind.ANON, "bpf-prog")),
    ("pidfd-outside", with_file(FileKind.ANON, "pidfd", info={"Pid": "5"})),
    ("device-open", device("10:229")),
    ("device-open", device("7:0", FileKind.BLOCK)),
    ("device-open", device("4:64", FileKind.TTY)),
    ("device-open", device("4:0", FileKind.TTY)),
    ("tun-not-persistent", with_file(FileKind.CHARACTER, "/dev/net/tun", special="10:200", info={"iff": "tun0"})),
    (
        "tun-open",
        with_file(FileKind.CHARACTER, "/dev/net/tun", special="10:200", info={"iff": "tun0", "persistent": "1"}),
    ),
    (
        "tun-open",
        group(process(files=(file(FileKind.CHARACTER, "/dev/net/tun", special="10:200"),)), isolation=Isolation.NONE),
    ),
    ("namespace-outside", with_file(FileKind.NAMESPACE, "net:[99]", inode=99)),
    ("file-internal", with_file(FileKind.REGULAR, "/queue", mount=MountPlace.INTERNAL)),
    ("file-deleted-large", with_file(FileKind.REGULAR, "/tmp/x", deleted=True, size=(1 << 30) + 1)),
    ("socket-name-open", with_file(FileKind.SOCKET, "/run/x", flags=0o10000000)),
    ("socket-mptcp", with_socket(protocol=262)),
    ("socket-mptcp", with_socket(protocol=262, state="close")),
    ("socket-sctp", with_socket(protocol=132)),
    ("socket-sctp", with_socket(protocol=132, type="seqpacket")),
    ("socket-protocol", with_socket(protocol=115, type="dgram")),
    ("socket-vsock", with_socket(family="vsock")),
    ("socket-family", with_socket(family="xdp")),
    ("socket-netns", with_socket(netns=NETNS + 1)),
    ("socket-upper-protocol", with_socket(options=SocketOptions(upper_protocol="tls"))),
    ("udp-corked", udp(options=SocketOptions(corked=True))),
    ("netlink-queue", with_socket(family="netlink", type="raw", protocol=0, receive_queue=900)),
]

WARNINGS = [
    ("session-shared", group(process(sid=60, ns_sids=(60,)))),
    ("netns-pinned", group(netns_pins=("/mnt/blue",))),
    ("netns-pinned", nested("net", nested=(NestedNetns(inode=99, pid=72, pins=("/mnt/blue",)),))),
    (
        "pipe-outside",
        group(
            process(files=(file(FileKind.PIPE, "pipe:[500]"),)),
            outside=(OutsideEnd(kind="pipe", inode=500, holders=SHELL),),
        ),
    ),
    ("unix-peer-outside", dataclasses.replace(unix(type="dgram"), isolation=Isolation.NONE)),
    ("unix-peer-outside", unix(type="dgram")),
    ("terminal-outside", group(process(tty="136:4"), outside=(terminal(SHELL),))),
    ("sysv-left", group(sysv_ipc=(SysvIpc(kind="msg", key=1, id=2),))),
    ("exe-deleted", group(process(exe=dataclasses.replace(SLEEP, deleted=True)))),
    ("anon-inode", with_file(FileKind.ANON, "bpf-map")),
    ("udp-queue", udp(receive_queue=768)),
    ("multicast", udp(groups=("239.1.2.3%eth0",))),
    ("socket-option", with_socket(options=SocketOptions(user_timeout=3000))),
    ("socket-option", with_socket(options=SocketOptions(transparent=True))),
    ("socket-option", group(sockets=(socket(options=SocketOptions(congestion="bbr")),), congestion="cubic")),
    ("socket-in-flight", with_socket(accept_queue=2)),
    ("socket-in-flight", group(accept_queue=1)),
    ("socket-in-flight", nested("net", nested=(NestedNetns(inode=99, pid=72, accept_queue=1),))),
    (
        "socket-option",
        nested("net", nested=NESTED, sockets=(socket(netns=99, options=SocketOptions(congestion="bbr")),)),
    ),
    ("socket-orphaned", group(orphans=(socket(owners=(), state="last_ack", remote=Endpoint(address="a", port=1)),))),
]

SILENT = [
    ("a plain process", group()),
    ("a name by ip netns", group(netns_pins=("/run/netns/blue",))),
    ("a nested network namespace", nested("net", nested=NESTED)),
    ("a socket of a nested one", nested("net", nested=NESTED, sockets=(socket(netns=99),))),
    ("its session inside", group(process(**INNER, ns_sids=(71, 1)))),
    ("a zombie child", group(process(), process(72, state="Z", exe=None, namespaces={}))),
    ("a stopped process", group(process(state="T"))),
    ("a filter of system calls", group(process(seccomp=2, no_new_privs=True))),
    ("the same namespaces", group(process(), process(72))),
    ("a container's namespaces", group(userns_differs=True, pidns_is_hosts=False, mntns_differs=True)),
    ("an unattached TUN", with_file(FileKind.CHARACTER, "/dev/net/tun", special="10:200")),
    ("its own unix peer", with_socket(family="unix", type="stream", protocol=0, local=None, peer=501)),
    ("its own terminal", with_file(FileKind.TTY, "/dev/pts/4", special="136:4")),
    (
        "a terminal whose master is closed",
        group(process(files=(file(FileKind.TTY, "/dev/pts/4", special="136:4"),)), outside=(terminal(()),)),
    ),
    ("its own pidfd", with_file(FileKind.ANON, "pidfd", info={"Pid": "71"})),
    ("a pidfd of an ended process", with_file(FileKind.ANON, "pidfd", info={"Pid": "-1"})),
    ("its own namespace opened", with_file(FileKind.NAMESPACE, f"net:[{NETNS}]", inode=NETNS)),
    ("a deleted file", with_file(FileKind.REGULAR, "/tmp/x", deleted=True, size=1 << 30)),
    (
        "a file of another mount namespace",
        with_file(FileKind.CHARACTER, "/dev/null", special="1:3", mount=MountPlace.OUTSIDE),
    ),
    ("a memfd", with_file(FileKind.MEMFD, "/memfd:x", mount=MountPlace.INTERNAL)),
    ("attached private shared memory", group(sysv_ipc=(SysvIpc(kind="shm", key=1, id=2),), ipcns_is_hosts=False)),
    ("a raw socket of SCTP", with_socket(type="raw", protocol=132, state="close")),
    ("a ping socket", udp(protocol=1)),
    ("a packet socket", with_socket(family="packet", type="raw", protocol=768, state="close")),
    ("a quiet netlink socket", with_socket(family="netlink", type="raw", protocol=0)),
    (
        "the default congestion control",
        group(sockets=(socket(options=SocketOptions(congestion="bbr")),), congestion="bbr"),
    ),
    *((f"an {name}", with_file(FileKind.ANON, name)) for name in ("eventfd", "eventpoll", "inotify", "fanotify")),
    *((f"device {special}", device(special)) for special in ("1:3", "1:5", "1:9", "1:11")),
    *((f"terminal {special}", device(special, FileKind.TTY)) for special in ("5:0", "5:1", "5:2", "4:1", "188:0")),
]


def found(facts: GroupFacts, severity: Severity) -> list[str]:
    return [finding.code for finding in check_dump(facts) if finding.severity is severity]


@pytest.mark.parametrize(("code", "facts"), BLOCKS, ids=[code for code, _ in BLOCKS])
def test_check_dump_blocks(code: str, facts: GroupFacts) -> None:
    assert set(found(facts, Severity.BLOCK)) == {code}


@pytest.mark.parametrize(("code", "facts"), WARNINGS, ids=[code for code, _ in WARNINGS])
def test_check_dump_warns(code: str, facts: GroupFacts) -> None:
    assert [finding.code for finding in check_dump(facts)] == [code]
    assert found(facts, Severity.WARN) == [code]


@pytest.mark.parametrize("facts", [facts for _, facts in SILENT], ids=[name for name, _ in SILENT])
def test_check_dump_takes(facts: GroupFacts) -> None:
    assert check_dump(facts) == ()


@pytest.mark.parametrize("facts", [facts for _, facts in (*BLOCKS, *WARNINGS)])
def test_check_dump_findings_name_a_subject_and_a_remedy(facts: GroupFacts) -> None:
    for finding in check_dump(facts):
        assert finding.subject
        assert finding.reason
        assert finding.remedy


def test_check_dump_names_the_processes_that_share_the_namespace() -> None:
    sharers = tuple(Holder(pid=pid, name="curl") for pid in range(1, 8))
    (finding,) = check_dump(group(netns_sharers=sharers))
    assert finding == Finding(
        severity=Severity.BLOCK,
        code="netns-shared",
        subject=f"network namespace {NETNS}",
        reason="is also that of PID 1 (curl), PID 2 (curl), PID 3 (curl), PID 4 (curl), PID 5 (curl) and 2 more, "
        "outside of the group, whose network would be frozen and taken away with it",
        remedy="end these processes, or name a root task that all of them are below",
    )


def test_check_dump_of_ckpt_itself_says_only_that() -> None:
    facts = group(process(files=(file(FileKind.ANON, "io_uring"),)), self_and_ancestors=(71,))
    assert [finding.code for finding in check_dump(facts)] == ["process-self"]
