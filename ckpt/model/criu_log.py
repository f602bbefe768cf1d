"""The one line of a CRIU log that says why it failed, and what it means.

CRIU logs an error at every level that it returns through, and some that it survives, so neither the first nor the last
is the cause. What is known to be no cause is left out; of the rest, the first line that is known by its text decides,
and if none is known, the first of all. The texts are CRIU 4.2.1's own, seen by provoking each failure unless marked
as read; they are matched by the part that has not changed for years. Pure: a text in, a verdict out.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LogVerdict:
    """Why CRIU failed. ``line`` is CRIU's own, without its time; ``remedy`` is empty where none is known."""

    code: str
    brief: str
    line: str
    remedy: str = ""


class _Rule(NamedTuple):
    """A text CRIU logs, as a pattern; its groups fill the brief."""

    pattern: str
    code: str
    brief: str
    remedy: str


_ERROR = re.compile(r"^(?:\(\d+\.\d+\) *)?(?:pie: *\d+: *)?(?:\d+: *)?Error \((?P<text>.*)$")

_SURVIVED = re.compile(
    r"Can't setup RLIMIT_NOFILE"  # without CAP_SYS_RESOURCE
    r"|execvp\(\"ip6?tables|ip6?tables\S* -V failed"  # it then uses nft, or needs none
)
"""Errors with which CRIU goes on."""

_ON_THE_WAY_OUT = re.compile(
    r"Dumping FAILED|Restoring FAILED|Restorer fail \d+|finished with error"
    r"|\(pid: \d+\) failed with -1|Unable to open fd=\d+ id="
    r"|exited, status=|killed by signal 9"
    r"|Unable to detach from|Can't retrieve FDs? from socket|Message reply from daemon is trimmed"
)
"""What CRIU logs after the cause, level by level. Without a cause, the first of these is all there is to show."""


def _rule(pattern: str, code: str, brief: str, remedy: str = "") -> _Rule:
    return _Rule(pattern, code, brief, remedy)  # not compiled: few commands ever look into a log


_OWN_SOCKETS = "let the program close it before the dump"
_SAME_FILES = "install the same version on both sides, or bring the file along"

_RULES = (
    # -- dump
    _rule(
        r"Unsupported proto 262 for socket",
        "socket-mptcp",
        "a socket is multipath TCP, which CRIU cannot dump",
        "start Go programs with GODEBUG=multipathtcp=0, others without the option",
    ),
    _rule(r"Unsupported proto (\d+) for socket", "socket-protocol", "a socket has protocol {0}", _OWN_SOCKETS),
    _rule(r"Unknown socket collected \(family (\d+)\)", "socket-family", "a socket has family {0}", _OWN_SOCKETS),
    _rule(r"send_fds failed \(-22\)", "io-uring", "a process has an io_uring", "switch io_uring off in the program"),
    _rule(
        r"Can't dump file (\d+) of that type \[\w+\] \((.*)\)$",
        "file-unsupported",
        "fd {0} is of a kind that CRIU cannot dump ({1})",
        _OWN_SOCKETS,
    ),
    _rule(r"pidfd pid (\d+) is not a part", "pidfd-outside", "a pidfd refers to PID {0}, outside of the group"),
    _rule(
        r"In-flight connection",
        "socket-in-flight",
        "a connection waits in the accept queue of a listener",
        "try again when the program has accepted it",
    ),
    _rule(r"Connected TCP socket, consider", "tcp-established", "a TCP connection is open, and was not to be kept"),
    _rule(
        r"Can't dump half of stream unix connection.*peer name: (.*)$",
        "unix-peer-outside",
        "a unix connection to {0} has its other end outside of the group",
        "close it before the dump, or dump both processes as one group",
    ),
    _rule(
        r"Unix socket \d+ without peer", "unix-peer-outside", "a unix socket is connected to one outside of the group"
    ),
    _rule(r"External socket is used", "unix-peer-outside", "a unix socket has its other end outside of the group"),
    _rule(r"Unix socket \d+ not found", "socket-netns", "a unix socket was made in another network namespace"),
    _rule(r"Can't dump corked dgram", "udp-corked", "a UDP socket is corked", "try again"),
    _rule(r"The socket has data to read", "netlink-queue", "a netlink socket has unread messages", "try again"),
    _rule(
        r"Unsupported link \d+ \(type \d+ kind (.*)\)",
        "link-unsupported",
        "CRIU cannot dump a link of kind {0}",
        "this namespace is not the root task's; remove the link, or dump its processes as a group of their own",
    ),
    _rule(
        r"Can't lookup mount=\d+ for fd=(\d+) path=(.*)$",
        "mount-outside",
        "fd {0} ({1}) was opened in another mount namespace, or is in no mounted file system",
        "open it inside the namespace: redirect input and output in there",
    ),
    _rule(
        r"(\S+) has unreachable sharing",  # read
        "mount-sharing",
        "mount {0} gets its mounts from another namespace",
        "start the program in the host's mount namespace (nsenter --net instead of ip netns exec), or by ckpt run",
    ),
    _rule(r"Can't dump nested (\w+) namespace for (\d+)", "namespace-nested", "PID {1} has its own {0} namespace"),
    _rule(r"No NS ID with kid (\d+)", "namespace-outside", "namespace {0} is open, and is not of the group"),
    _rule(
        r"The root process (\d+) is not a session leader",
        "session-shared",
        "PID {0} is in a session that began outside of the group",
        "start it with setsid, or by ckpt run",
    ),
    _rule(
        r"A session leader of (\d+)\(\d+\) is outside of its pid namespace",
        "session-outside",
        "the session of PID {0} began outside of its PID namespace",
        "let the first process of the namespace call setsid",
    ),
    _rule(
        r"Found slave peer index (\d+) without|Found dangling tty|ctty inheritance detected",
        "terminal-outside",
        "a terminal of the group is served by a process outside of it",
        "start the program with its input and output redirected, or by ckpt run",
    ),
    _rule(
        r"Some file locks are hold by dumping tasks",
        "file-locks",
        "processes hold file locks, which were not to be dumped",
    ),
    _rule(r"Can't create link remap for (\S+)\.", "file-renamed", "{0} is open under a name that is gone"),
    _rule(
        r"Can't dump ghost file (.*) of (\d+) size",
        "file-deleted-large",
        "the deleted file {0} of {1} bytes is open, too large to go into an image",
        "let the program close it",
    ),
    _rule(
        r"Can't create a directory \(-17\)",
        "criu-busy",
        "another CRIU is at work in the same working directory, or one that was killed left `proc.crtools` there",
        "try again; when it stays so, remove the empty `proc.crtools` from the working directories of the group",
    ),
    _rule(r"Task (\d+) with SysVIPC shmem", "sysv-shared", "PID {0} has shared memory of the host's IPC namespace"),
    _rule(
        r"Unseizable non-zombie (\d+) found, state (\w)",
        "process-state",
        "PID {0} cannot be frozen (state {1}): it is traced, or waits uninterruptibly",
        "end the tracer, or what it waits for",
    ),
    _rule(r"Timeout reached\. Try to interrupt", "process-state", "the group could not be frozen in time"),
    _rule(r"Net namespace is required to dump tun", "tun-open", "a TUN device is open in the host's network namespace"),
    _rule(
        r"unprivileged task whose /proc doesn't belong to it",
        "user-namespace",
        "a user namespace without PID and mount namespaces cannot be dumped",
    ),
    _rule(r"Unknown shit", "file-unsupported", "an open file is of an unknown kind", _OWN_SOCKETS),  # read
    # -- restore
    _rule(
        r"Can't fork for (\d+): File exists|PID already taken|Pid (\d+) do not match",
        "pid-taken",
        "a PID of the group is in use here",
        "restore into a PID namespace of its own",
    ),
    _rule(r"Unable to create a thread: -17", "pid-taken", "the id of a thread of the group is in use here"),
    _rule(
        r"Can't bind inet socket.*: Address already in use",
        "port-taken",
        "a port of the group is in use here",
        "end what listens there, or restore with other addresses",
    ),
    _rule(
        r"Can't bind inet socket.*: Cannot assign requested address",
        "address-missing",
        "an address that a socket of the group is bound to is not here",
        "add the address, or map it to another (--map-address)",
    ),
    _rule(
        r"Can't bind id .* addr (\S+): (.*)$",
        "unix-bind",
        "the unix socket {0} could not be made again: {1}",
        "make its directory, or remove what has its name",
    ),
    _rule(r"unix: Can't connect \d+ socket: (.*)$", "unix-peer-missing", "a unix socket outside is not here: {0}"),
    _rule(
        r"Can't set 1:25 .*: No such device",
        "device-missing",
        "a socket is bound to a link that is not here (SO_BINDTODEVICE)",
        "make the link, or map it (--map-link)",
    ),
    _rule(r"No tun device for file (\S+)", "tun-not-persistent", "the TUN link {0} is not here"),
    _rule(r"Unable to find a network namespace", "socket-netns", "a socket was made in a namespace that is not dumped"),
    _rule(r"Can't restore sub-task in NS", "namespace-nested", "a process has a namespace below a shared one"),
    _rule(
        r"File (.*) has bad (size|mode) (\d+) \(expect (\d+)\)",
        "file-differs",
        "/{0} has another {1} here ({2}) than when it was dumped ({3})",
        _SAME_FILES,
    ),
    _rule(r"File (\S+) .*[Bb]uild-?I[Dd]", "file-differs", "/{0} is another build here", _SAME_FILES),  # read
    _rule(r"Can't open file (\S+) on restore: (.*)$", "file-missing", "/{0} cannot be opened: {1}", _SAME_FILES),
    _rule(r"Can't open cwd", "file-missing", "the working directory of a process is not here", "make the directory"),
    _rule(
        r"Unable to open the proc file system: Operation not permitted",
        "user-namespace",
        "a user namespace without a PID namespace cannot be restored",
    ),
    # -- either: CRIU and the kernel do not fit each other (all read, but the first)
    _rule(
        r"Failed to lock TCP connection|Iptables configuration failed|Locking network failed",
        "criu-network-lock",
        "CRIU could not lock the network by itself",
    ),
    _rule(
        r"rt vDSO area bounds|vdso: Can't|vDSO.*(mismatch|not found)",
        "criu-too-old",
        "this CRIU does not know the vDSO of this kernel",
        "install a newer CRIU (Linux 6.13 needs 4.1): scripts/install-criu",
    ),
    _rule(
        r"Can't get 1:16 opt",
        "criu-too-old",
        "this CRIU does not know the socket options of this kernel",
        "install a newer CRIU (Linux 6.16 needs 4.2): scripts/install-criu",
    ),
    _rule(
        r"No space left on device",
        "no-space",
        "the disk is full",
        "make room, or write the image elsewhere",
    ),
    _rule(r"BUG at (\S+)|killed by signal 11", "criu-bug", "CRIU itself crashed", "report it with CRIU's log"),
)


def decisive_line(log: str) -> LogVerdict | None:
    """Why the run of CRIU that wrote ``log`` failed; None when the log has no error that could be the reason."""
    errors = [found["text"] for line in log.splitlines() if (found := _ERROR.match(line.strip()))]
    errors = [text for text in errors if not _SURVIVED.search(text)]
    likely = [text for text in errors if not _ON_THE_WAY_OUT.search(text)]
    for text in likely:
        where, _, message = text.partition("): ")
        for rule in _RULES:
            found = re.search(rule.pattern, message)
            if found:
                brief = rule.brief.format(*(value or "" for value in found.groups()))
                return LogVerdict(code=rule.code, brief=brief, line=_shown(where, message), remedy=rule.remedy)
    if not errors:
        return None
    where, _, message = (likely or errors)[0].partition("): ")
    brief = "CRIU failed for a reason that ckpt does not know"
    return LogVerdict(code="criu-failed", brief=brief, line=_shown(where, message))


def _shown(where: str, message: str) -> str:
    """``inet: Unsupported proto 262 for socket 6842 (sk-inet.c:137)``."""
    return f"{message} ({where.rpartition('/')[2]})"
