"""IP-set contexts in the kernel: made, found, read, changed and removed.

A context is a cgroup whose name holds the cookie of its network namespace, with programs attached to it (see
``bpf/context.bpf.c``). All that there is to know of it is in the maps of those programs, and they are found from the
cgroup, so that a ckpt that was killed leaves nothing that the next one cannot see. The programs go with the cgroup, or
with the last socket that was made in it, whichever lives longer. ::1 inside is an address on the host's lo.

The caller holds the registry's lock, and is in the context's network namespace.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ckpt.errors import CkptError, NetworkError, NotFoundError, PermissionDeniedError, UnsupportedError
from ckpt.kernel import (
    bpf_calls,
    bpf_object,
    context_books,
    context_floor,
    context_maps,
    context_places,
    outside,
    rtnl_addresses,
)
from ckpt.kernel.bpf_object import FLOOR, KINDS
from ckpt.kernel.context_floor import Floor
from ckpt.kernel.context_maps import CONFIG_KEY, CONFIG_SIZE, Surroundings
from ckpt.kernel.context_places import cgroup_of, found, make, netns_cookie
from ckpt.kernel.netlink import KernelRefusal, Netlink
from ckpt.model.context import Context, Member
from ckpt.model.network import Address

_NUMBERS = 1 << 14
"""As many contexts as a namespace may have: what 127.64.0.1 to 127.127.255.1 have room for."""

_FIRST_LOOPBACK4 = int(ipaddress.IPv4Address("127.64.0.1"))
_LOOPBACK6 = int(ipaddress.IPv6Address("fd63:6b70:7400::"))
_BIND = "cgroup/bind4"
_NLM_F_CREATE = 0x400


def create(name: str, members: Iterable[Member], directory: Path, undo: ExitStack) -> Context:
    """Make the context; undone by ``undo``. ``directory`` is ckpt's own, for what has to be mounted."""
    undo.callback(release_floor, directory)
    members = with_prefixes(members)
    with _explained(), context_floor.ensured(directory / "bpf") as floor:
        context_floor.cover(floor, directory / "bpf", everywhere=_is_wide(members))
        cgroup = make(name, directory / "cgroup", undo)
        number = _free_number()
        context = Context(
            name=name,
            cgroup=str(cgroup),
            number=number,
            netns=netns_cookie(),
            members=members,
            loopback4=str(ipaddress.IPv4Address(_FIRST_LOOPBACK4 + (number << 8))),
            loopback6=str(ipaddress.IPv6Address(_LOOPBACK6 + number)),
        )
        undo.callback(take_address, "lo", context.loopback6)
        give_address("lo", context.loopback6)
        _attach(context, floor)
        return context


def _attach(context: Context, floor: Floor) -> None:
    contents = bpf_object.built()
    cgroup = os.open(context.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with ExitStack() as stack:
        stack.callback(os.close, cgroup)
        maps = {"books": floor.books, "listeners": floor.listeners}
        for name in ("config", "members", "sockets"):
            maps[name] = bpf_calls.map_create(f"ckpt_{name}", contents.maps[name])
            stack.callback(os.close, maps[name])
        _fill(context, maps)
        for section, code in contents.programs.items():
            if section.startswith(FLOOR):
                continue
            with context_floor.attached(cgroup, code.kind.attach, code.name[:15]) as there:
                if there is None:
                    program = contents.load(section, maps)
                    try:
                        bpf_calls.prog_attach(cgroup, program, code.kind.attach, bpf_calls.ALLOW_MULTI)
                    finally:
                        os.close(program)


def _fill(context: Context, maps: Mapping[str, int]) -> None:
    """Write the set into the maps: what is new is let through before it is bound to, and what is old after."""
    members = context_maps.encode_members(context)
    for key, value in members.items():
        bpf_calls.map_update(maps["members"], key, value)
    bpf_calls.map_update(maps["config"], CONFIG_KEY, context_maps.encode_config(context, surroundings()))
    for key in list(bpf_calls.map_keys(maps["members"], 16)):
        if key not in members:
            bpf_calls.map_delete(maps["members"], key)


def surroundings() -> Surroundings:
    """What the caller's namespace adds to every set."""
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    v6only = Path("/proc/sys/net/ipv6/bindv6only")
    return Surroundings(low=int(low), high=int(high), v6only=v6only.exists() and v6only.read_text().strip() == "1")


def read(name: str) -> Context:
    """The context called ``name``, as the kernel has it; NotFoundError when it is not there, or not whole."""
    path = cgroup_of(name)
    with _maps(path) as maps:
        raw = bpf_calls.map_lookup(maps["config"], CONFIG_KEY, CONFIG_SIZE) if "config" in maps else None
        if raw is None:
            raise NotFoundError(
                f"there is no context {name}", code="context-missing", hint="`ckpt context` lists those of this host"
            )
        return context_maps.decode_config(raw, name, str(path))


def missing_programs(context: Context) -> tuple[str, ...]:
    """Programs that are not attached to the context's cgroup: none, unless somebody meddled."""
    cgroup = os.open(context.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    missing = []
    try:
        for section, code in bpf_object.built().programs.items():
            if not section.startswith(FLOOR):
                with context_floor.attached(cgroup, code.kind.attach, code.name[:15]) as there:
                    missing += [section] if there is None else []
    finally:
        os.close(cgroup)
    return tuple(missing)


def change(context: Context, members: Iterable[Member], directory: Path) -> Context:
    """Give the context another set; what is not in use of the old one is the caller's to see to."""
    changed = replace(context, members=with_prefixes(members))
    cover(directory, changed.members)
    with _maps(Path(context.cgroup)) as maps:
        _fill(changed, maps)
    return changed


def set_restoring(context: Context, *, on: bool) -> None:
    """While it is ``on``, connections may be bound beside the sockets that had accepted them, and book nothing."""
    config = context_maps.encode_config(context, surroundings(), restoring=on)
    with _maps(Path(context.cgroup)) as maps:
        bpf_calls.map_update(maps["config"], CONFIG_KEY, config)


def remove(name: str, path: Path, directory: Path) -> None:
    """Remove a context whose last process has gone, whole or half made, and what only it needed."""
    with contextlib.suppress(CkptError):
        take_address("lo", read(name).loopback6)
    context_places.remove(path)
    release_floor(directory)


def release_floor(directory: Path) -> bool:
    """Take the floor away when no context of the caller's namespace stands on it; whether it went."""
    _forget_loopbacks()
    if any(True for _ in found()):
        cover(directory)
        return False
    return context_floor.remove(directory / "bpf")


def has_floor() -> bool:
    """Whether the caller's namespace has anything that only contexts need."""
    return context_floor.is_there()


def cover(directory: Path, coming: Collection[Member] = ()) -> tuple[str, ...]:
    """Let datagrams be brought from the links that are there now; those where that cannot be had.

    ``coming`` is the set that one of the contexts is about to get.
    """
    with context_floor.opened() as floor:
        if floor is None:
            return ()
        return context_floor.cover(floor, directory / "bpf", everywhere=_is_wide(coming))


def _is_wide(coming: Collection[Member]) -> bool:
    """Whether `*` is more than one address of the host's for a context, or for one that gets the set ``coming``."""
    return len(coming) > 1 or any(len(context.members) > 1 for context in whole())


def whole() -> Iterator[Context]:
    """The contexts of the caller's namespace, but for those that are half made, or going."""
    for name, _ in found():
        with contextlib.suppress(CkptError):
            yield read(name)


def with_prefixes(members: Iterable[Member]) -> tuple[Member, ...]:
    """The members with the prefixes that their addresses have on the host, where none was given."""
    known = {ipaddress.ip_interface(one.address).ip: ipaddress.ip_interface(one.address) for one in outside.addresses()}
    return tuple(
        replace(one, prefix=known[one.ip].network.prefixlen if one.ip in known else one.ip.max_prefixlen)
        if one.prefix is None
        else one
        for one in members
    )


def _free_number() -> int:
    """A number that no context has, and no socket that outlived its context."""
    taken = {claim.number for claim in context_books.claims()}
    for name, _ in found():
        with contextlib.suppress(CkptError):
            taken.add(read(name).number)
    while True:
        number = secrets.randbelow(_NUMBERS - 1) + 1
        if number not in taken:
            return number


def give_address(ifname: str, address: str) -> bool:
    """Put an address on a link; whether it was not there. A host without IPv6 has no ::1 to give either."""
    return _set_address(rtnl_addresses.RTM_NEWADDR, ifname, address)


def take_address(ifname: str, address: str) -> bool:
    """Take an address from a link; whether it was there."""
    return _set_address(rtnl_addresses.RTM_DELADDR, ifname, address)


def _set_address(kind: int, ifname: str, address: str) -> bool:
    indices = {link.ifname: link.ifindex for link in outside.links()}
    if ifname not in indices:
        return False
    text = address if "/" in address else f"{address}/{ipaddress.ip_address(address).max_prefixlen}"
    flags = ("nodad",) if ":" in address else ()
    body = rtnl_addresses.encode_address(Address(ifname=ifname, address=text, flags=flags), indices)
    try:
        with Netlink() as kernel:
            kernel.request(kind, body, _NLM_F_CREATE if kind == rtnl_addresses.RTM_NEWADDR else 0)
    except KernelRefusal as error:
        if error.errno in (errno.EEXIST, errno.EADDRNOTAVAIL):
            return False
        if ifname == "lo" and error.errno in (errno.EOPNOTSUPP, errno.EACCES, errno.EAFNOSUPPORT):
            return False
        raise NetworkError(
            f"the address {text} cannot be set on {ifname}", code="address-set", details=error.strerror
        ) from error
    return True


def _forget_loopbacks() -> None:
    """Take what is left on lo of the own addresses of contexts that are no more: systemd, too, ends an empty one."""
    network = ipaddress.IPv6Network((_LOOPBACK6, 112))
    needed = {context.loopback6 for context in whole()}
    for one in outside.addresses():
        ip = ipaddress.ip_interface(one.address).ip
        if one.ifname == "lo" and ip in network and str(ip) not in needed:
            take_address("lo", str(ip))


@contextlib.contextmanager
def _maps(path: Path) -> Iterator[dict[str, int]]:
    """The maps of the context that the cgroup at ``path`` is; none when it is not one, or not yet."""
    with ExitStack() as stack:
        try:
            cgroup = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield {}
            return
        stack.callback(os.close, cgroup)
        name = bpf_object.built().programs[_BIND].name
        program = stack.enter_context(context_floor.attached(cgroup, KINDS[_BIND].attach, name))
        yield {} if program is None else context_floor.maps_of(program, stack)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Refusals of the kernel as errors that name what is missing."""
    try:
        yield
    except PermissionError as error:
        raise PermissionDeniedError(
            "a context cannot be made", code="context-permission", details=str(error), hint="run as root, with CAP_BPF"
        ) from error
    except OSError as error:
        raise UnsupportedError(
            "a context cannot be made",
            code="context-unsupported",
            details=str(error),
            hint="`ckpt check` shows what this kernel lacks",
        ) from error
