"""What lies around a group: everything outside of it that has a hand in what it holds.

One pass over ``/proc`` finds the processes that share the group's network namespace, and those that hold the other end
of its pipes, unix sockets and terminals; CRIU can take none of that along. The pass reads links only. What cannot be
read (a process that ends, another user's without the right) counts as not there: a check then says less, never
something wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ckpt.errors import NotFoundError
from ckpt.kernel import diag, probe, repeating, sockdiag, syscalls
from ckpt.kernel import netns as namespaces
from ckpt.kernel.files import read_link
from ckpt.kernel.procfs import read_namespaces, read_stat, read_text
from ckpt.model.process import (
    FileKind,
    GroupFacts,
    Holder,
    Isolation,
    NestedNetns,
    OpenFile,
    OutsideEnd,
    Process,
    SysvIpc,
)
from ckpt.model.socket import Socket

PTMX = "5:2"
STUCK_LOOKS = 4
STUCK_SECONDS = 0.4
"""A thread that is seen in uninterruptible sleep this long waits for more than one disk access."""
PTS_MAJORS = range(136, 144)
"""Slaves of pseudo-terminals: 136 to 143, 256 each (Documentation/admin-guide/devices.txt)."""


def read(processes: Sequence[Process], sockets: Sequence[Socket]) -> GroupFacts:
    """The facts of a group whose processes and sockets are given."""
    root = processes[0]
    own = read_namespaces(os.getpid())
    pids = frozenset(process.pid for process in processes)
    isolated = root.namespaces.get("net") not in (own.get("net"), None)
    hosts_ipc = root.namespaces.get("ipc") == own.get("ipc")
    foreign = _Foreign(pids)
    netns = root.namespaces.get("net", 0)
    facts = GroupFacts(
        root=root.pid,
        processes=tuple(processes),
        sockets=tuple(sockets),
        self_and_ancestors=tuple(ancestors(os.getpid())),
        isolation=Isolation.NETNS if isolated else Isolation.NONE,
        netns=netns,
        netns_sharers=foreign.sharers(netns) if isolated else (),
        netns_pins=(*_pins(netns), *foreign.openers(f"net:[{netns}]")) if isolated else (),
        pidns_is_hosts=root.namespaces.get("pid") == own.get("pid"),
        root_is_init=len(root.ns_pids) > 1 and root.is_init,
        missing_capabilities=probe.missing_capabilities(),
        mntns_differs=any(process.namespaces.get("mnt") not in (own.get("mnt"), None) for process in processes),
        userns_differs=any(process.namespaces.get("user") not in (own.get("user"), None) for process in processes),
        outside=tuple(_outside(processes, sockets, foreign, _spaces(processes) if isolated else {netns: root.pid})),
        ipcns_is_hosts=hosts_ipc,
        sysv_ipc=_sysv(root.pid, pids if hosts_ipc else None),
        stuck=tuple(_stuck(processes)),
        nested=tuple(_nested(processes, foreign)) if isolated else (),
    )
    return _with_network(facts) if netns else facts


def _spaces(processes: Sequence[Process]) -> dict[int, int]:
    """The network namespaces that the group's tasks are in, each with the first of them; the root's comes first."""
    found: dict[int, int] = {}
    for process in processes:
        if (inode := process.namespaces.get("net")) is not None:
            found.setdefault(inode, process.pid)
    return found


def _nested(processes: Sequence[Process], foreign: _Foreign) -> Iterator[NestedNetns]:
    for inode, pid in list(_spaces(processes).items())[1:]:
        try:
            congestion, queue, orphans = _read_space(pid, own=True)
        except NotFoundError:
            continue  # its task has just ended
        yield NestedNetns(
            inode=inode,
            pid=pid,
            sharers=foreign.sharers(inode),
            pins=(*_pins(inode), *foreign.openers(f"net:[{inode}]")),
            accept_queue=queue,
            orphans=orphans,
            congestion=congestion,
        )


def _with_network(facts: GroupFacts) -> GroupFacts:
    congestion, queue, orphans = _read_space(facts.root, own=facts.isolation is Isolation.NETNS)
    return dataclasses.replace(facts, accept_queue=queue, orphans=orphans, congestion=congestion)


def _read_space(pid: int, *, own: bool) -> tuple[str | None, int, tuple[Socket, ...]]:
    """Of the namespace of ``pid``: its congestion control, and if it is the group's ``own``, what nobody holds."""
    netns = namespaces.open_of(pid)
    try:
        with namespaces.entered(netns):
            # /proc/sys/net shows the namespace of the thread that opens it
            congestion = read_text("/proc/sys/net/ipv4/tcp_congestion_control").strip() or None
        queue, orphans = (sockdiag.accept_queue(netns), sockdiag.read_orphans(netns)) if own else (0, ())
        return congestion, queue, orphans
    finally:
        os.close(netns)


def _stuck(processes: Sequence[Process]) -> Iterator[Holder]:
    """The threads that sleep uninterruptibly for longer than a disk takes."""
    seen = [(process.pid, thread.tid) for process in processes for thread in process.threads if thread.state == "D"]
    for _ in range(STUCK_LOOKS):
        if not seen:
            break
        time.sleep(STUCK_SECONDS / STUCK_LOOKS)
        seen = [(pid, tid) for pid, tid in seen if (line := read_stat(pid, tid)) is not None and line.state == "D"]
    for pid, tid in seen:
        line = read_stat(pid, tid)
        if line is not None:
            yield Holder(pid=tid, name=line.name)


def ancestors(pid: int) -> Iterator[int]:
    """``pid``, its parent, and so on up to the first process."""
    while pid:
        yield pid
        line = read_stat(pid)
        pid = line.ppid if line else 0


def _pins(netns: int) -> Iterator[str]:
    """The mounts that keep a network namespace, as ``ip netns add`` makes them."""
    for line in read_text("/proc/self/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        words = head.split()
        if tail.startswith("nsfs ") and words[3] == f"net:[{netns}]":
            yield words[4]


class _Foreign:
    """What the processes outside the group hold: the name of each link in their ``fd``, with its holders."""

    def __init__(self, group: frozenset[int]) -> None:
        self._own = os.getpid()
        self._names: dict[int, str] = {}
        self._links: dict[str, list[tuple[int, str]]] = {}
        for pid in self._others(group):
            self._scan(pid)

    def holders(self, link: str) -> tuple[Holder, ...]:
        """The processes that hold what ``link`` (``pipe:[71]``) names."""
        pids = dict.fromkeys(pid for pid, _ in self._links.get(link, ()))
        return tuple(Holder(pid=pid, name=self._names[pid]) for pid in pids)

    def masters(self, index: int) -> tuple[Holder, ...]:
        """The processes that hold the master side of pseudo-terminal ``index``."""
        found: dict[int, Holder] = {}
        for link in self._links:
            if link.endswith("/ptmx"):
                for pid, fd in self._links[link]:
                    if f"tty-index:\t{index}\n" in read_text(f"/proc/{pid}/fdinfo/{fd}"):
                        found[pid] = Holder(pid=pid, name=self._names[pid])
        return tuple(found.values())

    def openers(self, link: str) -> tuple[str, ...]:
        """The descriptors that hold what ``link`` names, ckpt's own left out."""
        return tuple(f"/proc/{pid}/fd/{fd}" for pid, fd in self._links.get(link, ()) if pid != self._own)

    def sharers(self, netns: int) -> tuple[Holder, ...]:
        """The processes in the network namespace ``netns``."""
        return tuple(Holder(pid=pid, name=name) for pid, name in self._names.items() if _netns(pid) == netns)

    @staticmethod
    def _others(group: frozenset[int]) -> Iterable[int]:
        return (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in group)

    def _scan(self, pid: int) -> None:
        line = read_stat(pid)
        if line is None or line.name == repeating.NAME:
            return
        self._names[pid] = line.name
        try:
            fds = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            return
        for fd in fds:
            try:
                self._links.setdefault(read_link(f"/proc/{pid}/fd/{fd}"), []).append((pid, fd))
            except OSError:
                continue


def _netns(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def _outside(
    processes: Sequence[Process], sockets: Sequence[Socket], foreign: _Foreign, spaces: Mapping[int, int]
) -> Iterator[OutsideEnd]:
    files = [file for process in processes for file in process.files]
    yield from _outside_pipes(files, foreign)
    yield from _outside_sockets(spaces, sockets, foreign)
    yield from _outside_terminals(processes, files, foreign)


def _outside_pipes(files: Sequence[OpenFile], foreign: _Foreign) -> Iterator[OutsideEnd]:
    pipes = {file.inode: file for file in files if file.kind in (FileKind.PIPE, FileKind.FIFO)}
    for inode, file in pipes.items():
        holders = foreign.holders(file.path)
        if holders:
            yield OutsideEnd(kind=file.kind.value, inode=inode, path=file.path, holders=holders)


def _outside_sockets(spaces: Mapping[int, int], sockets: Sequence[Socket], foreign: _Foreign) -> Iterator[OutsideEnd]:
    own = {one.inode for one in sockets}
    for one in sockets:
        sharers = foreign.holders(f"socket:[{one.inode}]")
        if sharers:
            yield OutsideEnd(kind="socket", inode=one.inode, path=one.path or "", holders=sharers)
    # what waits in a listener has no other end yet (peer 0): it is listed by the listener, which then counts as that
    connected = [one for one in sockets if one.family == "unix" and one.state == "established" and one.peer not in own]
    names, listeners = _unix_peers(spaces) if connected else ({}, {})
    for one in connected:
        peer = one.peer or listeners.get(one.inode, 0)
        holders = foreign.holders(f"socket:[{peer}]") if peer not in own else ()
        # without a holder it is on its way in a message (SCM_RIGHTS), which CRIU follows
        if holders:
            yield OutsideEnd(kind="unix", inode=one.inode, path=names.get(peer) or "", peer=peer, holders=holders)


def _unix_peers(spaces: Mapping[int, int]) -> tuple[dict[int, str | None], dict[int, int]]:
    """Names of unix sockets, and listener by waiting client, in ckpt's own namespace and in the group's ``spaces``."""
    names: dict[int, str | None] = {}
    listeners: dict[int, int] = {}
    with contextlib.ExitStack() as stack:
        for pid in (0, *spaces.values()):
            try:
                fd = namespaces.open_of(pid) if pid else namespaces.open_own()
            except NotFoundError:
                continue  # its task has just ended
            stack.callback(os.close, fd)
            for entry in diag.unix_sockets(fd):
                names[entry.inode] = entry.name
                listeners.update(dict.fromkeys(entry.pending, entry.inode))
    return names, listeners


def _outside_terminals(
    processes: Sequence[Process], files: Sequence[OpenFile], foreign: _Foreign
) -> Iterator[OutsideEnd]:
    masters = {int(file.info["tty-index"]) for file in files if file.special == PTMX and "tty-index" in file.info}
    wanted = {pts_index(file.special): file.path for file in files if file.kind is FileKind.TTY}
    wanted = {pts_index(process.tty): "" for process in processes} | wanted
    for index, path in wanted.items():
        if index is not None and index not in masters:
            yield OutsideEnd(kind="tty", inode=index, path=path or f"/dev/pts/{index}", holders=foreign.masters(index))


def pts_index(device: str | None) -> int | None:
    """The number of the pseudo-terminal whose slave has the device number ``major:minor``, or None for another."""
    major, _, minor = (device or "0:0").partition(":")
    return (int(major) - PTS_MAJORS.start) * 256 + int(minor) if int(major) in PTS_MAJORS else None


def _sysv(root: int, creators: frozenset[int] | None) -> tuple[SysvIpc, ...]:
    """The System V objects of the root task's IPC namespace; with ``creators``, only those that these PIDs made."""
    found: list[SysvIpc] = []
    _inside_ipc(root, lambda: found.extend(_sysv_lists()))
    return tuple(one for one in found if creators is None or one.creator in creators)


def _sysv_lists() -> Iterator[SysvIpc]:
    # the columns differ (ipc/shm.c, ipc/msg.c, ipc/sem.c): shm counts bytes and attachments, sem its semaphores
    for kind, size, creator, attached in (("shm", 3, 4, 6), ("msg", 3, 5, None), ("sem", 3, None, None)):
        for line in read_text(f"/proc/sysvipc/{kind}").splitlines()[1:]:
            words = [int(word) for word in line.split()]
            yield SysvIpc(
                kind=kind,
                key=words[0],
                id=words[1],
                size=words[size],
                creator=words[creator] if creator is not None else 0,
                attached=words[attached] if attached is not None else 0,
            )


def _inside_ipc(pid: int, work: Callable[[], None]) -> None:
    """Do ``work`` in the IPC namespace of ``pid``, in a thread that ends with it; nothing when that is impossible."""

    def enter() -> None:
        try:
            fd = os.open(f"/proc/{pid}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(fd, syscalls.CLONE_NEWIPC)
            finally:
                os.close(fd)
        except OSError:
            return
        work()

    thread = threading.Thread(target=enter, name="ckpt-read-sysvipc")
    thread.start()
    thread.join()
