"""Generic netlink: families that are known by name, and their commands. What the attributes mean is their users'."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ckpt.kernel.netlink import Attributes, KernelRefusal, Netlink, attribute, number, parse, string

_GENERIC = 16
_CONTROL = 0x10
_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 3, 1, 2
_HEADER = struct.Struct("=BBH")
_VERSION = 1


class GenericNetlink:
    """One connection to the family ``name`` in the namespace ``netns``; false where the kernel has no such family."""

    def __init__(self, name: str, netns: int) -> None:
        self._connection = Netlink(_GENERIC, netns=netns)
        self._family = 0
        request = _HEADER.pack(_GET_FAMILY, _VERSION, 0) + attribute(_FAMILY_NAME, string(name))
        try:
            for _, body in self._connection.request(_CONTROL, request):
                self._family = number(parse(body, _HEADER.size).get(_FAMILY_ID, b""))
        except KernelRefusal:
            pass

    def __enter__(self) -> GenericNetlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __bool__(self) -> bool:
        return bool(self._family)

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()

    def request(self, command: int, attributes: bytes) -> list[Attributes]:
        """What is answered, taken apart. Raises KernelRefusal."""
        return list(self._parsed(self._connection.request(self._family, self._message(command, attributes))))

    def requests(self, commands: Sequence[tuple[int, bytes]]) -> list[KernelRefusal | None]:
        """What is said to each of many commands, whatever becomes of those before it; for those without an answer."""
        messages = [(self._family, self._message(command, attributes), 0) for command, attributes in commands]
        return self._connection.requests(messages)

    def dump(self, command: int, attributes: bytes) -> list[Attributes]:
        """Everything that the kernel lists, as of one moment. Raises KernelRefusal or NetworkError."""
        return list(self._parsed(self._connection.dump(self._family, self._message(command, attributes))))

    @staticmethod
    def _message(command: int, attributes: bytes) -> bytes:
        return _HEADER.pack(command, _VERSION, 0) + attributes

    @staticmethod
    def _parsed(messages: list[tuple[int, bytes]]) -> Iterator[Attributes]:
        return (parse(body, _HEADER.size) for _, body in messages)
