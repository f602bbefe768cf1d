"""A group dumped and restored: `ckpt` against raw `criu` that writes a directory on the same file system.

Every peer gets a group of its own that `ckpt run` has started, so that all freeze and restore the same: one process
with a network namespace, a PID namespace and so many megabytes, half of whose pages compress. Raw criu takes the
namespace as external and keeps nothing of the network; ckpt reads the network, and writes one file that is on the disk
(fsync) when it says so, compressed or not. ``criu tar`` makes one such file of CRIU's directory by tar(1) and zstd(1),
at the level of ckpt's own and with as many threads; where there is no zstd(1), it is left out. Times are those of the
commands from start to end, their own start included; ``frozen`` is what each says of itself. A further peer is one more
entry in ``_peers``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches import measure
from benches.measure import Peer, Row, Seconds
from ckpt.kernel import criu, ending, netns

CKPT = Path(sys.executable).with_name("ckpt")
NETNS_KEY = "bench-netns"
READY = "ready"

# Pages of noise and pages of text in turn: about as compressible as the heap of a server.
PROGRAM = """
import os, random, sys, time
noise, text = random.Random(1).randbytes(4096), b"the quick brown fox " * 205
pages = [bytearray(random.Random(n).randbytes(4096) if n % 2 else text[:4096]) for n in range(int(sys.argv[1]) << 8)]
print("ready", flush=True)
while True: time.sleep(1000)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A running group; ``pid`` is its root."""

    name: str
    pid: int


def compare(megabytes: int, rounds: int, place: Path) -> list[Row]:
    """Dump and restore a group of that size, in turn."""
    return measure.compare(f"{megabytes} MB", _peers(megabytes, place), rounds)


def _peers(megabytes: int, place: Path) -> Sequence[Peer]:
    """The reference first."""

    def peer(name: str, dump: Callable[[Group, Path], Seconds]) -> Peer:
        def measured() -> Seconds:
            with _group(megabytes) as group, _directory(place) as directory:
                return dump(group, directory)

        return Peer(name=name, measure=measured)

    return (
        peer("criu", _criu),
        *([peer("criu tar", _criu_tar)] if shutil.which("zstd") else []),
        peer("ckpt zstd", lambda group, directory: _ckpt(group, directory, "zstd")),
        peer("ckpt lz4", lambda group, directory: _ckpt(group, directory, "lz4")),
        peer("ckpt none", lambda group, directory: _ckpt(group, directory, "none")),
    )


def _ckpt(group: Group, directory: Path, codec: str) -> Seconds:
    image = directory / "group.ckpt"
    begin = time.perf_counter()
    report = _output("dump", group.name, "-o", str(image), "--compress", codec)
    dumped = time.perf_counter()
    _output("restore", str(image))
    restored = time.perf_counter()
    return {"dump": dumped - begin, "frozen": report["frozen_seconds"], "restore": restored - dumped}


def _criu_tar(group: Group, directory: Path) -> Seconds:
    """By hand: the directory is packed when the group has gone, and unpacked before it comes back."""
    images, archive = directory / "images", directory / "images.tar.zst"
    images.mkdir()

    def pack() -> None:
        _shell(f"tar --create --directory={images} . | zstd -q -1 -T0 -o {archive} && sync {archive}")
        shutil.rmtree(images)
        images.mkdir()

    def unpack() -> None:
        _shell(f"zstd -q --decompress --stdout {archive} | tar --extract --directory={images}")

    return _criu(group, images, pack, unpack)


def _nothing() -> None:
    pass


def _criu(
    group: Group, directory: Path, dumped: Callable[[], None] = _nothing, awaited: Callable[[], None] = _nothing
) -> Seconds:
    """CRIU alone; ``dumped`` and ``awaited`` are a part of the dump and of the restore."""
    program = criu.find()
    with ExitStack() as stack:
        space = netns.open_of(group.pid)
        stack.callback(os.close, space)
        common = ["-D", str(directory), "-o", "log", "--manage-cgroups=ignore"]
        external = f"net[{netns.inode(space)}]:{NETNS_KEY}"
        begin = time.perf_counter()
        _run(program.path, "dump", "-t", str(group.pid), *common, "--external", external)
        dumped()
        half = time.perf_counter()
        awaited()
        pidfile = directory / "pid"
        inherit = f"fd[{space}]:{NETNS_KEY}"
        argv = [program.path, "restore", "-d", *common, "--pidfile", str(pidfile), "--inherit-fd", inherit]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, pass_fds=[space])
        restored = time.perf_counter()
        stack.callback(ending.end_tree, int(pidfile.read_text()), timeout=0)
        with (directory / "stats-dump").open("rb") as source:
            stats = program.pycriu("images").load(source)["entries"][0]["dump"]
    return {"dump": half - begin, "frozen": stats["frozen_time"] / 1e6, "restore": restored - half}


@contextmanager
def _group(megabytes: int) -> Iterator[Group]:
    name = f"bench-{secrets.token_hex(4)}"
    _run(str(CKPT), "run", "--name", name, "--", sys.executable, "-c", PROGRAM, str(megabytes))
    try:
        (group,) = (one for one in _output("ps") if one["name"] == name)
        log = Path(os.environ["CKPT_LOG_DIR"], f"{name}.log")
        while READY not in log.read_text():
            time.sleep(0.02)
        yield Group(name=name, pid=group["pid"])
    finally:
        subprocess.run([CKPT, "stop", "--timeout", "0", name], check=False, capture_output=True)


@contextmanager
def _directory(place: Path) -> Iterator[Path]:
    """A fresh directory; what the last peer has written does not lie in the way of the next one's writing."""
    directory = place / secrets.token_hex(4)
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
        os.sync()


def _shell(command: str) -> None:
    _run("bash", "-o", "pipefail", "-c", command)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def _output(*words: str) -> Any:
    return json.loads(subprocess.run([CKPT, "--json", *words], check=True, stdout=subprocess.PIPE).stdout)
