"""What a benchmark needs of this machine before it measures: programs, and memory that is really there."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

from ckpt.kernel.host import memory_available

_MADV_POPULATE_WRITE = 23  # Linux 5.14

_TOUCH = f"import mmap, sys; mmap.mmap(-1, int(sys.argv[1])).madvise({_MADV_POPULATE_WRITE})"


def install(packages: Mapping[str, str]) -> None:
    """Have programs, by their packages of the distribution."""
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if missing:
        quietly: Mapping[str, str] = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        argv = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=quietly)


def fetch_memory(megabytes: int) -> None:
    """Have so much memory free that this machine has really got.

    A virtual machine may give free memory back to its host after two seconds, and has to fetch it again by the page, at
    1 to 4 s a GB: as much as the whole work takes, and to the cost of whoever needs it first.
    """
    size = min(megabytes << 20, memory_available() // 2) & -mmap.PAGESIZE
    # What the kernel does not know it does not do.
    subprocess.run([sys.executable, "-c", _TOUCH, str(size)], check=False, stderr=subprocess.DEVNULL)
