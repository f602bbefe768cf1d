"""IP-set contexts of this host: what they are, what holds them, and how they end.

A context belongs to the group of its name and ends with it. Its set may change while the group runs. The group stands
still for that moment, so that its sockets and the books agree: an address that comes is given to every socket on `*`,
or the change is refused as a whole, as their bind would have been; an address that goes must not be in use, or its
sockets are destroyed, and their peers told, when the change is forced.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ckpt import registry
from ckpt.errors import ExistsError, NetworkError, NotFoundError, RefusedError, UsageError
from ckpt.kernel import (
    cgroup2,
    context_books,
    context_bounds,
    context_limits,
    context_places,
    context_sockets,
    outside,
    proc,
    procfs,
)
from ckpt.kernel import context as kernel
from ckpt.kernel.context_maps import Claim
from ckpt.kernel.context_sockets import ContextSocket
from ckpt.kernel.enter import run_inside as enter_namespaces
from ckpt.model.context import MOST_ADDRESSES, Context, Limits, Member, merged, parse_set
from ckpt.records import dataclass
from ckpt.registry import GroupEntry

SEMANTIC_5 = (
    "its programs can see every address, link and socket of this host, though they can use only their own; "
    "--isolation netns hides the others"
)
"""What the host's own network stack cannot give a context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextReport:
    """A context as it is now: its ``members`` as they are written, its processes and sockets.

    ``uncovered`` are links from which datagrams reach sockets on `*` on their first address alone. ``freedoms`` are
    what this host does not keep a root process in it from, and ``strayed`` the processes of its group that are not in
    it any more.
    """

    name: str
    members: tuple[str, ...]
    loopback4: str
    loopback6: str
    cgroup: str
    processes: tuple[int, ...]
    sockets: tuple[ContextSocket, ...]
    missing: tuple[str, ...] = ()
    uncovered: tuple[str, ...] = ()
    freedoms: tuple[str, ...] = ()
    strayed: tuple[int, ...] = ()


def reports() -> tuple[ContextReport, ...]:
    """Every context of this host's network namespace, by name."""
    with registry.locked():
        found = []
        for name, _ in context_places.found():
            with contextlib.suppress(NotFoundError):  # half made, or going
                found.append(_report(kernel.read(name)))
        return tuple(found)


def report(name: str) -> ContextReport:
    """The context called ``name``."""
    with registry.locked():
        return _report(kernel.read(name))


def _report(context: Context) -> ContextReport:
    return ContextReport(
        name=context.name,
        members=tuple(text for member in context.members for text in str(member).split()),
        loopback4=context.loopback4,
        loopback6=context.loopback6,
        cgroup=context.cgroup,
        processes=tuple(sorted(cgroup2.pids(Path(context.cgroup)))),
        sockets=context_sockets.of(context),
        missing=kernel.missing_programs(context),
        uncovered=kernel.cover(registry.state_dir()),
        freedoms=tuple(one.reason for one in context_bounds.freedoms(tasks=context_limits.tasks(context) is not None)),
        strayed=tuple(_strayed(context)),
    )


def _strayed(context: Context) -> Iterator[int]:
    entry = registry.find(context.name)
    if entry is None or entry.context != context.name or not entry.alive:
        return
    for pid in proc.tree_pids(entry.pid):
        cgroup = cgroup2.of_process(pid)
        if cgroup is not None and context_places.name_of(cgroup) != context.name:
            yield pid


def change(name: str, *, add: Sequence[str] = (), remove: Sequence[str] = (), force: bool = False) -> ContextReport:
    """Add addresses to a context and remove others, as one change that happens or does not."""
    coming, going = parse_set(add), parse_set(remove)
    with registry.Operation("change", name), registry.locked():
        before = kernel.read(name)
        members = _changed(before, coming, going)
        _require_on_host(coming)
        with cgroup2.frozen(Path(before.cgroup)):
            lost = [one for one in before.members if one.address not in {member.address for member in members}]
            used = [one for one in context_sockets.of(before) if one.local.address in {one.address for one in lost}]
            if used and not force:
                raise RefusedError(
                    f"{' and '.join(sorted({one.local.address for one in used}))} is in use",
                    code="address-in-use",
                    details="\n".join(str(one) for one in used),
                    hint="end these first, or have them aborted with --force",
                )
            context_books.enter(before, members)
            for one in used:
                context_sockets.destroy(one)
            after = kernel.change(before, members, registry.state_dir())
            context_books.strike(before, [one.address for one in lost])
        _write_down(after)
        return _report(after)


def end_change(name: str) -> None:
    """Let the processes of a context go on whose change was not ended by the ckpt that began it: its set is one of two.

    What the books have beside that set is `leaked_bookings`.
    """
    _write_down(kernel.read(name))
    cgroup2.thaw(context_places.cgroup_of(name))


def _write_down(context: Context) -> None:
    entry = registry.find(context.name)
    if entry is not None and entry.context == context.name:
        registry.add(_with_addresses(entry, context), replace=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryReport:
    """What entering did: the processes that are in the context now, and their sockets that it does not confine.

    ``privileged`` are those of the processes that have a user id or capabilities of root's.
    """

    name: str
    processes: tuple[int, ...]
    free: tuple[ContextSocket, ...]
    privileged: tuple[int, ...] = ()


def enter(name: str, pid: int) -> EntryReport:
    """Put a process and all below it into a context. What they make from now on is confined, what they have is not.

    They keep their capabilities: a root process among them may leave again.
    """
    with registry.locked():
        context = kernel.read(name)
        path = Path(context.cgroup)
        if registry.start_time(pid) is None:
            raise NotFoundError(f"there is no process {pid}", code="process-missing")
        _require_same_network(pid)
        moved: set[int] = set()
        # What is forked by one that was not moved yet is found by looking again.
        while waiting := [one for one in proc.tree_pids(pid) if one not in moved]:
            for one in waiting:
                moved.add(one)
                with contextlib.suppress(ProcessLookupError):
                    cgroup2.enter(path, one)
        here = tuple(sorted(one for one in moved if registry.start_time(one) is not None))
        return EntryReport(
            name=name,
            processes=here,
            free=context_sockets.free(context, here),
            privileged=tuple(filter(_is_privileged, here)),
        )


def _is_privileged(pid: int) -> bool:
    with contextlib.suppress(OSError):
        status = procfs.parse_status(Path(f"/proc/{pid}/status").read_text())
        return 0 in procfs.numbers(status, "Uid") or int(status["CapPrm"], 16) != 0
    return False


def _require_same_network(pid: int) -> None:
    own, other = (os.stat(f"/proc/{one}/ns/net").st_ino for one in ("self", pid))
    if own != other:
        raise RefusedError(
            f"process {pid} is in another network namespace",
            code="context-namespace",
            details="a context has addresses of this one, and refuses sockets anywhere else",
            hint="a namespace of its own confines it already",
        )


def _addresses(context: Context) -> set[str]:
    return {one.address for one in context.members}


def _with_addresses(entry: GroupEntry, context: Context) -> GroupEntry:
    return replace(entry, addresses=tuple(text for one in context.members for text in str(one).split()))


def _changed(context: Context, coming: Iterable[Member], going: Iterable[Member]) -> tuple[Member, ...]:
    """The set after the change; UsageError when that does not fit together."""
    members = {one.address: one for one in context.members}
    for one in going:
        if one.address not in members:
            raise NotFoundError(
                f"{one.address} is not of the context {context.name}",
                code="address-missing",
                hint=f"`ckpt context {context.name}` shows its set",
            )
        if one.ports:
            raise UsageError("an address is removed with all its ports", code="address-invalid", hint="leave them out")
        del members[one.address]
    for one in coming:
        there = members.get(one.address)
        members[one.address] = one if there is None else merged(there, one)
    if not members:
        raise UsageError("a context needs an address", code="address-needed", hint="add one in the same command")
    if len(members) > MOST_ADDRESSES:
        raise UsageError(f"a set has {MOST_ADDRESSES} addresses at most", code="set-too-large")
    return tuple(members.values())


def _require_on_host(members: Iterable[Member]) -> None:
    known = {one.address.partition("/")[0] for one in outside.addresses()}
    for one in members:
        if one.address not in known:
            raise NotFoundError(
                f"this host does not have the address {one.address}",
                code="address-missing",
                hint=f"`ip addr add {one.address}/… dev …` puts it on a link",
            )


# -- the group that a context belongs to -------------------------------------------------------------------------------


def run_inside(entry: GroupEntry, argv: Sequence[str]) -> int:
    """Run a command in a group, in its context as well if it is in one; its exit status."""
    without = () if entry.context is None else context_bounds.capabilities(Limits())
    return enter_namespaces(entry.pid, argv, cgroup=cgroup_of(entry), without=without)


def cgroup_of(entry: GroupEntry) -> str | None:
    """The directory of the cgroup that a group's processes have to be in; None when it is not confined."""
    return None if entry.context is None else str(context_places.cgroup_of(entry.context))


def release(entry: GroupEntry) -> None:
    """Remove the context of a group that has ended, and the addresses that ckpt put on links for it."""
    if entry.context is not None:
        discard(entry.context)
    for given in entry.given:
        ifname, _, address = given.partition(" ")
        take_address(ifname, address)


def discard(name: str) -> None:
    """Remove the context called ``name``, whole or half made; what still runs in it is ended."""
    path = context_places.cgroup_of(name)
    for pid in cgroup2.pids(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(FileNotFoundError):
        context_bounds.remove(path)
    kernel.remove(name, path, registry.state_dir())


def names() -> tuple[str, ...]:
    """The contexts of this host's network namespace, whole or half made."""
    return tuple(name for name, _ in context_places.found())


def leaked_bookings() -> tuple[Claim, ...]:
    """What the books of this host's network namespace have that nobody will give back; no ckpt may be at work."""
    return tuple(context_books.leaked(kernel.whole(), kernel.surroundings()))


def strike_booking(claim: Claim) -> None:
    """Take away one of `leaked_bookings`."""
    context_books.strike_leaked(claim, kernel.whole(), kernel.surroundings())


def has_floor() -> bool:
    """Whether there are programs that only contexts need."""
    return kernel.has_floor()


def release_floor() -> None:
    """Take away what only contexts need, when there is none."""
    kernel.release_floor(registry.state_dir())


def take_address(ifname: str, address: str) -> None:
    """Take an address from a link of the host, unless another group has it in its set."""
    plain = address.partition("/")[0]
    for other, _ in context_places.found():
        with contextlib.suppress(NotFoundError):
            if plain in _addresses(kernel.read(other)):
                return
    with contextlib.suppress(NotFoundError):
        kernel.take_address(ifname, address)


def give_address(ifname: str, address: str) -> bool:
    """Put an address on a link of the host; whether it was not there."""
    link = outside.find(ifname)
    if link is None:
        raise NotFoundError(f"there is no link {ifname}", code="link-missing", hint="`ip link` lists those of the host")
    if not link.up:
        raise NetworkError(f"the link {ifname} is down", code="link-down", hint=f"ip link set {ifname} up")
    return kernel.give_address(ifname, address)


def require_no_context(name: str) -> None:
    """ExistsError when there is a context called ``name``, though no group is."""
    if context_places.cgroup_of(name, registry.state_dir() / "cgroup").exists():
        raise ExistsError(
            f"there is a context {name} already", code="context-exists", hint="`ckpt clean` removes what a crash left"
        )
