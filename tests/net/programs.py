"""BPF programs for the tests: loaded by the system call, attached by netlink, without a compiler."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import socket
import struct
from collections.abc import Iterator

import pytest

from ckpt.kernel.netlink import NLM_F_CREATE, Netlink, attribute, nested, string, u32

_SYSCALL = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _PROG_ATTACH = 5, 8
XDP, SCHED_CLS, LWT_XMIT = 6, 3, 12
TCX_INGRESS = 46
# r0 = 2; exit
_PASS = struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, 128)
    return int(_libc.syscall(_SYSCALL.get(platform.machine(), -1), command, buffer, 128))


@contextlib.contextmanager
def loaded(kind: int) -> Iterator[int]:
    """A descriptor of a program of that kind that lets everything pass."""
    code, name = ctypes.create_string_buffer(_PASS, len(_PASS)), ctypes.create_string_buffer(b"GPL")
    fd = _bpf(_PROG_LOAD, struct.pack("=IIQQ", kind, 2, ctypes.addressof(code), ctypes.addressof(name)))
    if fd < 0:
        pytest.skip("this kernel loads no BPF programs for us")
    try:
        yield fd
    finally:
        os.close(fd)


def attach_xdp(space: int, index: int, program: int) -> None:
    with Netlink(netns=space) as connection:
        body = struct.pack("=BxHiII", 0, 0, index, 0, 0) + nested(43, attribute(1, u32(program)))
        connection.request(19, body)


def attach_filter(space: int, index: int, program: int) -> None:
    """As a filter at the ingress of a link that has clsact."""
    options = nested(2, attribute(6, u32(program)), attribute(7, string("let-pass")))
    header = struct.pack("=BxxxiIII", 0, index, 0, 0xFFFFFFF2, 5 << 16 | socket.htons(0x0800))
    with Netlink(netns=space) as connection:
        connection.request(44, header + attribute(1, string("bpf")) + options, NLM_F_CREATE)


def attach_to_route(space: int, index: int, program: int) -> None:
    """As the encapsulation of the route to 10.77.0.0/16."""
    around = nested(22, nested(3, attribute(1, u32(program)), attribute(2, string("let-pass"))))
    header = struct.pack("=BBBBBBBBI", 2, 16, 0, 0, 254, 4, 253, 1, 0)
    parts = attribute(1, bytes((10, 77, 0, 0))) + attribute(4, u32(index)) + attribute(21, struct.pack("=H", 6))
    with Netlink(netns=space) as connection:
        connection.request(24, header + parts + around, NLM_F_CREATE)


def attach_tcx(index: int, program: int) -> bool:
    """To a link of the caller's namespace; False where the kernel has no such thing."""
    return _bpf(_PROG_ATTACH, struct.pack("=IIII", index, program, TCX_INGRESS, 0)) == 0
