"""A group dumped into one file and restored from it: `ckpt` against `podman container checkpoint` and `restore`.

Both freeze the program of `benches.dump` and end with a compressed file: podman with a container that has no network,
run by runc, ckpt with a group that has one. podman and runc are installed where they are not there. The container's
image is this host's Python and what that loads. Everything of podman's lies below the benchmark's own directory.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sysconfig
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benches import dump, host, measure
from benches.dump import READY, Shape
from benches.measure import Peer, Row, Seconds
from ckpt.kernel import criu

GOALS = {("dump", "ckpt"): 0.5, ("restore", "ckpt"): 0.5}
PACKAGES = {"podman": "podman", "runc": "runc"}
PYTHON = Path(os.path.realpath("/usr/bin/python3"))
IMAGE = "localhost/bench:1"

# CAP_SYS_RESOURCE may be lacking, and podman would raise these.
_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")


class Podman:
    """A podman whose containers and images are in ``place``."""

    def __init__(self, place: Path) -> None:
        self._store = place / "store"
        program = Path(criu.find().path)
        self._environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
        self._argv = ["podman", "--root", str(self._store), "--runroot", f"{place}/run", "--tmpdir", f"{place}/tmp"]
        self._argv += ["--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime", str(shutil.which("runc"))]
        archive = place / "python.tar"
        _pack_python(archive)
        self("import", str(archive), IMAGE)
        archive.unlink()

    def __call__(self, *words: str) -> str:
        """Run it, and return what it prints."""
        done = subprocess.run([*self._argv, *words], check=True, capture_output=True, env=self._environment)
        return done.stdout.decode()

    def end(self) -> None:
        """Remove the containers, and the mounts that are left below the store."""
        self("rm", "--force", "--all", "--time", "0")
        subprocess.run(["umount", "--lazy", f"{self._store}/overlay"], check=False, stderr=subprocess.DEVNULL)


def compare(shapes: Sequence[Shape], rounds: int, place: Path) -> list[Row]:
    """Dump and restore groups of those shapes, in turn; podman is the reference."""
    host.install(PACKAGES)
    podman = Podman(place)
    try:
        return [
            row for shape in shapes for row in measure.compare(str(shape), _peers(podman, shape, place), rounds, GOALS)
        ]
    finally:
        podman.end()


def _peers(podman: Podman, shape: Shape, place: Path) -> Sequence[Peer]:
    return (
        Peer(name="podman", measure=lambda: _podman(podman, shape, place)),
        Peer(name="ckpt", measure=lambda: _ckpt(shape, place)),
    )


def _podman(podman: Podman, shape: Shape, place: Path) -> Seconds:
    name = f"bench-{secrets.token_hex(4)}"
    program = (str(PYTHON), "-c", dump.PROGRAM, *shape.arguments)
    podman("run", "--detach", "--name", name, "--network=none", *_LIMITS, IMAGE, *program)
    try:
        while READY not in podman("logs", name):
            time.sleep(0.05)
        with dump.fresh(place) as directory:
            host.fetch_memory(4 * shape.megabytes)
            archive = str(directory / "container.tar")
            begin = time.perf_counter()
            podman("container", "checkpoint", "--tcp-established", "--export", archive, "--compress=zstd", name)
            dumped = time.perf_counter()
            podman("rm", name)
            half = time.perf_counter()
            podman("container", "restore", "--tcp-established", "--import", archive)
            restored = time.perf_counter()
    finally:
        podman("rm", "--force", "--time", "0", name)
    return {"dump": dumped - begin, "restore": restored - half}


def _ckpt(shape: Shape, place: Path) -> Seconds:
    with dump.running(shape) as group, dump.fresh(place) as directory:
        host.fetch_memory(4 * shape.megabytes)
        seconds = dump.ckpt(group, directory, "zstd")
    return {"dump": seconds["dump"], "restore": seconds["restore"]}


def _pack_python(archive: Path) -> None:
    library = Path(sysconfig.get_path("stdlib", vars={"base": "/usr", "installed_base": "/usr"}))
    modules = list(library.glob("lib-dynload/*.so"))
    with tarfile.open(archive, "w") as tar:
        for name in ("tmp", "proc", "sys", "dev", "etc", "run"):
            tar.add("/", arcname=name, recursive=False)
        tar.add(library, filter=_wanted)
        for file in sorted({str(PYTHON), *_libraries([PYTHON, *modules])}):
            tar.add(os.path.realpath(file), arcname=file.lstrip("/"))


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if re.search(r"/(test|__pycache__|ensurepip|config-[^/]*)$", entry.name) else entry


def _libraries(files: list[Path]) -> Iterator[str]:
    for file in files:
        yield from re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", file], capture_output=True, text=True).stdout)
