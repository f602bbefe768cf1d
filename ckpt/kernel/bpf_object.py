"""The built programs of contexts, read from their ELF object and loaded into the kernel.

The object (``bpf/context.bpfel.o.xz``, made by ``scripts/build-bpf``) has one section for each program, named by the
kernel's own word for its kind, one section of maps' definitions, and relocations from programs to maps, nothing else.
There is another one for big-endian machines (``bpfeb``): the kernel takes instructions in its own order alone. Reading
an object touches nothing; the kernel sees only what is asked to be loaded.
"""

from __future__ import annotations

import functools
import lzma
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path

from ckpt.kernel import bpf_calls
from ckpt.kernel.bpf_calls import MapShape
from ckpt.records import dataclass

SOURCE = Path(__file__).parent / "bpf" / "context.bpf.c"
PATHS = {order: SOURCE.with_name(f"context.{target}.o.xz") for order, target in (("little", "bpfel"), ("big", "bpfeb"))}
"""By ``sys.byteorder``."""

# In the order of the object; each is preceded by "<" or ">".
_SECTION = "IIQQQQIIQQ"
_SYMBOL = "IBBHQQ"
_RELOCATION = "QQ"
_SHAPE = "5I"
_SHT_SYMTAB, _SHT_REL = 2, 9
_R_BPF_64_64 = 1
_PSEUDO_MAP_FD = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How a program is loaded and attached: enum bpf_prog_type, enum bpf_attach_type, and the Linux that has it."""

    program: int
    attach: int
    since: str


KINDS: Mapping[str, Kind] = {
    "cgroup/bind4": Kind(program=18, attach=8, since="4.17"),
    "cgroup/bind6": Kind(program=18, attach=9, since="4.17"),
    "cgroup/connect4": Kind(program=18, attach=10, since="4.17"),
    "cgroup/connect6": Kind(program=18, attach=11, since="4.17"),
    "cgroup/post_bind4": Kind(program=9, attach=12, since="4.17"),
    "cgroup/post_bind6": Kind(program=9, attach=13, since="4.17"),
    "cgroup/sendmsg4": Kind(program=18, attach=14, since="4.18"),
    "cgroup/sendmsg6": Kind(program=18, attach=15, since="4.18"),
    "cgroup/recvmsg4": Kind(program=18, attach=19, since="5.2"),
    "cgroup/recvmsg6": Kind(program=18, attach=20, since="5.2"),
    "cgroup/getpeername4": Kind(program=18, attach=29, since="5.8"),
    "cgroup/getpeername6": Kind(program=18, attach=30, since="5.8"),
    "cgroup/getsockname4": Kind(program=18, attach=31, since="5.8"),
    "cgroup/getsockname6": Kind(program=18, attach=32, since="5.8"),
    "cgroup/sock_create": Kind(program=9, attach=2, since="4.10"),
    "cgroup/sock_release": Kind(program=9, attach=34, since="5.9"),
    "cgroup/setsockopt": Kind(program=25, attach=22, since="5.3"),
    "cgroup/sock_ops": Kind(program=13, attach=3, since="4.13"),
    "cgroup_skb/ingress": Kind(program=8, attach=0, since="4.10"),
    "cgroup_skb/egress": Kind(program=8, attach=1, since="4.10"),
    "floor/lookup": Kind(program=30, attach=36, since="5.9"),
    "floor/steer": Kind(program=3, attach=46, since="6.6"),
}
"""Every program, by the name of its section."""

FLOOR = "floor/"
"""How the names of those programs begin that a network namespace has once, for all contexts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A program: its instructions, and which of them (by number) want the descriptor of which map."""

    section: str
    instructions: bytes
    maps: Mapping[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the kernel calls it: ``ckpt_bind4``."""
        return f"ckpt_{self.section.rpartition('/')[2]}"

    @property
    def kind(self) -> Kind:
        return KINDS[self.section]


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """What the object holds; ``digest`` is the SHA-256 of its source, ``compiler`` the clang that built it.

    ``order`` is that of its bytes, as ``struct`` has it.
    """

    order: str
    programs: Mapping[str, Code]
    maps: Mapping[str, MapShape]
    license: str
    digest: str
    compiler: str

    def load(self, section: str, maps: Mapping[str, int]) -> int:
        """Load the program of ``section`` with the descriptors of its maps; a descriptor."""
        code = self.programs[section]
        instructions = bytearray(code.instructions)
        # struct bpf_insn has two registers in a byte, as bit fields: which of them is where is the compiler's order.
        shift = 4 if self.order == "<" else 0
        for number, name in code.maps.items():
            registers = instructions[number * 8 + 1]
            instructions[number * 8 + 1] = registers & ~(0x0F << shift) | _PSEUDO_MAP_FD << shift
            struct.pack_into(f"{self.order}i", instructions, number * 8 + 4, maps[name])
        kind = code.kind
        return bpf_calls.prog_load(code.name, kind.program, kind.attach, bytes(instructions), self.license)


@functools.cache
def built() -> Object:
    """The object for this machine, which comes with ckpt."""
    return parse(lzma.decompress(PATHS[sys.byteorder].read_bytes()))


def parse(data: bytes) -> Object:
    """Read an object; ValueError when it is not one that ``scripts/build-bpf`` makes."""
    if data[:6] not in (b"\x7fELF\x02\x01", b"\x7fELF\x02\x02"):
        raise ValueError("not an ELF object of 64 bits")
    order = "<" if data[5] == 1 else ">"
    sections = _sections(data, order)
    numbers = [name for name, _ in sections]
    symbols = _symbols(data, sections, order)
    content = {name: data[head[4] : head[4] + head[5]] for name, head in sections}
    at = {
        value: name
        for name, section, value in symbols
        if section < len(numbers) and numbers[section] == "maps" and name
    }
    maps = {
        name: MapShape(**dict(zip(("kind", "key_size", "value_size", "max_entries", "flags"), shape, strict=True)))
        for place, name in at.items()
        for shape in (struct.unpack_from(order + _SHAPE, content["maps"], place),)
    }
    wanted: dict[str, dict[int, str]] = {}
    for _, head in sections:
        if head[1] == _SHT_REL:
            entries = struct.iter_unpack(order + _RELOCATION, data[head[4] : head[4] + head[5]])
            wanted[numbers[head[7]]] = _relocations(entries, symbols, maps)
    programs = {
        name: Code(section=name, instructions=content[name], maps=wanted.get(name, {}))
        for name in numbers
        if name in KINDS
    }
    words = {name: content[name].rstrip(b"\0").decode() for name in ("license", "source", "compiler")}
    return Object(
        order=order,
        programs=programs,
        maps=maps,
        license=words["license"],
        digest=words["source"],
        compiler=words["compiler"],
    )


def _sections(data: bytes, order: str) -> list[tuple[str, tuple[int, ...]]]:
    (start,) = struct.unpack_from(f"{order}Q", data, 40)
    size, count, names = struct.unpack_from(f"{order}HHH", data, 58)
    heads = [struct.unpack_from(order + _SECTION, data, start + number * size) for number in range(count)]
    texts = data[heads[names][4] : heads[names][4] + heads[names][5]]
    return [(_text(texts, head[0]), head) for head in heads]


def _symbols(data: bytes, sections: list[tuple[str, tuple[int, ...]]], order: str) -> list[tuple[str, int, int]]:
    """Name, number of the section, value."""
    head = next(head for _, head in sections if head[1] == _SHT_SYMTAB)
    texts_head = sections[head[6]][1]
    texts = data[texts_head[4] : texts_head[4] + texts_head[5]]
    found = struct.iter_unpack(order + _SYMBOL, data[head[4] : head[4] + head[5]])
    return [(_text(texts, name), section, value) for name, _, _, section, value, _ in found]


def _relocations(
    entries: Iterable[tuple[int, ...]], symbols: list[tuple[str, int, int]], maps: Mapping[str, MapShape]
) -> dict[int, str]:
    found = {}
    for offset, info in entries:
        name = symbols[info >> 32][0]
        if info & 0xFFFFFFFF != _R_BPF_64_64 or name not in maps:
            raise ValueError(f"a program refers to {name or 'data'}, which is not a map")
        found[offset // 8] = name
    return found


def _text(table: bytes, place: int) -> str:
    return table[place : table.index(b"\0", place)].decode()
