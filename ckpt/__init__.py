"""Checkpoint and restart of groups of processes together with their network.

What the ``ckpt`` command does, a program does with the functions named here. Nothing is loaded before it is first
used: ``import ckpt`` alone costs no more than this file. The functions carry longer names than the commands because
``ckpt.run``, ``ckpt.dump`` and the like are the modules that hold them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt.carrying import OpenFiles
    from ckpt.clean import clean as clean_host
    from ckpt.context import change as change_context
    from ckpt.context import enter as enter_context
    from ckpt.context import report as read_context
    from ckpt.context import reports as read_contexts
    from ckpt.diff import diff as diff_checkpoints
    from ckpt.dump import dump_group
    from ckpt.errors import CkptError
    from ckpt.live import read_checkpoint
    from ckpt.mapping import Mapping, parse_mapping
    from ckpt.model.context import Limits as ContextLimits
    from ckpt.model.finding import Finding
    from ckpt.model.groupspec import GroupSpec
    from ckpt.registry import GroupEntry
    from ckpt.registry import entries as groups
    from ckpt.registry import get as group
    from ckpt.restore import restore_group
    from ckpt.run import run_group, start_group
    from ckpt.stop import stop_group

__all__ = [
    "CkptError",
    "ContextLimits",
    "Finding",
    "GroupEntry",
    "GroupSpec",
    "Mapping",
    "OpenFiles",
    "__version__",
    "change_context",
    "clean_host",
    "diff_checkpoints",
    "dump_group",
    "enter_context",
    "group",
    "groups",
    "parse_mapping",
    "read_checkpoint",
    "read_context",
    "read_contexts",
    "restore_group",
    "run_group",
    "start_group",
    "stop_group",
]

__version__ = "0.1.0"

_HOMES = {
    "CkptError": ("ckpt.errors", "CkptError"),
    "ContextLimits": ("ckpt.model.context", "Limits"),
    "Finding": ("ckpt.model.finding", "Finding"),
    "GroupEntry": ("ckpt.registry", "GroupEntry"),
    "GroupSpec": ("ckpt.model.groupspec", "GroupSpec"),
    "Mapping": ("ckpt.mapping", "Mapping"),
    "OpenFiles": ("ckpt.carrying", "OpenFiles"),
    "group": ("ckpt.registry", "get"),
    "groups": ("ckpt.registry", "entries"),
    "parse_mapping": ("ckpt.mapping", "parse_mapping"),
    "read_checkpoint": ("ckpt.live", "read_checkpoint"),
    "restore_group": ("ckpt.restore", "restore_group"),
    "run_group": ("ckpt.run", "run_group"),
    "start_group": ("ckpt.run", "start_group"),
    "change_context": ("ckpt.context", "change"),
    "clean_host": ("ckpt.clean", "clean"),
    "diff_checkpoints": ("ckpt.diff", "diff"),
    "dump_group": ("ckpt.dump", "dump_group"),
    "enter_context": ("ckpt.context", "enter"),
    "read_context": ("ckpt.context", "report"),
    "read_contexts": ("ckpt.context", "reports"),
    "stop_group": ("ckpt.stop", "stop_group"),
}


def __getattr__(name: str) -> object:
    try:
        module, attribute = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'ckpt' has no attribute {name!r}") from None
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
