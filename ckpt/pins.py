"""Network namespaces that outlive a ckpt that is killed, until `ckpt clean` has removed their links.

While a group is away its namespace has an address, a lock and no sockets. Left to die like that it would give the
group away: the kernel takes the lock down some milliseconds before the links. So from before a namespace has an
address, or before the last task of one is killed, until its links are gone or its group lives, it is bound to a file
of the registry, which is noted first.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from ckpt import registry
from ckpt.kernel import takedown


def pinned(operation: registry.Operation, namespaces: Sequence[int], stack: ExitStack) -> None:
    """Bind ``namespaces``, which are open descriptors, until ``stack`` is unwound."""
    directory = registry.directory("netns")
    pins = [directory / f"{operation.id}-{number}" for number in range(len(namespaces))]
    operation.note(netns_pins=[str(pin) for pin in pins])
    for namespace, pin in zip(namespaces, pins, strict=True):
        takedown.keep_alive(namespace, pin)
        stack.callback(takedown.let_go, pin)
