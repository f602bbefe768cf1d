"""What of the kernel IP-set contexts need, each thing tried: programs are loaded and thrown away, and what is attached
is attached to a namespace that is thrown away. Nothing of the host is touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ckpt.errors import CkptError
from ckpt.kernel import bpf_calls, bpf_object, cgroup2, context_places, context_steer, netns
from ckpt.kernel.bpf_object import KINDS
from ckpt.records import dataclass

_INSTRUCTION = struct.Struct("=BBhi")
_LO = 1
"""The index of lo, in every namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """Something that contexts need. ``failure`` is the kernel's word when it is not there; ``since`` is a Linux.

    Without one that is not ``needed`` contexts can be made all the same.
    """

    name: str
    since: str
    failure: str | None
    needed: bool = True


def features() -> Iterator[Feature]:
    """Each feature, tried."""
    yield _tried("the cgroup2 hierarchy", "4.5", cgroup2.root)
    yield _tried("SO_NETNS_COOKIE", "5.14", context_places.netns_cookie)
    yield _tried("atomic compare-and-swap in programs", "5.12", partial(_load, _COMPARE_AND_SWAP))
    yield _tried("bpf_set_retval", "5.18", partial(_load, _SET_RETVAL))
    with ExitStack() as stack:
        maps: dict[str, int] = {}
        for name in bpf_object.built().maps:
            yield _tried(f"the map {name}", _MAPS.get(name, "4.10"), partial(_make, name, maps, stack))
            if name not in maps:
                return  # whatever wants it cannot be tried
        for section in bpf_object.built().programs:
            if section != _STEER:
                yield _tried(f"programs of {section}", KINDS[section].since, partial(_try_load, section, maps))
        yield _tried("programs at the socket lookup", KINDS[_LOOKUP].since, partial(_try_lookup, maps))
        yield _tried("programs at the ingress of links (tcx or clsact)", "6.6", partial(_try_steer, maps), needed=False)


_LOOKUP, _STEER = "floor/lookup", "floor/steer"
_MAPS = {"sockets": "5.2", "listeners": "4.18"}


def _code(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(_INSTRUCTION.pack(*one) for one in instructions)


_END = ((0xB7, 0, 0, 1), (0x95, 0, 0, 0))  # r0 = 1; exit
_SET_RETVAL = _code((0xB7, 1, 0, -1), (0x85, 0, 0, 187), *_END)
# *(u64 *)(r10 - 8) = 0; r0 = 0; r2 = 1; cmpxchg(r10 - 8, r0, r2)
_COMPARE_AND_SWAP = _code((0x7A, 10, -8, 0), (0xB7, 0, 0, 0), (0xB7, 2, 0, 1), (0xDB, 10 | 2 << 4, -8, 0xF1), *_END)


def _load(code: bytes) -> None:
    kind = KINDS["cgroup/bind4"]
    os.close(bpf_calls.prog_load("ckpt_probe", kind.program, kind.attach, code, "GPL"))


def _make(name: str, maps: dict[str, int], stack: ExitStack) -> None:
    maps[name] = bpf_calls.map_create(f"ckpt_{name}", bpf_object.built().maps[name])
    stack.callback(os.close, maps[name])


def _try_load(section: str, maps: dict[str, int]) -> None:
    os.close(bpf_object.built().load(section, maps))


def _try_lookup(maps: dict[str, int]) -> None:
    with _thrown_away() as space, ExitStack() as stack:
        program = bpf_object.built().load(_LOOKUP, maps)
        stack.callback(os.close, program)
        stack.callback(os.close, bpf_calls.link_create(program, space, KINDS[_LOOKUP].attach))


def _try_steer(maps: dict[str, int]) -> None:
    with _thrown_away() as space, ExitStack() as stack:
        program = bpf_object.built().load(_STEER, maps)
        stack.callback(os.close, program)
        with netns.entered(space), tempfile.TemporaryDirectory() as notes:
            if not context_steer.attach(_LO, program, Path(notes)):
                raise OSError(errno.EOPNOTSUPP, "the kernel has neither")


@contextlib.contextmanager
def _thrown_away() -> Iterator[int]:
    space = netns.create()
    try:
        yield space
    finally:
        os.close(space)


def _tried(name: str, since: str, attempt: Callable[[], object], *, needed: bool = True) -> Feature:
    try:
        attempt()
    except CkptError as error:
        return Feature(name=name, since=since, failure=str(error), needed=needed)
    except OSError as error:
        return Feature(name=name, since=since, failure=(error.strerror or str(error)).splitlines()[0], needed=needed)
    return Feature(name=name, since=since, failure=None, needed=needed)
