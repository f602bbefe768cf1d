"""The namespace in which the steps of a plan are carried out, and what the modules that carry them out share.

The host's namespace is touched only by name and only for a link's counterpart; what is made there, ``undo`` undoes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import field

from ckpt.errors import NetworkError
from ckpt.kernel import rtnl_links
from ckpt.kernel.netlink import KernelRefusal, Netlink
from ckpt.kernel.rtnl_links import RawLink
from ckpt.records import dataclass


@contextlib.contextmanager
def naming(code: str, subject: str, verb: str = "make") -> Iterator[None]:
    """What the kernel refuses in the block becomes a NetworkError that names the object and has the kernel's words."""
    try:
        yield
    except KernelRefusal as error:
        raise NetworkError(f"cannot {verb} the {subject}", code=code, details=error.strerror) from error


@dataclass(slots=True, kw_only=True)
class Target:
    """The namespace ``netns``, a socket ``inside`` and one in the caller's namespace ``outside``.

    ``spaces`` are the group's namespaces by their keys; ``indices`` those of the links that are there, by name.
    """

    netns: int
    inside: Netlink
    outside: Netlink
    undo: ExitStack
    spaces: Mapping[str, int] = field(default_factory=dict)
    indices: dict[str, int] = field(default_factory=dict)

    def learn(self) -> dict[int, RawLink]:
        """The links that are there now."""
        raw = rtnl_links.read_raw(self.inside)
        self.indices = {link.ifname: index for index, link in raw.items()}
        return raw

    def names(self) -> dict[int, str]:
        """The names of links by their indices."""
        return {index: ifname for ifname, index in self.indices.items()}

    def request_unless_gone(self, kind: int, body: bytes, gone: int) -> None:
        """Ask for something that is as well when the kernel answers ``gone``."""
        try:
            self.inside.request(kind, body)
        except KernelRefusal as error:
            if error.errno != gone:
                raise
