"""A host that systemd runs: the real one, as the first process of namespaces of its own, with a hierarchy of its own.

Its hierarchy is a part of the machine's, as in any container. It has no unit but the target that it reaches, so that it
starts nothing, and finds what it would set of the machine (name, number, sysctls) in namespaces or read-only. What is
asked of it comes over its own socket, without a bus.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpt.kernel import cgroup2
from tests.conftest import random_name

SYSTEMD = Path("/lib/systemd/systemd")
_SECONDS = 20.0

_BEGIN = """
set -e
echo 0 >{cgroup}/cgroup.procs
exec unshare --pid --mount --cgroup --ipc --uts --fork --kill-child sh -ec '
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/units
printf "[Unit]\\nDefaultDependencies=no\\nAllowIsolate=yes\\n" >/run/units/nothing.target
umount -R /sys/fs/cgroup
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
{hybrid}
mount -t proc proc /proc
for part in fs vm; do
    mount --bind /proc/sys/$part /proc/sys/$part
    mount -o remount,bind,ro /proc/sys/$part
done
cp /etc/machine-id /run/machine-id
mount --bind /run/machine-id /etc/machine-id
export container=test SYSTEMD_UNIT_PATH=/run/units
exec {systemd} --unit=nothing.target --show-status=no
'
"""
_HYBRID = """
umount /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/unified /sys/fs/cgroup/systemd
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
mount -t cgroup -o none,name=systemd systemd /sys/fs/cgroup/systemd
"""


@dataclass(frozen=True, slots=True)
class World:
    """``pid`` is its first process, ``root`` what its hierarchy is in the machine's."""

    pid: int
    root: Path

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """What a command says there."""
        # From within its hierarchy: where cgroup namespaces are boundaries, nobody moves a process across one.
        within = ["sh", "-c", 'echo 0 >"$0" && exec "$@"', str(self.root / "init.scope/cgroup.procs")]
        argv = [*within, "nsenter", f"--target={self.pid}", "--mount", "--pid", "--cgroup", "--ipc", "--uts", "--"]
        argv += command
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def scopes(self) -> list[str]:
        """The units of contexts that systemd knows of."""
        lines = self.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "ckpt-*").splitlines()
        return [line.split()[0] for line in lines]

    def cgroups(self) -> list[str]:
        """The cgroups of contexts, by their paths."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("ckpt-*"))


def is_installed() -> bool:
    return SYSTEMD.exists() and shutil.which("systemd-run") is not None


@contextlib.contextmanager
def booted(*, hybrid: bool = False) -> Iterator[World]:
    """A systemd that is up, in the caller's network namespace. All that is in it ends with it."""
    root = cgroup2.root() / random_name("sd")
    root.mkdir()
    script = _BEGIN.format(cgroup=root, systemd=SYSTEMD, hybrid=_HYBRID if hybrid else "")
    outside = subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _SECONDS
        while not (first := _first(outside.pid)) or not _is_up(first):
            assert outside.poll() is None
            assert time.monotonic() < deadline, "systemd does not come up"
            time.sleep(0.05)
        yield World(first, root)
    finally:
        outside.kill()
        outside.wait()
        deadline = time.monotonic() + _SECONDS
        while cgroup2.pids(root) and time.monotonic() < deadline:
            time.sleep(0.05)
        cgroup2.remove(root)


def _first(outside: int) -> int:
    """The child of the process that has made the namespaces, once it is systemd."""
    children = Path(f"/proc/{outside}/task/{outside}/children").read_text().split()
    with contextlib.suppress(OSError, IndexError):
        if Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n":
            return int(children[0])
    return 0


def _is_up(first: int) -> bool:
    argv = ["nsenter", f"--target={first}", "--mount", "--pid", "--cgroup", "--", "systemctl", "is-active"]
    return subprocess.run([*argv, "nothing.target"], capture_output=True, check=False).returncode == 0
