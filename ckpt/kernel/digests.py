"""Digests of files: what tells two of one size apart."""

from __future__ import annotations

import hashlib
import os
import stat

_CHUNK = 1 << 20


def digest(path: str, size: int) -> str | None:
    """BLAKE2b-256 of the first ``size`` bytes of a regular file; None when it has fewer, or cannot be read."""
    found = hashlib.blake2b(digest_size=32)
    left = size
    try:
        # It may have become a FIFO since it was looked at.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            while left and (data := file.read(min(left, _CHUNK))):
                found.update(data)
                left -= len(data)
    except OSError:
        return None
    return None if left else found.hexdigest()
