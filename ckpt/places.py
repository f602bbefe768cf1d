"""Where on a host ckpt keeps what outlives a command, and a boot."""

from __future__ import annotations

from pathlib import Path

IMAGES = Path("/var/lib/ckpt")
"""Where an image goes that was given no name; records of what is under way lie in directories below it."""
