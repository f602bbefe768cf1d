"""One process out of ``/proc``, as a record.

A process can end, or turn into a zombie, between any two reads: what is gone is left out, and a process of which not
even ``stat`` is left is None. Nothing here looks at more than one process; ``proc`` puts the tree together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ckpt.kernel.files import FileReader, read_executable, read_link, text
from ckpt.model.process import Memory, Process, Thread
from ckpt.records import dataclass

PF_EXITING = 0x0000_0004
PF_KTHREAD = 0x0020_0000
"""Bit of ``flags`` in ``stat`` (include/linux/sched.h): a thread of the kernel itself."""
PAGE = 1024
"""``status`` counts memory in kB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """The fields of ``/proc/PID/stat`` that are used."""

    pid: int
    name: str
    state: str
    ppid: int
    pgid: int
    sid: int
    tty: int
    flags: int
    start_time: int


def read_text(path: str) -> str:
    """A whole file of ``/proc``, or nothing when it has gone."""
    try:
        with open(path, "rb") as file:
            return text(file.read())
    except OSError:
        return ""


def parse_stat(line: str) -> Stat:
    """``/proc/PID/stat``; the name is in parentheses and may hold any character, a parenthesis too."""
    head, _, tail = line.rpartition(")")
    pid, _, name = head.partition(" (")
    words = tail.split()
    return Stat(
        pid=int(pid),
        name=name,
        state=words[0],
        ppid=int(words[1]),
        pgid=int(words[2]),
        sid=int(words[3]),
        tty=int(words[4]),
        flags=int(words[6]),
        start_time=int(words[19]),
    )


def read_stat(pid: int, tid: int | None = None) -> Stat | None:
    """``stat`` of a process, or of one of its threads; None when there is no such process."""
    line = read_text(f"/proc/{pid}/stat" if tid is None else f"/proc/{pid}/task/{tid}/stat")
    return parse_stat(line) if line else None


def parse_status(lines: str) -> dict[str, str]:
    """``/proc/PID/status``."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines.splitlines())}


def numbers(values: Mapping[str, str], key: str) -> tuple[int, ...]:
    """The numbers of one line of ``status``; none when the kernel has no such line."""
    return tuple(int(word) for word in values.get(key, "").split())


def number(values: Mapping[str, str], key: str) -> int:
    """The first number of one line of ``status``, 0 without it."""
    return int(values.get(key, "0").split()[0] or "0")


def _bytes(values: Mapping[str, str], *keys: str) -> int:
    return sum(number(values, key) for key in keys) * PAGE


def _memory(values: Mapping[str, str]) -> Memory:
    return Memory(
        rss=_bytes(values, "VmRSS"),
        private=_bytes(values, "RssAnon", "RssShmem", "VmSwap"),
        total=_bytes(values, "VmSize"),
    )


def _tty(number: int) -> str | None:
    """``tty_nr`` packs the minor around the major: bits 0-7 and 20-31, the major in 8-19."""
    if number == 0:
        return None
    number &= 0xFFFF_FFFF
    return f"{(number >> 8) & 0xFFF}:{(number & 0xFF) | ((number >> 12) & 0xFFF00)}"


def _link(path: str) -> str:
    try:
        return read_link(path)
    except OSError:
        return ""


def read_namespaces(pid: int) -> dict[str, int]:
    """Name under ``/proc/PID/ns`` to inode number; empty for a process that has ended."""
    found: dict[str, int] = {}
    try:
        names = sorted(os.listdir(f"/proc/{pid}/ns"))
        for name in names:
            found[name] = os.stat(f"/proc/{pid}/ns/{name}").st_ino
    except OSError:
        # a zombie has the names but no longer the namespaces
        return found
    return found


def thread_ids(pid: int) -> tuple[int, ...]:
    """The threads of ``pid``, the first one first; none when it is gone."""
    try:
        return tuple(sorted((int(name) for name in os.listdir(f"/proc/{pid}/task")), key=lambda tid: (tid != pid, tid)))
    except OSError:
        return ()


def _own_namespaces(pid: int, tid: int) -> tuple[str, ...]:
    """A thread can leave its process in these with unshare(2) or setns(2); in the others it cannot."""
    names = ("cgroup", "ipc", "mnt", "net", "uts") if tid != pid else ()
    try:
        return tuple(name for name in names if _namespace(f"{pid}/task/{tid}", name) != _namespace(str(pid), name))
    except OSError:
        return ()


def _namespace(task: str, name: str) -> int:
    return os.stat(f"/proc/{task}/ns/{name}").st_ino


def _threads(pid: int) -> tuple[Thread, ...]:
    threads = []
    for tid in thread_ids(pid):
        values = parse_status(read_text(f"/proc/{pid}/task/{tid}/status"))
        if values:
            state = values.get("State", "?")[:1]
            name = values.get("Name", "")
            threads.append(
                Thread(
                    tid=tid,
                    name=name,
                    state=state,
                    ns_ids=numbers(values, "NSpid"),
                    own_namespaces=_own_namespaces(pid, tid),
                )
            )
    return tuple(threads)


def _cmdline(pid: int) -> tuple[str, ...]:
    raw = read_text(f"/proc/{pid}/cmdline")
    return tuple(raw.removesuffix("\0").split("\0")) if raw else ()


def read_process(pid: int, files: FileReader) -> Process | None:
    """One process, or None when there is none (any more)."""
    line = read_stat(pid)
    values = parse_status(read_text(f"/proc/{pid}/status"))
    if line is None or not values:
        return None
    namespaces = read_namespaces(pid)
    return Process(
        pid=pid,
        ns_pids=numbers(values, "NSpid") or (pid,),
        ppid=line.ppid,
        pgid=line.pgid,
        sid=line.sid,
        ns_pgids=numbers(values, "NSpgid"),
        ns_sids=numbers(values, "NSsid"),
        tty=_tty(line.tty),
        name=line.name,
        cmdline=_cmdline(pid),
        exe=read_executable(pid),
        cwd=_link(f"/proc/{pid}/cwd"),
        root=_link(f"/proc/{pid}/root"),
        state=line.state,
        kernel_thread=bool(line.flags & PF_KTHREAD),
        start_time=line.start_time,
        uids=numbers(values, "Uid"),
        gids=numbers(values, "Gid"),
        groups=numbers(values, "Groups"),
        threads=_threads(pid),
        namespaces=namespaces,
        cgroups=tuple(read_text(f"/proc/{pid}/cgroup").splitlines()),
        tracer=number(values, "TracerPid"),
        seccomp=number(values, "Seccomp"),
        no_new_privs=number(values, "NoNewPrivs") == 1,
        memory=_memory(values),
        files=files.read_files(pid, namespaces.get("mnt", 0)),
        maps=files.read_maps(pid),
    )
