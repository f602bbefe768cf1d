"""The bpf(2) system call: maps, programs, links, and what is attached where, as numbers and bytes.

Each function is one command of the call and raises OSError with the kernel's errno; none retries or decides. A new
descriptor is close-on-exec, as the kernel makes it, and belongs to the caller. libbpf would be one library more on
every host that a group is restored on; of what it does we need the call itself and some ninety lines of ELF
(``bpf_object``), because our programs use neither CO-RE nor global variables nor functions that are not inlined.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator

from ckpt.records import dataclass

_SYSCALL = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "s390x": 351, "riscv64": 280}

# include/uapi/linux/bpf.h, enum bpf_cmd
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY, _PROG_LOAD, _OBJ_PIN, _OBJ_GET = range(8)
_PROG_ATTACH, _PROG_DETACH = 8, 9
_PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID, _OBJ_GET_INFO = 13, 14, 15
_PROG_QUERY, _BTF_LOAD = 16, 18
_LINK_CREATE, _LINK_DETACH = 28, 34

MAP_TYPE_SK_STORAGE = 24
ALLOW_MULTI = 2
ANY, NOEXIST = 0, 1

_NAME_BYTES = 15
_LOG_BYTES = 1 << 24
_QUERIED = 64
_MAPS_OF_A_PROGRAM = 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True, kw_only=True)
class MapShape:
    """What a map is made by; ``kind`` is the kernel's number of its type."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramInfo:
    """A loaded program: the kernel's number for it, its name, and the numbers of the maps it uses."""

    id: int
    name: str
    map_ids: tuple[int, ...]


def _call(command: int, attributes: bytes, what: str) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"{what}: bpf(2) has no known number on {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result = _libc.syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes)))
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, f"{what}: {os.strerror(failed)}")
    return int(result)


def _pointer(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def _name(name: str) -> bytes:
    return name.encode()[:_NAME_BYTES].ljust(16, b"\0")


# -- maps --------------------------------------------------------------------------------------------------------------


def map_create(name: str, shape: MapShape) -> int:
    """A descriptor of a new map. One of sockets' storage gets the type information that the kernel insists on."""
    head = struct.pack("=5IiI", shape.kind, shape.key_size, shape.value_size, shape.max_entries, shape.flags, 0, 0)
    if shape.kind != MAP_TYPE_SK_STORAGE:
        return _call(_MAP_CREATE, head + _name(name), f"map {name}")
    btf = btf_load(_storage_types(shape.value_size))
    try:
        return _call(_MAP_CREATE, head + _name(name) + struct.pack("=4I", 0, btf, 1, 2), f"map {name}")
    finally:
        os.close(btf)


def _storage_types(value_size: int) -> bytes:
    """BTF: type 1 is the key, a 32-bit integer; type 2 is the value, an array of them (Documentation/bpf/btf.rst)."""
    number = struct.pack("=4I", 1, 1 << 24, 4, 32)
    array = struct.pack("=3I3I", 0, 3 << 24, 0, 1, 1, value_size // 4)
    types, strings = number + array, b"\0number\0"
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


def btf_load(data: bytes) -> int:
    """A descriptor of type information."""
    buffer = ctypes.create_string_buffer(data, len(data))
    return _call(_BTF_LOAD, struct.pack("=QQIII", _pointer(buffer), 0, len(data), 0, 0), "type information")


def _element(map_fd: int, key: bytes, value: int, flags: int = 0) -> tuple[bytes, ctypes.Array[ctypes.c_char]]:
    buffer = ctypes.create_string_buffer(key, len(key))
    return struct.pack("=IxxxxQQQ", map_fd, _pointer(buffer), value, flags), buffer


def map_update(map_fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Set ``key`` to ``value``; with NOEXIST only if it is not there (FileExistsError)."""
    held = ctypes.create_string_buffer(value, len(value))
    attributes, _key = _element(map_fd, key, _pointer(held), flags)
    _call(_MAP_UPDATE, attributes, "map update")


def map_lookup(map_fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of ``key``, or None."""
    held = ctypes.create_string_buffer(value_size)
    attributes, _key = _element(map_fd, key, _pointer(held))
    try:
        _call(_MAP_LOOKUP, attributes, "map lookup")
    except FileNotFoundError:
        return None
    return held.raw


def map_delete(map_fd: int, key: bytes) -> bool:
    """Remove ``key``; whether it was there."""
    attributes, _key = _element(map_fd, key, 0)
    try:
        _call(_MAP_DELETE, attributes, "map delete")
    except FileNotFoundError:
        return False
    return True


def map_keys(map_fd: int, key_size: int) -> Iterator[bytes]:
    """Every key. One that is removed meanwhile lets the kernel begin anew, so none is told twice."""
    told: set[bytes] = set()
    held = ctypes.create_string_buffer(key_size)
    before: bytes | None = None
    while True:
        kept = ctypes.create_string_buffer(before, key_size) if before is not None else None
        attributes = struct.pack("=IxxxxQQQ", map_fd, 0 if kept is None else _pointer(kept), _pointer(held), 0)
        try:
            _call(_MAP_NEXT_KEY, attributes, "map keys")
        except FileNotFoundError:
            return
        before = held.raw
        if before not in told:
            told.add(before)
            yield before
        elif len(told) > 1 << 20:
            return


# -- programs ----------------------------------------------------------------------------------------------------------


def prog_load(name: str, kind: int, attach_type: int, code: bytes, license: str) -> int:
    """A descriptor of a loaded program; OSError has the verifier's last words."""
    held = ctypes.create_string_buffer(code, len(code))
    text = ctypes.create_string_buffer(license.encode())

    def load(level: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
        place, size = (0, 0) if log is None else (_pointer(log), len(log))
        head = struct.pack("=IIQQIIQII", kind, len(code) // 8, _pointer(held), _pointer(text), level, size, place, 0, 0)
        return _call(_PROG_LOAD, head + _name(name) + struct.pack("=II", 0, attach_type), f"program {name}")

    try:
        return load(0, None)
    except OSError as error:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return load(1, log)
        except OSError:
            words = "\n".join(log.value.decode(errors="replace").splitlines()[-12:])
            raise OSError(error.errno, f"{error.strerror}\n{words}".strip()) from error


def prog_attach(target: int, program: int, attach_type: int, flags: int = 0) -> None:
    """Attach to a cgroup (a descriptor) or a link (its index); it stays when we are gone."""
    _call(_PROG_ATTACH, struct.pack("=IIIII", target, program, attach_type, flags, 0), "attach")


def prog_detach(target: int, program: int, attach_type: int) -> None:
    """Undo ``prog_attach``."""
    _call(_PROG_DETACH, struct.pack("=IIIII", target, program, attach_type, 0, 0), "detach")


def prog_query(target: int, attach_type: int) -> tuple[int, ...]:
    """The numbers of the programs that are attached to ``target`` itself; none where the kernel lacks the type."""
    room = _QUERIED
    while True:
        held = (ctypes.c_uint32 * room)()
        attributes = struct.pack("=IIIIQIxxxxQQQQ", target, attach_type, 0, 0, ctypes.addressof(held), room, 0, 0, 0, 0)
        buffer = ctypes.create_string_buffer(attributes, 128)
        number = ctypes.c_long(_SYSCALL.get(platform.machine(), -1))
        result = _libc.syscall(number, ctypes.c_int(_PROG_QUERY), buffer, ctypes.c_uint(len(attributes)))
        failed = ctypes.get_errno() if result < 0 else 0
        if failed == errno.ENOSPC:
            room *= 2
            continue
        # No such type, no bpf(2) at all, or not for us: nothing that we could have attached.
        if failed in (errno.EINVAL, errno.ENOENT, errno.ENOSYS, errno.EPERM):
            return ()
        if failed:
            raise OSError(failed, f"query: {os.strerror(failed)}")
        (count,) = struct.unpack_from("=I", buffer.raw, 24)
        return tuple(held[:count])


def link_create(program: int, target: int, attach_type: int) -> int:
    """A descriptor of a new link between ``program`` and ``target``, which lasts as long as the descriptor or a pin."""
    return _call(_LINK_CREATE, struct.pack("=IIIIIIQ", program, target, attach_type, 0, 0, 0, 0), "link")


def link_detach(link: int) -> None:
    """End a link at once, whoever holds it. When the last who does lets go, it ends too, but somewhat later."""
    _call(_LINK_DETACH, struct.pack("=I", link), "link")


def prog_by_id(number: int) -> int:
    """A descriptor of the program that has that number; FileNotFoundError when it is gone."""
    return _call(_PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), f"program {number}")


def map_by_id(number: int) -> int:
    """A descriptor of the map that has that number; FileNotFoundError when it is gone."""
    return _call(_MAP_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), f"map {number}")


def _info(fd: int, size: int, given: bytes = b"") -> bytes:
    held = ctypes.create_string_buffer(given, size)
    _call(_OBJ_GET_INFO, struct.pack("=IIQ", fd, size, _pointer(held)), "information")
    return held.raw


def prog_info(program: int) -> ProgramInfo:
    """What the kernel tells of a program. Offsets: struct bpf_prog_info."""
    maps = (ctypes.c_uint32 * _MAPS_OF_A_PROGRAM)()
    asked = bytes(52) + struct.pack("=IQ", _MAPS_OF_A_PROGRAM, ctypes.addressof(maps))
    raw = _info(program, 80, asked)
    (count,) = struct.unpack_from("=I", raw, 52)
    name = raw[64:80].split(b"\0")[0].decode(errors="replace")
    return ProgramInfo(
        id=struct.unpack_from("=I", raw, 4)[0], name=name, map_ids=tuple(maps[: min(count, _MAPS_OF_A_PROGRAM)])
    )


def map_name(map_fd: int) -> str:
    """The name of a map. Offset: struct bpf_map_info."""
    return _info(map_fd, 80)[24:40].split(b"\0")[0].decode(errors="replace")


def netns_of_link(link: int) -> int:
    """The inode of the network namespace that a link belongs to; 0 when that is gone. Offsets: struct bpf_link_info."""
    (inode,) = struct.unpack_from("=I", _info(link, 32), 16)
    return int(inode)


# -- pins --------------------------------------------------------------------------------------------------------------


def pin(fd: int, path: str) -> None:
    """Give a map, a program or a link a name in a BPF file system, which keeps it."""
    held = ctypes.create_string_buffer(os.fsencode(path))
    _call(_OBJ_PIN, struct.pack("=QII", _pointer(held), fd, 0), f"pin {path}")


def unpinned(path: str) -> int:
    """A descriptor of what is pinned at ``path``."""
    held = ctypes.create_string_buffer(os.fsencode(path))
    return _call(_OBJ_GET, struct.pack("=QII", _pointer(held), 0, 0), f"pin {path}")
