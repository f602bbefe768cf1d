"""A group dumped and restored: `ckpt` against raw `criu` that writes a directory on the same file system.

Every peer gets a group of its own that `ckpt run` has started, so that all freeze and restore the same: processes with
a network namespace, a PID namespace and so many megabytes, half of whose pages compress, unless another shape is asked
for. Raw criu takes the namespace as external and keeps nothing of the network; ckpt reads the network, and writes one
file that is on the disk (fsync) when it says so, compressed or not; ``ckpt running`` lets the group run on. ``criu
sync`` is criu with its files on the disk, too. ``criu tar`` makes one such file of CRIU's directory by tar(1) and
zstd(1), at the level of ckpt's own and with as many threads; where there is no zstd(1), it is left out. Times are those
of the commands from start to end, their own start included; ``frozen`` is what each says of itself. A further peer is
one more entry in ``_peers``.
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

from benches import host, measure
from benches.measure import Peer, Row, Seconds
from ckpt.kernel import criu, ending, netns

CKPT = Path(sys.executable).with_name("ckpt")
NETNS_KEY = "bench-netns"
READY = "ready"

# What each process has of the memory are pages of noise, of text, or of both in turn, which is about as compressible as
# the heap of a server. The connections are between two sockets of the first process.
PROGRAM = """
import os, random, resource, socket, sys, time
megabytes, memory, processes, connections = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
read, write = os.pipe()
first = all(os.fork() for _ in range(processes - 1))
text = (b"the quick brown fox " * 205)[:4096]
is_noise = {"noise": lambda n: True, "text": lambda n: False, "mixed": lambda n: n % 2}[memory]
count = (megabytes << 8) // processes
pages = [bytearray(random.Random(n).randbytes(4096) if is_noise(n) else text) for n in range(count)]
if first:
    os.close(write)
    os.read(read, 1)
    os.close(read)
    server = socket.create_server(("127.0.0.1", 7), backlog=128)
    held = []
    for _ in range(connections):
        held += [socket.create_connection(server.getsockname()), server.accept()[0]]
    print("ready", flush=True)
else:
    os.close(read)
    os.close(write)
while True: time.sleep(1000)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a group is like; ``memory`` is noise, text or mixed."""

    megabytes: int
    memory: str = "mixed"
    processes: int = 1
    connections: int = 0

    @property
    def arguments(self) -> tuple[str, ...]:
        """What PROGRAM is told."""
        return str(self.megabytes), self.memory, str(self.processes), str(self.connections)

    def __str__(self) -> str:
        said = [f"{self.megabytes} MB"]
        said += [self.memory] if self.memory != "mixed" else []
        said += [f"{self.processes} processes"] if self.processes > 1 else []
        said += [f"{self.connections} connections"] if self.connections else []
        return ", ".join(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A running group; ``pid`` is its root."""

    name: str
    pid: int


GOALS = {
    ("dump", "ckpt none"): 1.15,
    ("restore", "ckpt none"): 1.15,
    ("frozen", "ckpt none"): 1.1,
    ("frozen", "ckpt running"): 1.0,
}


def compare(shape: Shape, rounds: int, place: Path) -> list[Row]:
    """Dump and restore a group of that shape, in turn."""
    return measure.compare(str(shape), _peers(shape, place), rounds, GOALS)


def _peers(shape: Shape, place: Path) -> Sequence[Peer]:
    """The reference first."""

    def peer(name: str, dump: Callable[[Group, Path], Seconds]) -> Peer:
        def measured() -> Seconds:
            with running(shape) as group, fresh(place) as directory:
                host.fetch_memory(4 * shape.megabytes)
                return dump(group, directory)

        return Peer(name=name, measure=measured)

    return (
        peer("criu", _criu),
        peer("criu sync", _criu_sync),
        *([peer("criu tar", _criu_tar)] if shutil.which("zstd") else []),
        peer("ckpt zstd", lambda group, directory: ckpt(group, directory, "zstd")),
        peer("ckpt lz4", lambda group, directory: ckpt(group, directory, "lz4")),
        peer("ckpt none", lambda group, directory: ckpt(group, directory, "none")),
        peer("ckpt running", _ckpt_running),
    )


def ckpt(group: Group, directory: Path, codec: str) -> Seconds:
    """By ckpt, compressed by ``codec``."""
    image = directory / "group.ckpt"
    begin = time.perf_counter()
    report = _output("dump", group.name, "-o", str(image), "--compress", codec)
    dumped = time.perf_counter()
    _output("restore", str(image))
    restored = time.perf_counter()
    return {"dump": dumped - begin, "frozen": report["frozen_seconds"], "restore": restored - dumped}


def _ckpt_running(group: Group, directory: Path) -> Seconds:
    """A group that runs on: it does so before the image is written."""
    begin = time.perf_counter()
    report = _output("dump", group.name, "--leave-running", "-o", str(directory / "group.ckpt"), "--compress", "none")
    return {"dump": time.perf_counter() - begin, "frozen": report["frozen_seconds"]}


def _criu_sync(group: Group, directory: Path) -> Seconds:
    """As safe on the disk as what ckpt says that it has written."""
    return _criu(group, directory, lambda: _shell(f"sync {directory}/*"))


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
        common = ["-D", str(directory), "-o", "log", "--manage-cgroups=ignore", "--tcp-established"]
        external = f"net[{netns.inode(space)}]:{NETNS_KEY}"
        begin = time.perf_counter()
        _run(program.path, "dump", "-t", str(group.pid), *common, "--external", external, "--network-lock", "skip")
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
def running(shape: Shape) -> Iterator[Group]:
    """A group of that shape, which runs."""
    name = f"bench-{secrets.token_hex(4)}"
    _run(str(CKPT), "run", "--name", name, "--", sys.executable, "-c", PROGRAM, *shape.arguments)
    try:
        (group,) = (one for one in _output("ps") if one["name"] == name)
        log = Path(os.environ["CKPT_LOG_DIR"], f"{name}.log")
        while READY not in log.read_text():
            time.sleep(0.02)
        yield Group(name=name, pid=group["pid"])
    finally:
        subprocess.run([CKPT, "stop", "--timeout", "0", name], check=False, capture_output=True)


@contextmanager
def fresh(place: Path) -> Iterator[Path]:
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
