"""Rules about the processes themselves: who they are, what state they are in, and their namespaces and sessions."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt.check.finding import block, of_holders, of_process, warn
from ckpt.model.finding import Finding
from ckpt.model.process import GroupFacts, Isolation, Process

NESTED_REFUSED = ("pid", "user", "ipc", "uts", "cgroup", "time")
"""CRIU takes these of the whole tree only: "Can't dump nested ipc namespace for N" (criu/namespaces.c)."""

SEPARATE = "start the program without a namespace of its own, or dump it as a group of its own"


def check_root(facts: GroupFacts) -> Iterator[Finding]:
    """Whether the root task is a process that could be dumped at all."""
    root = next(process for process in facts.processes if process.pid == facts.root)
    if root.kernel_thread:
        yield block(
            "process-kernel-thread",
            of_process(root),
            "is a thread of the kernel, not a program",
            "name the PID of a program",
        )
    elif facts.pids & set(facts.self_and_ancestors):
        yield block(
            "process-self",
            of_process(root),
            "ckpt itself runs below this process, so it would freeze itself",
            "run ckpt from a shell that the group did not start, or name a smaller group",
        )
    elif root.zombie and len(root.threads) < 2:
        yield block("process-ended", of_process(root), "has ended and waits for its parent", "nothing is left to dump")


def check_processes(facts: GroupFacts) -> Iterator[Finding]:
    """The rules that look at each process."""
    root = facts.processes[0]
    for process in facts.processes:
        yield from _state(process)
        yield from _session(process)
        yield from _namespaces(facts, root, process)
        yield from _threads(process)
        yield from _limits(facts, process)
    if facts.stuck:
        # "Timeout reached. Try to interrupt", then "Unseizable non-zombie N found, state D" (compel/src/lib/infect.c)
        yield block(
            "process-state",
            of_holders(facts.stuck),
            "sleeps uninterruptibly (state D): it waits for a device, a file server or a child made by vfork, and "
            "cannot be frozen until that is over",
            "wait, or end what it waits for; dmesg and the thread's wchan in /proc say more",
        )
    if root.ns_sids and root.ns_sids[-1] != root.ns_pid and root.ns_sids[-1] != 0:
        # "The root process N is not a session leader. Consider using --shell-job option" (criu/pstree.c)
        yield warn(
            "session-shared",
            of_process(root),
            f"is in the session of PID {root.sid}, outside of the group: it will be restored into another session",
            "start it with setsid, or by ckpt run",
        )


def _limits(facts: GroupFacts, process: Process) -> Iterator[Finding]:
    if "CAP_SYS_RESOURCE" in facts.missing_capabilities and any((*process.uids, *process.gids)):
        # "Can't get rlimit 0: Operation not permitted" (criu/cr-dump.c): prlimit(2) of another user's process
        yield block(
            "capability-missing",
            of_process(process),
            f"belongs to user {process.uids[0]}, whose limits can only be read with CAP_SYS_RESOURCE, which ckpt lacks",
            "give the container or service that ckpt runs in this capability",
        )


def _state(process: Process) -> Iterator[Finding]:
    if process.tracer:
        # "Unseizable non-zombie N found, state t" (compel/src/lib/infect.c), also when the tracer is in the group
        yield block(
            "process-traced",
            of_process(process),
            f"is traced by PID {process.tracer}, a debugger or strace, and a process can have only one tracer",
            "end the tracer, or detach it",
        )
    if process.zombie and len(process.threads) > 1:
        # "Unable to detach from N: No such process" (compel/src/lib/infect.c)
        yield block(
            "process-leader-ended",
            of_process(process),
            "its first thread has ended while others run on, which CRIU cannot dump",
            "let the program keep its main thread",
        )


def _session(process: Process) -> Iterator[Finding]:
    # 0 is what a process is told of a leader whom its PID namespace does not have.
    if 0 in (process.ns_sids[-1:] + process.ns_pgids[-1:]):
        # "A session leader of N(1) is outside of its pid namespace" (criu/cr-dump.c)
        yield block(
            "session-outside",
            of_process(process),
            "its session or process group has its leader outside of the PID namespace of the process",
            "let the first process of the namespace call setsid, as `unshare --pid --fork setsid CMD` and ckpt run do",
        )


def _namespaces(facts: GroupFacts, root: Process, process: Process) -> Iterator[Finding]:
    if process.zombie or not process.namespaces:
        return
    other = {name for name, inode in process.namespaces.items() if root.namespaces.get(name, inode) != inode}
    for name in (name for name in NESTED_REFUSED if name in other):
        yield block(
            "namespace-nested",
            of_process(process),
            f"{_nested(name)}, which CRIU only knows for the group as a whole",
            SEPARATE,
        )
    # A mount or network namespace below the root task is dumped, and then the restore ends with "Can't restore sub-task
    # in NS (cflags 40000000)" (criu/pstree.c) unless the root task has its own.
    if "mnt" in other:
        yield block("namespace-nested", of_process(process), _nested("mount"), SEPARATE)
    elif "net" in other and facts.isolation is Isolation.NONE:
        yield block(
            "namespace-nested",
            of_process(process),
            f"{_nested('network')}, and that is the host's",
            "start the group in a network namespace of its own (ckpt run, unshare --net): it may then have others too",
        )
    if process is root and facts.userns_differs and (facts.pidns_is_hosts or not facts.mntns_differs):
        # without a PID namespace the restore fails "Unable to open the proc file system: Operation not permitted",
        # without a mount namespace the dump "can't dump unprivileged task whose /proc doesn't belong to it"
        yield block(
            "user-namespace",
            of_process(process),
            "has a user namespace of its own without PID and mount namespaces of its own",
            "start it without a user namespace, or with all three",
        )


def _nested(kind: str) -> str:
    return f"has another {kind} namespace than the root task"


def _threads(process: Process) -> Iterator[Finding]:
    for thread in process.threads:
        if thread.own_namespaces:
            # dumps and restores, but the thread is then in the namespaces of its process
            yield block(
                "thread-namespace",
                f"{of_process(process)}, thread {thread.tid}",
                f"has left the {', '.join(thread.own_namespaces)} namespace of its process, which CRIU does not keep",
                "let the program do this in a process of its own",
            )
