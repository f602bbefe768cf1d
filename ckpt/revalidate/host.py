"""The host as a whole: its processor, kernel, CRIU and memory, and the names and numbers that a group takes there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ckpt.model.checkpoint import Checkpoint
from ckpt.model.finding import Finding
from ckpt.model.host import HostFacts, Needs, TargetFacts
from ckpt.revalidate.needs import ids_of
from ckpt.revalidate.verdict import block, listed, ok, warn

PACKAGES = {"nft": "nftables"}

# CRIU does without it, but cannot raise its limit of open files.
_DISPENSABLE = ("CAP_SYS_RESOURCE", "CAP_CHECKPOINT_RESTORE")

# Instructions that programs and the C library choose code by when they start, and go on using. The other flags of
# /proc/cpuinfo are of the kernel, of the firmware, not for programs, or shown by later kernels only.
_INSTRUCTIONS = re.compile(
    r"avx|amx|sse|ssse|pni$|fma|bmi|aes|vaes|sha|gfni|vpclmul|pclmul|movbe|popcnt|abm|f16c|adx|rdrand|rdseed|rtm"
    r"|fsgsbase|xsave|cx16|pku"
    r"|sve|sme|asimd|atomics|crc32|paca|pacg|lrcpc|pmull"
)
_TIGHT = 10
"""Percent of the available memory that should be left over."""


def check_host(
    checkpoint: Checkpoint, needs: Needs, target: TargetFacts, *, name: str, pages: int | None
) -> Iterator[Finding]:
    """Findings on the host itself."""
    yield from _machine(checkpoint.source, target.host)
    yield from _criu(checkpoint.source, target.host)
    yield from _kernel(checkpoint.source, target.host)
    yield from _abilities(target)
    yield from _tools(target)
    yield from _name(name, target)
    yield from _pids(checkpoint, needs, target)
    yield from _users(target)
    yield from _cgroups(target)
    yield from _memory(checkpoint, target, pages)
    yield from _disk(target, pages)


def _machine(source: HostFacts, target: HostFacts) -> Iterator[Finding]:
    if source.machine != target.machine:
        yield block(
            "host-arch",
            "processor",
            f"the image is of {source.machine}, and this host is {target.machine}",
            f"restore it on a host that is {source.machine}",
            needed=source.machine,
            there=target.machine,
        )
        return
    yield ok("host-arch", "processor", target.machine, needed=source.machine, there=target.machine)
    missing = sorted(flag for flag in set(source.cpu_flags) - set(target.cpu_flags) if _INSTRUCTIONS.match(flag))
    if missing and target.cpu_flags:
        yield block(
            "host-cpu",
            "processor",
            f"it lacks what the source's has: {listed(missing)}",
            "restore it on a host with a processor at least as capable; a program that found these features uses them",
            needed=" ".join(missing),
        )


def _criu(source: HostFacts, target: HostFacts) -> Iterator[Finding]:
    if not source.criu or not target.criu:
        return
    subject, here, there = "CRIU", _dotted(target.criu), _dotted(source.criu)
    if target.criu[:2] < source.criu[:2]:
        yield block(
            "criu-version",
            subject,
            f"it is {here} here, and the image was made by {there}",
            f"install CRIU {_dotted(source.criu[:2])} or later; scripts/install-criu finds one",
            needed=there,
            there=here,
        )
    else:
        yield ok("criu-version", subject, f"{here}; the image was made by {there}")


def _kernel(source: HostFacts, target: HostFacts) -> Iterator[Finding]:
    here, there = _release(target.kernel), _release(source.kernel)
    if here < there:
        yield warn(
            "kernel",
            "kernel",
            f"it is {target.kernel} here, and the source had the later {source.kernel}",
            "boot a kernel that is as late, if the group uses what the older one does not have",
            needed=source.kernel,
            there=target.kernel,
        )
    else:
        yield ok("kernel", "kernel", target.kernel)


def _abilities(target: TargetFacts) -> Iterator[Finding]:
    if not target.checkpoint_restore:
        yield block(
            "kernel-checkpoint",
            "kernel",
            "it was built without CONFIG_CHECKPOINT_RESTORE",
            "boot a distribution's kernel",
            needed="CONFIG_CHECKPOINT_RESTORE",
        )
    for name in target.capabilities_missing:
        if name in _DISPENSABLE:
            yield ok("capability", name, "missing, and CRIU does without", needed=name)
        else:
            remedy = "give the container or service that ckpt runs in this capability"
            yield block("capability", name, "root does not have it here", remedy, needed=name)


def _users(target: TargetFacts) -> Iterator[Finding]:
    if target.users_missing:
        yield warn(
            "user-unknown",
            f"user {listed(target.users_missing)}",
            "processes of the group run under this id, and nobody here has it",
            "none is needed where only the number counts; else add the user with this id",
            needed=" ".join(map(str, target.users_missing)),
        )


def _cgroups(target: TargetFacts) -> Iterator[Finding]:
    if target.cgroups_missing:
        yield warn(
            "cgroup-missing",
            f"cgroup controllers {listed(target.cgroups_missing)}",
            "the group is limited by them, and here they are in no hierarchy of cgroup v1",
            "mount them as on the source, or set the limits again after the restore",
            needed=" ".join(target.cgroups_missing),
        )


def _disk(target: TargetFacts, pages: int | None) -> Iterator[Finding]:
    # It lies in memory where that has room for it beside the group's own.
    if pages and 0 <= target.disk_free < pages and target.memory_available < 2 * pages:
        yield block(
            "disk",
            "disk",
            f"the image has to be unpacked, at least {_size(pages)}, and {_size(target.disk_free)} are free",
            "free room beside the image, in /var/lib/ckpt or in /tmp",
            needed=pages,
            there=target.disk_free,
        )


def _tools(target: TargetFacts) -> Iterator[Finding]:
    for tool in target.tools_missing:
        yield block("tool-missing", tool, "it is not installed", f"apt-get install {PACKAGES.get(tool, tool)}")


def _name(name: str, target: TargetFacts) -> Iterator[Finding]:
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        # it becomes the name of a file in the registry
        yield block("group-name-invalid", repr(name), "it cannot be the name of a group", "give it another by --name")
        return
    taken = next((group for group in target.groups if group.name == name), None)
    if taken is None:
        yield ok("group-name", name, "the name is free")
        return
    state = f"runs as PID {taken.pid}" if taken.alive else "has exited and was not yet cleared away"
    yield block(
        "group-name-taken",
        name,
        f"a group of that name is there and {state}",
        f"choose another name with --name, or `ckpt stop {name}` first",
    )


def _pids(checkpoint: Checkpoint, needs: Needs, target: TargetFacts) -> Iterator[Finding]:
    highest = ids_of(checkpoint.processes)[-1:]
    if highest and target.pid_max and highest[0] >= target.pid_max:
        yield block(
            "pid-max",
            f"PID {highest[0]}",
            f"this host's PIDs end at {target.pid_max - 1}",
            f"sysctl kernel.pid_max={highest[0] + 1} or more",
            needed=highest[0],
            there=target.pid_max - 1,
        )
    if target.pids_taken:
        yield ok(
            "pids-taken",
            f"PID {listed(target.pids_taken)}",
            "taken here; the group gets a PID namespace of its own, and has other PIDs outside of it",
        )
    elif needs.pids:
        yield ok("pids", f"{len(needs.pids)} PIDs", "free")


def _memory(checkpoint: Checkpoint, target: TargetFacts, pages: int | None) -> Iterator[Finding]:
    private = [process.memory.private for process in checkpoint.processes]
    # Pages that processes share are counted for each: all that is sure without the image is the largest of them.
    least = max(private, default=0) if pages is None else pages
    likely = sum(private) if pages is None else pages
    available = target.memory_available
    if not available:
        return
    if least > available + target.swap_free:
        yield block(
            "memory",
            "memory",
            f"the group has {_size(least)}, and {_size(available + target.swap_free)} are available",
            "free memory, or add swap",
            needed=least,
            there=available + target.swap_free,
        )
    elif likely > available * (100 - _TIGHT) // 100:
        yield warn(
            "memory",
            "memory",
            f"the group has up to {_size(likely)}, and {_size(available)} are available",
            "free memory before the restore",
            needed=likely,
            there=available,
        )
    else:
        yield ok("memory", "memory", f"{_size(likely)} of {_size(available)} available")


def _size(count: int) -> str:
    return f"{-(-count // (1 << 20))} MiB"


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _release(kernel: str) -> tuple[int, ...]:
    """``6.1.0-28-amd64`` → (6, 1): below that, numbers are of a distribution, and do not compare."""
    found = re.match(r"(\d+)\.(\d+)", kernel)
    return tuple(map(int, found.groups())) if found else ()
