"""Locks that stay after a dump: those of a group in the host's own namespace, until its image is restored.

A group's own namespace is silent once it is gone. In the host's namespace the kernel would answer a peer's next
packet to a socket that is not there any more with a RST. So the lock on the group's sockets stays in place after the
dump that took the group away, and is written down under the id of the image that it waits for; who restores that
image, or removes it and calls `ckpt clean`, ends the silence.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from ckpt import registry
from ckpt.errors import NotFoundError
from ckpt.kernel import lock, netns
from ckpt.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLock:
    """Lock tables ``names`` in the host's namespace that wait for the image with the id ``image_id`` at ``image``.

    ``covers`` are the ports of addresses of a context that they silence (``10.0.0.5 80``).
    """

    image_id: str
    image: str
    names: tuple[str, ...]
    covers: tuple[str, ...] = ()


def hold(names: Sequence[str], image: Path, image_id: str, covers: Sequence[str] = ()) -> None:
    """Write down that the tables ``names`` stay until the image is restored."""
    note = {"image": str(image), "names": list(names), "covers": list(covers)}
    registry.write(registry.directory("locks") / f"{image_id}.json", note)


def held() -> tuple[HeldLock, ...]:
    """Every lock that waits for an image."""
    found = []
    for path in sorted((registry.state_dir() / "locks").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            raw = json.loads(path.read_text(encoding="ascii"))
            covers = tuple(raw.get("covers", ()))
            found.append(HeldLock(image_id=path.stem, image=raw["image"], names=tuple(raw["names"]), covers=covers))
    return tuple(found)


def give_way(covers: Collection[str]) -> None:
    """Remove what silences any of ``covers``, for whichever image it waits: a group is about to run there."""
    for one in held():
        if set(one.covers).intersection(covers):
            release(one.image_id)


def release(image_id: str) -> tuple[str, ...]:
    """Remove the tables that wait for the image ``image_id``, and the note of them; the names of those removed."""
    removed = []
    for one in held():
        if one.image_id != image_id:
            continue
        own = netns.open_own()
        try:
            for name in one.names:
                with contextlib.suppress(NotFoundError):
                    lock.remove(own, name)
                    removed.append(name)
        finally:
            os.close(own)
        (registry.state_dir() / "locks" / f"{image_id}.json").unlink(missing_ok=True)
    return tuple(removed)
