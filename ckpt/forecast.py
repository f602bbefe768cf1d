"""What is to be said of dumping a group before it is touched: its facts judged, and its network.

The facts are for `check_dump`. The network is read as it is now, only to see what of it would not travel; a dump reads
it again when the group stands still, and refuses then what has come up since.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack

from ckpt import context_record, spaces
from ckpt.check import check_dump
from ckpt.errors import NetworkError, NotFoundError
from ckpt.kernel import rtnl_group
from ckpt.model.finding import Finding, blocking
from ckpt.model.network import Network
from ckpt.model.process import GroupFacts
from ckpt.model.travel import cannot_travel


def findings_of(facts: GroupFacts) -> tuple[Finding, ...]:
    """All findings for a dump of the group; without one that blocks, it can be dumped."""
    found = (*check_dump(facts), *context_record.findings(facts))
    if blocking(found):
        # some of these say that its network cannot even be looked at as the group's
        return found
    try:
        with ExitStack() as stack:
            opened = spaces.opened(facts, stack)
            networks = rtnl_group.read_networks({space.key: space.netns for space in opened})
    except (NetworkError, NotFoundError):
        return found  # it changes too fast; the group itself does not, when it stands still
    return (*found, *left_behind(networks))


def left_behind(networks: Mapping[str, Network]) -> Iterator[Finding]:
    """What of ``networks`` does not travel; the subject says where, if that is not the root task's namespace."""
    for key, network in networks.items():
        found: Iterable[Finding] = cannot_travel(network)
        if key != spaces.NETNS_KEY:
            found = (dataclasses.replace(one, subject=f"{one.subject} in {_where(key)}") for one in found)
        yield from found


def _where(key: str) -> str:
    return f"nested network namespace {key.removeprefix(f'{spaces.NETNS_KEY}-')}"
