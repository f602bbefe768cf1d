"""Tables that traffic control demands of whoever sets it, and that it never shows: worked out anew.

Both are functions of numbers that the kernel does show. The one of packet lengths is exact; the one that tells RED
how its average falls while nothing is sent depends also on a bandwidth that is not shown, and is estimated.
"""

from __future__ import annotations

import struct

_SIZE = struct.Struct("=BBhiIIII")
_LINKLAYER_ATM = 2
_ATM_CELL, _ATM_PAYLOAD = 53, 48
_MOST_DAMPING = 31
_CELLS = 256
_STEEPEST = 384


def size_table(specification: bytes) -> bytes:
    """TCA_STAB_DATA for a tc_sizespec: what a packet of each length counts as; empty where it has no table."""
    cell_log, size_log, _, _, linklayer, mpu, _, count = _SIZE.unpack_from(specification)
    sizes = []
    for cell in range(count):
        size = max((cell + 1) << cell_log, mpu)
        if linklayer == _LINKLAYER_ATM:
            size = -(-size // _ATM_PAYLOAD) * _ATM_CELL
        sizes.append(min(size >> size_log, 0xFFFF))
    return struct.pack(f"={count}H", *sizes)


def damping_table() -> bytes:
    """TCA_RED_STAB: by how many bits the average falls after each of 256 cells of silence.

    The cells are so long that the steepest fall is reached between the 256th and the 512th; the middle is taken.
    """
    steps = (min(cell * _MOST_DAMPING // _STEEPEST, _MOST_DAMPING) for cell in range(_CELLS - 1))
    return bytes((*steps, _MOST_DAMPING))
