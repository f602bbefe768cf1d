"""The program at the ingress of a link: by tcx (Linux 6.6), and before that as a filter of clsact.

A filter is known by its name. Where ckpt had to give a link its clsact, that is written down beside the registry, so
that it goes with the last filter; one that somebody else had made stays.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

from ckpt.errors import NetworkError
from ckpt.kernel import bpf_calls, netlink
from ckpt.kernel.bpf_object import KINDS
from ckpt.kernel.netlink import KernelRefusal, Netlink, attribute, nested, parse, string, u32

_STEER = "floor/steer"
_NAME = "ckpt_steer"
_RTM_NEWQDISC, _RTM_DELQDISC = 36, 37
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_CREATE, _EXCLUSIVE = 0x400, 0x200
_TCMSG = struct.Struct("=BxxxiIII")
_CLSACT_HANDLE, _CLSACT, _INGRESS, _EGRESS = 0xFFFF0000, 0xFFFFFFF1, 0xFFFFFFF2, 0xFFFFFFF3
_PRIORITY = 49152
_ALL_PROTOCOLS = socket.htons(3)
_KIND, _OPTIONS = 1, 2
_BPF_FD, _BPF_NAME, _BPF_FLAGS = 6, 7, 8
_DIRECT_ACTION = 1


def is_attached(ifindex: int) -> bool:
    """Whether the link has the program."""
    return _by_tcx(ifindex) is not None or _by_filter(ifindex) is not None


def attach(ifindex: int, program: int, notes: Path) -> bool:
    """Give the link the program; False when it is gone or cannot have it. ``notes`` is where clsact is noted."""
    try:
        bpf_calls.prog_attach(ifindex, program, KINDS[_STEER].attach)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        if error.errno != errno.EINVAL:
            raise
        return _attach_filter(ifindex, program, notes)
    return True


def _attach_filter(ifindex: int, program: int, notes: Path) -> bool:
    with Netlink() as kernel:
        try:
            body = _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, string("clsact"))
            kernel.request(_RTM_NEWQDISC, body, _CREATE | _EXCLUSIVE)
            with (notes / "clsact").open("a") as known:
                known.write(f"{_space()} {ifindex}\n")
        except KernelRefusal as error:
            if error.errno != errno.EEXIST:
                return False  # the kernel has none, or the link another kind of ingress
        options = attribute(_BPF_FD, u32(program)) + attribute(_BPF_NAME, string(_NAME))
        options += attribute(_BPF_FLAGS, u32(_DIRECT_ACTION))
        head = _TCMSG.pack(0, ifindex, 0, _INGRESS, _PRIORITY << 16 | _ALL_PROTOCOLS)
        try:
            kernel.request(_RTM_NEWTFILTER, head + attribute(_KIND, string("bpf")) + nested(_OPTIONS, options), _CREATE)
        except KernelRefusal:
            return False
    return True


def detach(ifindex: int, notes: Path) -> bool:
    """Take the program from the link; whether it was there."""
    number = _by_tcx(ifindex)
    if number is not None:
        program = bpf_calls.prog_by_id(number)
        try:
            bpf_calls.prog_detach(ifindex, program, KINDS[_STEER].attach)
        finally:
            os.close(program)
        return True
    found = _by_filter(ifindex)
    if found is None:
        return False
    try:
        with Netlink() as kernel:
            kernel.request(_RTM_DELTFILTER, found)
            known = (notes / "clsact").read_text().splitlines() if (notes / "clsact").exists() else []
            if f"{_space()} {ifindex}" in known and not _filters(kernel, ifindex, _INGRESS, _EGRESS):
                body = _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, string("clsact"))
                kernel.request(_RTM_DELQDISC, body)
    except KernelRefusal as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT):
            raise NetworkError(
                f"the program at link {ifindex} cannot be removed", code="context-steer", details=error.strerror
            ) from error
    return True


def _space() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def _by_tcx(ifindex: int) -> int | None:
    for number in bpf_calls.prog_query(ifindex, KINDS[_STEER].attach):
        try:
            program = bpf_calls.prog_by_id(number)
        except FileNotFoundError:
            continue
        try:
            if bpf_calls.prog_info(program).name == _NAME:
                return number
        finally:
            os.close(program)
    return None


def _by_filter(ifindex: int) -> bytes | None:
    """What names the filter in a request to remove it; None when the link has none."""
    with Netlink() as kernel:
        for body in _filters(kernel, ifindex, _INGRESS):
            found = parse(body, _TCMSG.size)
            options = parse(found.get(_OPTIONS, b"")) if netlink.text(found.get(_KIND, b"")) == "bpf" else {}
            if netlink.text(options.get(_BPF_NAME, b"")) == _NAME:
                return body[: _TCMSG.size] + attribute(_KIND, string("bpf"))
    return None


def _filters(kernel: Netlink, ifindex: int, *parents: int) -> list[bytes]:
    found = []
    for parent in parents:
        try:
            listed = kernel.dump(_RTM_GETTFILTER, _TCMSG.pack(0, ifindex, 0, parent, 0))
        except KernelRefusal:
            continue  # no clsact, or no traffic control at all
        found += [body for _, body in listed if _OPTIONS in parse(body, _TCMSG.size)]
    return found
