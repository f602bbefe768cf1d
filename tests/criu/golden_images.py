"""Makes the real images of `images/golden/`: small groups, dumped in a place that says nothing of this machine.

    unshare --net --mount --uts --propagation private .venv/bin/python -m tests.criu.golden_images DIRECTORY [NAME]...

Run by hand, in the root cgroup, when a format version is new or holds something new; an image of the repository is
never made again.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

RUN = {"CKPT_STATE_DIR": "/run/ckpt", "CKPT_LOG_DIR": "/run/ckpt-logs"}
FIREWALL = (
    "add table inet filter",
    "add set inet filter peers { type ipv4_addr; elements = { 10.9.0.1 }; }",
    "add chain inet filter input { type filter hook input priority 0; policy drop; }",
    "add rule inet filter input ct state established counter accept",
    "add rule inet filter input ip saddr @peers tcp dport 6379 accept",
    "add rule inet filter input iif lo accept",
)
PLAIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def stage() -> None:
    """A host of the images' own: its name, its network, and empty places for what ckpt writes."""
    socket.sethostname("source")
    for command in (
        "mount -t tmpfs tmpfs /run",
        "mkdir -m 700 /run/ckpt /run/ckpt-logs /run/images",
        "ip link set lo up",
        "ip link add br0 type bridge",
        "ip address add 10.9.0.1/24 dev br0",
        "ip link set br0 up",
    ):
        subprocess.run(command.split(), check=True)


def sleeper() -> None:
    """The least there can be: one program, no link but lo; compressed with lz4."""
    ckpt("run", "--clear-env", "--name", "sleeper", "--", "sleep", "1000000")
    ckpt("dump", "sleeper", "--compress", "lz4", "-o", "/run/images/sleeper.ckpt")


def redis() -> None:
    """A server with a connected client, a route, a rule, a firewall with a counter and a set, and a tracked flow."""
    network = ("--link", "br0", "--address", "10.9.0.2/24", "--address", "fd00::2/64", "--gateway", "10.9.0.1")
    server = ("redis-server", "--bind", "10.9.0.2", "--protected-mode", "no", "--save", "")
    ckpt("run", "--clear-env", "--name", "redis", *network, "--", *server)
    inside = ("exec", "redis", "--")
    ckpt(*inside, "ip", "route", "add", "blackhole", "192.0.2.0/24", "table", "100")
    ckpt(*inside, "ip", "rule", "add", "from", "10.9.0.2", "lookup", "100", "priority", "1000")
    ckpt(*inside, "nft", "; ".join(FIREWALL))
    time.sleep(1)
    with socket.create_connection(("10.9.0.2", 6379), timeout=20) as client:
        client.sendall(b"INCR counter\r\n")
        assert client.recv(64) == b":1\r\n"
        ckpt("dump", "redis", "-o", "/run/images/redis.ckpt")


def writer() -> None:
    """Files that travel along: a log, a state file, and a directory that was named, with a link and an empty file."""
    conf = Path("/run/srv/conf")
    conf.mkdir(parents=True)
    (conf / "settings").write_text("level = 3\n" * 20_000)
    (conf / "empty").touch()
    (conf / "current").symlink_to("settings")
    script = "cd /run/srv; echo begun >> log; exec 3<>state; echo 7 >&3; exec sleep 1000000 >> log"
    ckpt("run", "--clear-env", "--name", "writer", "--", "sh", "-c", script)
    time.sleep(1)
    ckpt("dump", "writer", "--with-file", str(conf), "-o", "/run/images/writer.ckpt")


def ckpt(*words: str) -> None:
    program = Path(sys.executable).with_name("ckpt")
    subprocess.run([program, *words], check=True, env={**PLAIN, **RUN}, cwd="/", stdin=subprocess.DEVNULL)


def main() -> None:
    """Make them all, and copy them to the directory that was named."""
    target = Path(sys.argv[1]).absolute()
    descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    stage()
    for make in (sleeper, redis, writer):
        if make.__name__ in (sys.argv[2:] or [make.__name__]):
            make()
    for image in Path("/run/images").glob("*.ckpt"):
        copy = os.open(image.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=descriptor)
        with os.fdopen(copy, "wb") as out:
            out.write(image.read_bytes())


if __name__ == "__main__":
    main()
