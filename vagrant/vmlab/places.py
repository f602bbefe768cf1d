"""Where things are, who the machines are, and how what cannot go on is told."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
CHECKOUT = HERE.parent

SWITCH = "10.87.0.1"
"""The lab's own address on the private network, from which it reaches the machines."""


class LabError(Exception):
    """What cannot go on: the message says what, why, and what to do."""


def addresses() -> dict[str, str]:
    """The machines' addresses, by name, in the order of the file."""
    lines = (line.partition("#")[0].split() for line in (HERE / "hosts").read_text().splitlines())
    return {words[0]: words[1] for words in lines if words}


def default_lab() -> Path:
    """The directory of this checkout's lab, or what CKPT_LAB names. A short path: there will be sockets in it."""
    mark = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]
    return Path(os.environ.get("CKPT_LAB") or f"/var/tmp/ckpt-lab-{mark}")
