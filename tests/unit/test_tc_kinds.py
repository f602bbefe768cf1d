"""What kinds of traffic control want that they do not show: held against models of what the kernel does with it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckpt.kernel import tc_kinds, tc_tables, tc_u32
from ckpt.kernel.netlink import attribute, nested, number, parse, string, u32
from ckpt.kernel.rewriting import rewrite
from ckpt.kernel.rtnl_tc import handle_number, handle_text
from ckpt.model.traffic import Filter

TIMES = {
    ("codel", 1): 10,
    ("codel", 5): 10,
    ("fq_codel", 3): 10,
    ("pie", 1): 6,
    ("fq_pie", 3): 6,
}


def shown(microseconds: int, shift: int) -> int:
    """What is shown of a time that was given in µs, by a kernel that counts in units of 2**shift ns."""
    return (microseconds * 1000 >> shift << shift) // 1000


@pytest.mark.parametrize(("kind", "which"), TIMES)
@given(given_time=st.integers(1, 2**31))
def test_time_is_shown_as_it_was(kind: str, which: int, given_time: int) -> None:
    shift = TIMES[kind, which]
    before = shown(given_time, shift)
    completed = tc_kinds.completed_qdisc(kind, attribute(which, u32(before)))
    assert shown(number(parse(completed)[which]), shift) == before


def ticks_of(size: int, rate: int) -> int:
    """How long so many bytes take, as a kernel shows it that multiplies by a number of 32 bits and shifts."""
    shift = 0
    while ((10**9 << shift) // rate).bit_length() < 32 and (10**9 << shift).bit_length() < 64:
        shift += 1
    return size * ((10**9 << shift) // rate) >> shift + 6


@given(rate=st.integers(1, 5 * 10**9), burst=st.integers(1500, 10**7))
@example(rate=2750, burst=1540)
def test_burst_in_bytes_is_shown_as_it_was_and_no_smaller(rate: int, burst: int) -> None:
    ticks = ticks_of(burst, rate)
    if ticks >= 1 << 32 or not ticks:
        return
    narrow = min(rate, 0xFFFFFFFF)
    parms = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, narrow) + bytes(12) + struct.pack("=III", 9000, ticks, 0)
    options = attribute(1, parms) + (attribute(4, struct.pack("=Q", rate)) if rate > narrow else b"")
    completed = parse(tc_kinds.completed_qdisc("tbf", options))
    again = number(completed[6])
    assert again >= burst
    assert ticks_of(again, rate) == ticks


def test_size_table_of_atm_counts_cells() -> None:
    specification = struct.pack("=BBhiIIII", 3, 0, -1, 0, 2, 0, 2048, 256)
    sizes = struct.unpack("=256H", tc_tables.size_table(specification))
    assert sizes[:7] == (53, 53, 53, 53, 53, 53, 106)
    assert tc_tables.size_table(struct.pack("=BBhiIIII", 0, 0, 0, 18, 1, 0, 0, 0)) == b""


@given(st.integers(0, 0xFFFFFFFF))
def test_handle_survives_its_text(handle: int) -> None:
    assert handle_number(handle_text(handle)) == handle


def policer() -> bytes:
    rate = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, 125000)
    parms = struct.pack("=IiIII", 5, 2, 0, 100, 2047) + rate + bytes(12) + struct.pack("=iiI", 3, 2, 0)
    options = nested(2, attribute(1, parms), attribute(6, bytes(32)))
    return attribute(1, string("police")) + nested(4, attribute(1, b"1")) + options


def test_action_is_cleared_of_counts_and_times() -> None:
    assert tc_kinds.action_counts(policer()) == (5, 3, 2)
    cleared = tc_kinds.cleared_action(policer())
    assert tc_kinds.action_counts(cleared) == (5, 0, 0)
    assert set(parse(cleared)) == {1, 2}
    assert set(parse(parse(cleared)[2])) == {1}


def test_policer_is_given_the_table_that_it_demands() -> None:
    completed = parse(parse(tc_kinds.completed_action(tc_kinds.cleared_action(policer())))[2])
    assert len(completed[2]) == 1024
    assert completed[1][20] != 0


def test_unknown_kinds_do_not_travel() -> None:
    assert not tc_kinds.why_not_qdisc("taprio", b"")[1]
    assert tc_kinds.why_not_filter("rsvp", b"")
    assert tc_kinds.why_not_action(attribute(1, string("xt")))


def test_rewrite_keeps_what_it_does_not_name_bit_for_bit() -> None:
    data = nested(5, b"abc") + attribute(6, b"12345") + attribute(7, b"")
    assert rewrite(data, {}) == data
    assert rewrite(data, {6: None}) == nested(5, b"abc") + attribute(7, b"")


def table(handle: int, priority: int) -> Filter:
    options = attribute(4, u32(1))
    return Filter(kind="u32", priority=priority, protocol=8, handle=handle, parent="1:", ifname="e", options=options)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True))
def test_roots_get_the_numbers_that_they_had(numbers: list[int]) -> None:
    """A model of the kernel: each new priority gets the next number, and one that goes gives none back."""
    filters = []
    for priority, one in enumerate(numbers, start=1):
        node = table((0x800 + one) << 20 | 0x800, priority)
        filters += [table(0x00500000 + (priority << 20), priority), table((0x800 + one) << 20, priority), node]
    order = tc_u32.ordered(filters)
    roots: dict[int, int] = {}
    counter = 0
    for stage, delete in zip(order, (False, True, False, True), strict=True):
        for wanted in stage:
            if delete:
                if not wanted.handle:
                    del roots[wanted.priority]
                continue
            if wanted.priority not in roots:
                roots[wanted.priority] = 0x800 + counter
                counter += 1
    assert roots == {priority: 0x800 + one for priority, one in enumerate(numbers, start=1)}
    made = [one.handle for one in order.made]
    assert sorted(made) == sorted(one.handle for one in filters if one.handle & 0xFFFFF or one.handle < 1 << 31)
