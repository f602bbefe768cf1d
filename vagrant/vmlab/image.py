"""Disks and kernels, made by ``vagrant/build-image`` and kept under the digest of all that they are made from.

An image is asked for by the name of a suite, ``trixie`` or ``bookworm``, and of an init where it is not busybox:
``trixie-systemd``; ``trixie-box`` is what ``vagrant/build-box`` packs, and ``trixie-modules`` has links of all kinds.
What the archive has newer does not count: ``lab build --again`` fetches it. An image that nobody has asked for in a
while is removed when another one is made.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
import tomllib
from pathlib import Path

from vmlab.places import CHECKOUT, HERE, LabError

SUITES = ("trixie", "bookworm")
INITS = ("busybox", "systemd", "box", "modules")
KEEP_DAYS = 14
BUILD_SECONDS = 900
# What runs on the developer's side only.
_NOT_INSIDE = ("mypy", "ruff", "types-")


def cache() -> Path:
    """Where images are kept."""
    return Path(os.environ.get("CKPT_VM_CACHE", "/var/cache/ckpt/vm"))


def ready(name: str, *, again: bool = False) -> Path:
    """The directory of that image, built if it has to be."""
    suite, init = _parsed(name)
    place = cache()
    place.mkdir(parents=True, exist_ok=True)
    found = place / f"{name}-{_digest(suite, init)}"
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever asks meanwhile finds it
        if again or not found.exists():
            _build(suite, init, found)
            _prune(place)
        os.utime(found)
    return found


def requirements() -> list[str]:
    """What ckpt and its tests need of PyPI inside of a machine."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    return [one for one in wanted if not one.startswith(_NOT_INSIDE)]


def _parsed(name: str) -> tuple[str, str]:
    suite, _, init = name.partition("-")
    init = init or "busybox"
    if suite not in SUITES or init not in INITS:
        raise LabError(f"there is no image {name!r}: take {', '.join(SUITES)}, or one of these with -systemd")
    return suite, init


def _digest(suite: str, init: str) -> str:
    packages = subprocess.run(
        [CHECKOUT / "scripts/setup", "--packages"], check=True, capture_output=True, text=True
    ).stdout
    parts = [suite, init, packages, *requirements(), (HERE / "build-image").read_text()]
    parts += [path.read_text() for path in sorted((HERE / "guest").iterdir())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build(suite: str, init: str, found: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=found.parent))
    wanted = work / "requirements"
    try:
        wanted.write_text("".join(f"{one}\n" for one in requirements()))
        argv = [str(HERE / "build-image"), suite, init, str(wanted), str(work / "image")]
        # stdin: what is asked for in the middle of a build would wait for ever.
        done = subprocess.run(argv, timeout=BUILD_SECONDS, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise LabError(f"the image {found.name} could not be built; the reason is above")
        if found.exists():
            shutil.rmtree(found)
        (work / "image").rename(found)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"the image {found.name} was not built within {BUILD_SECONDS} s") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _prune(place: Path) -> None:
    for path in place.iterdir():
        if path.is_dir() and time.time() - path.stat().st_mtime > KEEP_DAYS * 86400:
            shutil.rmtree(path)
