"""Whether a part of the kernel is there, found out without the question loading it.

To ask the kernel about a part that is a module is enough to have it loaded, with all its hooks, for the whole host. A
namespace cannot hold anything of a module that is not loaded, so such a question need not be asked.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path


def unloaded(name: str) -> bool:
    """Whether ``name`` is a module of this kernel that is not loaded now. Of what is built in, it is always false."""
    if os.path.exists(f"/sys/module/{name}"):
        return False
    try:
        loaded = {line.split(" ", 1)[0] for line in Path("/proc/modules").read_text("ascii").splitlines()}
    except OSError:
        return False  # a kernel without modules
    return name not in loaded and name in _loadable(os.uname().release)


@functools.cache
def _loadable(release: str) -> frozenset[str]:
    """The names of all modules on the disk; none where they are not to be seen, as in a container."""
    try:
        listed = Path(f"/lib/modules/{release}/modules.dep").read_text("utf-8", "replace")
    except OSError:
        return frozenset()
    files = (line.partition(":")[0].rpartition("/")[2] for line in listed.splitlines())
    return frozenset(file.partition(".ko")[0].replace("-", "_") for file in files)
