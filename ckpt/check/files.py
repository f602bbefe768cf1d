"""Rules about open files: what CRIU has no way to open again."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt.check.finding import block, of_file, of_process, warn
from ckpt.model.finding import Finding
from ckpt.model.process import FileKind, GroupFacts, Isolation, MountPlace, OpenFile, Process

O_PATH = 0o10000000
GHOST_LIMIT = 1 << 30
"""A deleted file that is still open travels inside CRIU's images if it is not larger: what a dump asks CRIU for."""

ANON_TAKEN = frozenset({"eventfd", "eventpoll", "signalfd", "inotify", "fanotify", "timerfd", "pidfd"})
"""The anonymous inodes that CRIU dumps and restores; for all others it says "Can't dump file 3 of that type [600]
(anon anon_inode:[userfaultfd])" (criu/files-ext.c). Tried: userfaultfd, perf_event, landlock-ruleset, bpf-prog."""
ANON_BY_BUILD = frozenset({"bpf-map"})
"""Taken only by a CRIU that was built with libbpf, which Debian's is not."""

TUN = "10:200"
AUTOFS = "10:235"
MEMORY_MAJOR = 1
"""null, zero, full, random, urandom, kmsg: CRIU opens any device of this major by its name again."""
TTY_TAKEN_MAJORS = frozenset({*range(128, 144), 188, 204})
CONSOLE_MINORS = range(1, 64)
"""Virtual consoles (4:1 to 4:63): 4:0 (/dev/tty0) and 4:64 (/dev/ttyS0) are refused, tried."""


def check_files(facts: GroupFacts) -> Iterator[Finding]:
    """The rules that look at each descriptor and each program."""
    known = {inode for process in facts.processes for inode in process.namespaces.values()}
    inner_pids = {process.pid for process in facts.processes}
    for process in facts.processes:
        yield from _executable(process)
        for file in process.files:
            match file.kind:
                case FileKind.ANON:
                    yield from _anonymous(process, file, inner_pids)
                case FileKind.CHARACTER | FileKind.TTY | FileKind.BLOCK:
                    yield from _device(facts, process, file)
                case FileKind.NAMESPACE:
                    yield from _namespace(process, file, known)
                case FileKind.REGULAR | FileKind.DIRECTORY | FileKind.FIFO:
                    yield from _on_disk(process, file)
                case FileKind.SOCKET if file.flags & O_PATH:
                    # "Can't get 1:39 opt: Bad file descriptor" (criu/sockets.c)
                    yield block(
                        "socket-name-open",
                        of_file(process, file),
                        f"is the name of a unix socket, opened with O_PATH ({file.path}): CRIU takes it for the socket",
                        "let the program close it",
                    )


def _executable(process: Process) -> Iterator[Finding]:
    if process.exe is not None and process.exe.deleted:
        # dumped as a ghost file and restored: both when the name is gone and when another file has it now
        yield warn(
            "exe-deleted",
            of_process(process),
            f"its program {process.exe.path} was deleted or replaced since it started; the image carries the old one",
            "start the new program before the dump, if that is the one to run on",
        )


def _anonymous(process: Process, file: OpenFile, pids: set[int]) -> Iterator[Finding]:
    if file.path == "io_uring":
        # "send_fds failed (-22)" (criu/pie/parasite.c), as the kernel passes no io_uring over a socket
        yield block(
            "io-uring",
            of_file(process, file),
            "is an io_uring, which CRIU cannot dump",
            "switch io_uring off in the program (libuv: UV_USE_IO_URING=0; PostgreSQL 18: io_method=worker), or for "
            "all programs by sysctl kernel.io_uring_disabled=2 before it starts",
        )
    elif file.path == "pidfd":
        target = int(file.info.get("Pid", "-1"))
        if target >= 0 and target not in pids:
            # "pidfd pid 1 is not a part of process tree" (criu/pidfd.c); one of an ended process (-1) is taken
            yield block(
                "pidfd-outside",
                of_file(process, file),
                f"refers to PID {target}, outside of the group",
                "let the program close it, or dump both processes as one group",
            )
    elif file.path in ANON_BY_BUILD:
        yield warn(
            "anon-inode",
            of_file(process, file),
            f"is a {file.path}, which only a CRIU built with libbpf can dump",
            "let the program close it, or use such a CRIU",
        )
    elif file.path not in ANON_TAKEN:
        yield block(
            "anon-inode",
            of_file(process, file),
            f"is a {file.path}, a kind of file that CRIU cannot dump",
            "let the program close it, or switch off what uses it",
        )


def _device(facts: GroupFacts, process: Process, file: OpenFile) -> Iterator[Finding]:
    if file.special == TUN:
        yield from _tun(facts, process, file)
    elif not _device_taken(file):
        # "Can't dump file 3 of that type [20600] (chr 10:229)" (criu/files-ext.c)
        yield block(
            "device-open",
            of_file(process, file),
            f"is the device {file.path} ({file.special}), whose state is in its driver and cannot be dumped",
            "let the program close it before the dump",
        )


def _device_taken(file: OpenFile) -> bool:
    if file.kind is FileKind.BLOCK or file.special is None:
        # "Can't dump file 3 of that type [60600] (unknown /dev/loop0)"
        return False
    major, minor = (int(part) for part in file.special.split(":"))
    if file.kind is FileKind.CHARACTER:
        return major == MEMORY_MAJOR or file.special == AUTOFS
    return major in TTY_TAKEN_MAJORS or (major == 4 and minor in CONSOLE_MINORS) or (major == 5 and minor <= 2)


def _tun(facts: GroupFacts, process: Process, file: OpenFile) -> Iterator[Finding]:
    link = file.info.get("iff", "").strip()
    if facts.isolation is Isolation.NONE:
        # "Net namespace is required to dump tun link" (criu/tun.c), attached or not
        yield block(
            "tun-open",
            of_file(process, file),
            f"is {file.path} in the host's network namespace",
            "start the program in a network namespace of its own: by ckpt run, or unshare --net",
        )
    elif link and file.info.get("persistent") != "1":
        # dumps; the restore ends with "No tun device for file tun0" (criu/tun.c)
        yield block(
            "tun-not-persistent",
            of_file(process, file),
            f"serves the TUN link {link}, which ends with this descriptor and so cannot be made before it",
            f"make the link persistent (ip tuntap add dev {link} mode tun, or tap) and let the program attach to it",
        )
    elif link:
        # the same end: with the namespace external, CRIU's images have no links to attach to
        yield block(
            "tun-open",
            of_file(process, file),
            f"serves the TUN link {link}, which CRIU cannot attach to again when the namespace is ckpt's to restore",
            "let the program close it before the dump",
        )


def _namespace(process: Process, file: OpenFile, known: set[int]) -> Iterator[Finding]:
    if file.inode not in known:
        # "No NS ID with kid 4026532177" (criu/namespaces.c)
        yield block(
            "namespace-outside",
            of_file(process, file),
            f"is the namespace {file.path}, in which no process of the group is",
            "let the program close it",
        )


def _on_disk(process: Process, file: OpenFile) -> Iterator[Finding]:
    if file.mount is MountPlace.INTERNAL:
        # "Can't lookup mount=21 for fd=3 path=/queue (deleted)" (criu/files-reg.c): POSIX queues, memfd_secret
        yield block(
            "file-internal",
            of_file(process, file),
            f"{file.path} is in no mounted file system: a POSIX message queue, secret memory or the like",
            "let the program close it before the dump",
        )
    elif file.deleted and file.kind is FileKind.REGULAR and file.size > GHOST_LIMIT:
        # "Can't dump ghost file /tmp/x of 2097152 size, increase limit" (criu/files-reg.c)
        yield block(
            "file-deleted-large",
            of_file(process, file),
            f"{file.path} is deleted and of {file.size} bytes, more than an image can carry for one deleted file",
            "let the program close it, or link it again (ln -L /proc/PID/fd/N PATH)",
        )
