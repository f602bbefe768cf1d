"""How many tasks a context may have: read for an image, and set again when what restores it has done its work.

CRIU runs inside the context while it restores, with helpers of its own, which must not count.
"""

from __future__ import annotations

from pathlib import Path

from ckpt.errors import UnsupportedError
from ckpt.kernel.context_bounds import limit_tasks, tasks_cgroup
from ckpt.model.context import Context

_OWN_TASKS = 1
_UNLIMITED = 1 << 20


def tasks(context: Context) -> int | None:
    """The limit, without the task that is ours."""
    try:
        directory = tasks_cgroup(Path(context.cgroup))
        text = (directory / "pids.max").read_text().strip() if directory is not None else "max"
    except OSError:
        return None
    return None if text == "max" else int(text) - _OWN_TASKS


def prepare(context: Context) -> tuple[str, ...]:
    """Make what counts the tasks, without a limit yet; the cgroups that its tasks have to be in."""
    limit_tasks(context, _UNLIMITED)
    directory = tasks_cgroup(Path(context.cgroup))
    if directory is None:
        raise UnsupportedError("tasks cannot be limited here", code="limit-tasks")
    return () if str(directory) == context.cgroup else (str(directory),)
