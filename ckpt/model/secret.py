"""What an image must hold and nobody should be shown."""

from __future__ import annotations

import hashlib

from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Secret:
    """Bytes of which only a digest is shown: that two are the same can be seen, but not what they are."""

    value: bytes

    def __str__(self) -> str:
        return f"SHA-256 {hashlib.sha256(self.value).hexdigest()[:8]}…"

    def __repr__(self) -> str:
        return str(self)
