"""The two directions of one attribute of a link: the kernel's bytes, and the text that a record keeps of them.

A table says of a kind of link which number is which option, and how its value is read and written; ``decode`` and
``encode`` walk it. The tables are in the modules named for families of kinds, and ``rtnl_kinds`` puts them together.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from ckpt.kernel import netlink
from ckpt.records import dataclass


@dataclass(frozen=True, slots=True)
class Codec:
    """The two directions of one attribute's value; one that is encoded as None is not sent.

    ``before`` are attributes without which the kernel ignores it.
    """

    decode: Callable[[bytes], str]
    encode: Callable[[str], bytes | None]
    before: bytes = b""


Table = Mapping[int, tuple[str, Codec | None]]
"""An option's name by the attribute's number; one without a codec is what the kernel works out, and is read over."""


def integer(size: int, order: str = "host") -> Codec:
    """An unsigned number of so many bytes."""
    layout = struct.Struct(("=" if order == "host" else ">") + {1: "B", 2: "H", 4: "I", 8: "Q"}[size])
    return Codec(lambda value: str(layout.unpack(value)[0]), lambda value: layout.pack(int(value)))


def named(names: Mapping[int, str]) -> Codec:
    """A number of four bytes that is known by names; one without a name stays a number."""
    numbers = {name: value for value, name in names.items()}

    def decode(value: bytes) -> str:
        return names.get(netlink.number(value), str(netlink.number(value)))

    return Codec(decode, lambda text: netlink.u32(numbers[text] if text in numbers else int(text)))


def bits(mask: int) -> Codec:
    """Flags of four bytes, with the mask of those that can be set: the kernel gives and takes both."""
    return Codec(lambda value: str(struct.unpack("=II", value)[0]), lambda value: struct.pack("=II", int(value), mask))


RAISED_BITS = Codec(
    lambda value: str(struct.unpack("=II", value)[0]), lambda value: struct.pack("=II", *[int(value)] * 2)
)
"""The same where none is on in a fresh link, and the kernel refuses to be told of one whose subject it lacks."""

U8 = integer(1)
U16 = integer(2)
U32 = integer(4)
U64 = integer(8)
BE16 = integer(2, "be")
BE32 = integer(4, "be")
S32 = Codec(lambda value: str(struct.unpack("=i", value)[0]), lambda value: struct.pack("=i", int(value)))
MAC = Codec(netlink.mac_text, netlink.mac_bytes)
IP = Codec(netlink.ip_text, netlink.ip_bytes)

FLAG = Codec(lambda value: "1", lambda value: b"" if value == "1" else None)
"""There, or not there."""


def decode(table: Table, data: bytes) -> tuple[dict[str, str], list[int]]:
    """The options in ``data``, and the numbers of the attributes that the table does not know."""
    options: dict[str, str] = {}
    unknown: list[int] = []
    for kind, value in netlink.pairs(data):
        if kind not in table:
            unknown.append(kind)
            continue
        name, codec = table[kind]
        if codec is not None:
            options[name] = codec.decode(value)
    return options, unknown


def encode(table: Table, options: Mapping[str, str]) -> bytes:
    """The attributes of ``options``; the mirror of ``decode``."""
    numbers = {name: (kind, codec) for kind, (name, codec) in table.items() if codec is not None}
    parts: list[bytes] = []
    for name, value in options.items():
        kind, codec = numbers[name]
        data = codec.encode(value)
        if data is not None:
            parts.append(codec.before + netlink.attribute(kind, data))
    return b"".join(parts)
