"""The build-id of an ELF file: the linker's note that tells two builds of one name apart.

CRIU compares build-ids of what is mapped when it restores (``--file-validation``), so ours are read alike: the first
``NT_GNU_BUILD_ID`` of a ``PT_NOTE`` segment. Files that are no ELF, or that are damaged, simply have none.
"""

from __future__ import annotations

import os
import struct

PT_NOTE = 4
NT_GNU_BUILD_ID = 3
NOTES_LIMIT = 1 << 16
"""A note segment is some hundred bytes; more than this is not read, whatever the header claims."""
HEADERS_LIMIT = 128


def build_id(path: str) -> str | None:
    """The build-id of the file at ``path`` in hexadecimal, or None."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _build_id(fd)
    except (OSError, OverflowError, struct.error):
        return None
    finally:
        os.close(fd)


def _build_id(fd: int) -> str | None:
    ident = os.pread(fd, 64, 0)
    if len(ident) < 52 or ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
        return None
    order = "<" if ident[5] == 1 else ">"
    wide = ident[4] == 2
    (phoff,) = struct.unpack_from(order + ("Q" if wide else "I"), ident, 32 if wide else 28)
    phentsize, phnum = struct.unpack_from(order + "HH", ident, 54 if wide else 42)
    for index in range(min(phnum, HEADERS_LIMIT)):
        header = os.pread(fd, phentsize, phoff + index * phentsize)
        (kind,) = struct.unpack_from(order + "I", header)
        if kind != PT_NOTE:
            continue
        offset, size = (
            struct.unpack_from(order + "Q16xQ", header, 8) if wide else struct.unpack_from(order + "I8xI", header, 4)
        )
        align = struct.unpack_from(order + ("Q" if wide else "I"), header, 48 if wide else 28)[0]
        found = _find_note(os.pread(fd, min(size, NOTES_LIMIT), offset), order, 8 if align == 8 else 4)
        if found is not None:
            return found
    return None


def _find_note(notes: bytes, order: str, align: int) -> str | None:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(order + "III", notes, at)
        name_at = at + 12
        value_at = name_at + -(-name_size // align) * align if align == 4 else at + -(-(12 + name_size) // 8) * 8
        if kind == NT_GNU_BUILD_ID and notes[name_at : name_at + 4] == b"GNU\0":
            return notes[value_at : value_at + size].hex()
        at = value_at + -(-size // align) * align
    return None
