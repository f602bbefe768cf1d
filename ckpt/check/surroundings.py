"""Rules about what the group shares with processes outside of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckpt.check.finding import block, of_file, of_holders, of_process, warn
from ckpt.model.finding import Finding
from ckpt.model.process import FileKind, GroupFacts, Holder, Isolation, OpenFile, OutsideEnd, Process
from ckpt.model.socket import Socket

DEV_TTY = "5:0"

NETNS_NAMES = "/run/netns/"
"""The names that `ip netns` gives; a dump takes them along, and the restore gives them back."""


def check_surroundings(facts: GroupFacts) -> Iterator[Finding]:
    """The rules that look at both sides."""
    yield from _netns(facts.netns, facts.netns_sharers, facts.netns_pins)
    for one in facts.nested:
        yield from _netns(one.inode, one.sharers, one.pins)
    for end in facts.outside:
        yield from _outside(facts, end)
    if facts.ipcns_is_hosts:
        yield from _sysv(facts)


def _netns(inode: int, sharers: Sequence[Holder], pins: Sequence[str]) -> Iterator[Finding]:
    if sharers:
        yield block(
            "netns-shared",
            f"network namespace {inode}",
            f"is also that of {of_holders(sharers)}, outside of the group, whose network would be frozen "
            "and taken away with it",
            "end these processes, or name a root task that all of them are below",
        )
    kept = [pin for pin in pins if not pin.startswith(NETNS_NAMES)]
    if kept:
        yield warn(
            "netns-pinned",
            f"network namespace {inode}",
            f"is kept by {', '.join(kept)}: after the dump it stays, without its links",
            "umount or close what keeps it",
        )


def _outside(facts: GroupFacts, end: OutsideEnd) -> Iterator[Finding]:
    holders = of_holders(end.holders)
    match end.kind:
        case "pipe":
            # dumped and restored; what the kernel then has at the other end is nobody
            for process, file in _files(facts, end):
                yield warn(
                    "pipe-outside",
                    of_file(process, file),
                    f"is a pipe to {holders}: restored, it has no other end (a reader sees its end, a writer SIGPIPE)",
                    "let the program read and write files, as ckpt run does with its log",
                )
        case "socket":
            yield from _shared_socket(facts, end, holders)
        case "unix":
            yield from _unix(facts, end, holders)
        case "tty":
            yield from _terminal(facts, end, holders)


def _files(facts: GroupFacts, end: OutsideEnd) -> Iterator[tuple[Process, OpenFile]]:
    for process in facts.processes:
        for file in process.files:
            if file.inode == end.inode and file.kind.value == end.kind:
                yield process, file
                break


def _socket(facts: GroupFacts, inode: int) -> Socket | None:
    return next((one for one in facts.sockets if one.inode == inode), None)


def _shared_socket(facts: GroupFacts, end: OutsideEnd, holders: str) -> Iterator[Finding]:
    one = _socket(facts, end.inode)
    if one is None or not one.is_inet or not one.owners:
        return
    # dumped; but the other holder keeps the socket, its address and port, and a restore fails "Can't bind inet socket"
    yield block(
        "socket-shared",
        f"PID {one.owners[0].pid}, fd {one.owners[0].fd}",
        f"the socket on {one.local} is also held by {holders}, outside of the group, and stays there after the dump",
        "let the program open its own socket (without socket activation), or end the other holder",
    )


def _unix(facts: GroupFacts, end: OutsideEnd, holders: str) -> Iterator[Finding]:
    one = _socket(facts, end.inode)
    if one is None or not one.owners:
        return
    subject = f"PID {one.owners[0].pid}, fd {one.owners[0].fd}"
    by_name = end.path.startswith("/") or (end.path and facts.isolation is Isolation.NONE)
    if one.type == "dgram" and by_name:
        # with ext_unix_sk CRIU connects it to the name again (criu/sk-unix.c); from a namespace of its own it does not
        # see the other end: "Unix socket 1305564 without peer 1305549"; there ckpt does it (kernel.datagrams)
        yield warn(
            "unix-peer-outside",
            subject,
            f"sends to {end.path} of {holders}: it is connected again to what has that name when it is restored",
            "make sure that the target has it",
        )
        return
    # "External socket is used. Consider using --ext-unix-sk option."; with that option and a stream:
    # "Can't dump half of stream unix connection. name: (null); peer name: /run/x" (criu/sk-unix.c)
    yield block(
        "unix-peer-outside",
        subject,
        f"is a unix connection to {end.path or 'a socket without name'} of {holders}, outside of the group",
        "close that connection before the dump, or dump both processes as one group",
    )


def _terminal(facts: GroupFacts, end: OutsideEnd, holders: str) -> Iterator[Finding]:
    number = f"{136 + end.inode // 256}:{end.inode % 256}"
    for process in facts.processes:
        controlled = process.tty == number
        wanted = {number, DEV_TTY} if controlled else {number}
        held = [file for file in process.files if file.kind is FileKind.TTY and file.special in wanted]
        if held and end.holders:
            # "Found slave peer index 0 without correspond master peer", for /dev/tty "ctty inheritance detected
            # sid/pgrp N, no PTY peer with sid/pgrp needed" (criu/tty.c). A slave whose master is closed is taken.
            yield block(
                "terminal-outside",
                of_file(process, held[0]),
                f"is the terminal {end.path}, which {holders} serves outside of the group",
                "start the program with its input and output redirected, or by ckpt run",
            )
        elif controlled and end.holders:
            # dumped and restored, without a controlling terminal
            yield warn(
                "terminal-outside",
                of_process(process),
                f"its controlling terminal is {end.path} of {holders}: restored, it has none",
                "start the program by setsid or ckpt run",
            )


def _sysv(facts: GroupFacts) -> Iterator[Finding]:
    for process in facts.processes:
        if any(mapped.path.startswith("/SYSV") for mapped in process.maps):
            # "Task N with SysVIPC shmem map @7f76b15ac000 doesn't live in IPC ns" (criu/cr-dump.c)
            yield block(
                "sysv-shared",
                of_process(process),
                "has System V shared memory of the host's IPC namespace, which any process may use",
                "start the program in an IPC namespace of its own: by ckpt run, or unshare --ipc",
            )
    for one in facts.sysv_ipc:
        if not (one.kind == "shm" and one.attached):
            # not looked at by CRIU: without an IPC namespace of the group it belongs to the host
            yield warn(
                "sysv-left",
                f"System V {one.kind} {one.id}",
                "belongs to the host's IPC namespace and does not travel",
                "start the program in an IPC namespace of its own: by ckpt run, or unshare --ipc",
            )
