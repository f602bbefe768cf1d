"""The oracle again, over namespaces that nobody has thought of.

A random script fills a namespace, or several with links between them. They are read and made again, and the copies
are equal: as records, and in the eyes of all of the system's own tools.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from ckpt.kernel import apply, netns, rtnl, rtnl_group
from ckpt.model.network import Network
from ckpt.model.travel import cannot_travel
from ckpt.plan_group import plan_networks
from tests.net import random_filters, random_parts, random_spaces, spaces, witness
from tests.net.random_spaces import Dice, Draft

EXAMPLES = int(os.environ.get("CKPT_RANDOM_NETWORKS", "184"))
"""How many. ``CKPT_RANDOM_NETWORKS=5000 pytest tests/net/test_random_networks.py`` takes an hour and tries more."""


def trying(examples: int) -> settings:
    """No shrinking: each step of it makes namespaces, and what differs is named by the failure."""
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    return settings(max_examples=examples, deadline=None, phases=phases, suppress_health_check=list(HealthCheck))


@st.composite
def groups(draw: st.DrawFn, least: int, most: int) -> list[Draft]:
    """So many namespaces; each of those behind the first is tied to one before it by a pair of veths."""
    dice = Dice(draw)
    names = iter(draw(random_spaces.names()))
    indices = iter(draw(st.permutations(range(2, 60))))
    drafts: list[Draft] = []
    for number in range(dice.number(least, most)):
        draft = Draft(place=number)
        random_parts.draw_templates(dice, draft)
        if number:
            random_spaces.draw_tie(dice, drafts, draft, names, indices)
        drafts.append(draft)
    for draft in drafts:
        random_spaces.draw_links(dice, draft, names, indices)
    for draft in drafts:
        random_spaces.finish_links(dice, draft)
    for draft in drafts:
        random_parts.draw_device_sysctls(dice, draft)
        random_parts.draw_bridging(dice, draft)
        random_parts.draw_carried(dice, draft)
        random_filters.draw_traffic(dice, draft)
        random_filters.draw_nftables(dice, draft)
        random_filters.draw_ip_sets(dice, draft)
    return drafts


@contextmanager
def filled(drafts: list[Draft]) -> Iterator[dict[str, int]]:
    """Namespaces in which the scripts were typed, by their number."""
    with ExitStack() as stack:
        found = [stack.enter_context(spaces.fresh()) for _ in drafts]
        for part in range(4):
            for draft, space in zip(drafts, found, strict=True):
                script = draft.scripts()[part]
                for number, other in enumerate(found):
                    script = script.replace(f"netns @{number}", f"netns {spaces.path(other)}")
                note(f"# in the namespace {found.index(space)}\n{script}")
                spaces.shell(script, space)
            for space in found if part == 2 else ():
                spaces.settle(space)  # lest neighbours be forgotten when the kernel tells of a dead link later
        yield {str(number): space for number, space in enumerate(found)}


def read(namespaces: dict[str, int]) -> dict[str, Network]:
    for space in namespaces.values():
        spaces.settle(space)
    return rtnl_group.read_networks(namespaces)


def seen(namespaces: dict[str, int], drafts: list[Draft]) -> dict[str, object]:
    return {
        key: witness.seen(space, [link.name for link in draft.links])
        for (key, space), draft in zip(namespaces.items(), drafts, strict=True)
    }


def assert_copy_is_equal(drafts: list[Draft]) -> None:
    with spaces.fresh() as host, netns.entered(host), filled(drafts) as originals:
        wanted = read(originals)
        assert [cannot_travel(network) for network in wanted.values()] == [()] * len(drafts)
        before = seen(originals, drafts)
        with ExitStack() as fresh_ones, ExitStack() as undo:
            copies = {key: fresh_ones.enter_context(spaces.fresh()) for key in wanted}
            observed = {key: rtnl.read_network(space) for key, space in copies.items()}
            apply.apply_group(copies, plan_networks(wanted, observed), undo)
            again = read(copies)
            for key in wanted:
                spaces.assert_equal(spaces.comparable(again[key]), spaces.comparable(wanted[key]))
            spaces.assert_equal(seen(copies, drafts), before)


@trying(EXAMPLES * 7 // 8)
@pytest.mark.timeout(120 + EXAMPLES * 2)
@given(groups(1, 1))
def test_copy_of_a_random_network_is_equal(drafts: list[Draft]) -> None:
    assert_copy_is_equal(drafts)


@trying(EXAMPLES // 8)
@pytest.mark.timeout(120 + EXAMPLES * 2)
@given(groups(2, 3))
def test_copy_of_random_linked_networks_is_equal(drafts: list[Draft]) -> None:
    assert_copy_is_equal(drafts)
