"""Print so many bytes of 8-byte counters: no two blocks are alike.

counters_file.py BYTES
"""

from __future__ import annotations

import struct
import sys

BLOCK = 1 << 13
for first in range(0, int(sys.argv[1]) // 8, BLOCK):
    sys.stdout.buffer.write(struct.pack(f">{BLOCK}Q", *range(first, first + BLOCK)))
