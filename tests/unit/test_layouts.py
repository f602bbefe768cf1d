"""Messages that are taken apart by the layout of another give what they would by themselves."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from ckpt.kernel.layouts import Layouts
from ckpt.kernel.netlink import attribute, parse

attributes = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=6)
"""Types and lengths; few enough of each that messages of the same layout are common."""


def message(listed: list[tuple[int, int]], filling: int) -> bytes:
    return b"".join(attribute(kind, bytes([filling + at]) * size) for at, (kind, size) in enumerate(listed))


@given(
    st.lists(st.tuples(attributes, st.integers(0, 3), st.integers(0, 9), st.binary(max_size=5)), max_size=12),
    st.sampled_from([0, 4, 16]),
)
def test_messages_of_like_and_unlike_layouts_are_parsed_as_alone(
    drawn: list[tuple[list[tuple[int, int]], int, int, bytes]], header: int
) -> None:
    layouts = Layouts(header)
    for listed, filling, cut, rest in drawn:
        body = bytes(header) + message(listed, filling)
        for data in (body, body + rest, body[: max(header, len(body) - cut)]):
            assert layouts.parse(data) == parse(data, header)


def test_messages_of_one_size_with_names_of_two_lengths_are_told_apart() -> None:
    layouts = Layouts()
    for name in (b"v1\0", b"v10\0", b"v1\0", b"v10\0"):
        data = attribute(3, name) + attribute(4, struct.pack("=I", 1500))
        assert layouts.parse(data) == {3: name, 4: struct.pack("=I", 1500)}
