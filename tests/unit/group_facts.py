"""Facts of small groups, made by hand, for tests of what is decided from them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ckpt.model.process import Executable, FileKind, GroupFacts, OpenFile, Process, Thread
from ckpt.model.socket import Endpoint, Owner, Socket

NETNS = 4026532500
NAMESPACES = {"net": NETNS, "mnt": 1, "pid": 2, "ipc": 3, "uts": 4, "user": 5, "cgroup": 6, "time": 7}
SLEEP = Executable(path="/bin/sleep", device="254:0", inode=9, size=40000, mode=0o100755)


def process(pid: int = 71, **changes: Any) -> Process:
    """A session leader that sleeps."""
    plain = Process(
        pid=pid,
        ns_pids=(pid,),
        ppid=1,
        pgid=pid,
        sid=pid,
        ns_pgids=(pid,),
        ns_sids=(pid,),
        name="sleep",
        cmdline=("sleep", "1000"),
        exe=SLEEP,
        state="S",
        start_time=1000,
        threads=(Thread(tid=pid, name="sleep", state="S", ns_ids=(pid,)),),
        namespaces=NAMESPACES,
    )
    return dataclasses.replace(plain, **changes)


def file(kind: FileKind = FileKind.REGULAR, path: str = "/tmp/x", **changes: Any) -> OpenFile:
    """Descriptor 3, on an ordinary file unless told otherwise."""
    plain = OpenFile(
        fd=3, kind=kind, path=path, flags=2, position=0, mount_id=24, mode=0o100644, inode=500, device="254:0"
    )
    return dataclasses.replace(plain, **changes)


def socket(**changes: Any) -> Socket:
    """A TCP listener on port 80, descriptor 3 of process 71."""
    plain = Socket(
        inode=500,
        netns=NETNS,
        family="inet",
        type="stream",
        protocol=6,
        state="listen",
        local=Endpoint(address="10.0.0.2", port=80),
        backlog=128,
        accept_queue=0,
        owners=(Owner(pid=71, fd=3, ns_pid=71),),
    )
    return dataclasses.replace(plain, **changes)


def group(*processes: Process, **changes: Any) -> GroupFacts:
    """A group in a network namespace of its own, of one plain process unless told otherwise."""
    members = processes or (process(),)
    plain = GroupFacts(root=members[0].pid, processes=members, self_and_ancestors=(900, 1), netns=NETNS)
    return dataclasses.replace(plain, **changes)
