"""From the records of several network namespaces to the steps that make them all, with the links between them.

Each namespace has its own plan (`plan.plan_network`). A link may stand on one of another namespace, and of a veth pair
across two only one end is made, with the other; so the plans are cut into phases, and each phase is done in every
namespace before the next one is begun in any: what comes before links; links, each after what it stands on, wherever
that is; what they keep; links up, in the same order; what they carry. So no address waits for a carrier from a
namespace whose turn has not come. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace

from ckpt.errors import UnsupportedError
from ckpt.model.network import PAIRED, Link, Network, Place
from ckpt.plan import lowest_first, names_by_index, plan_network, ring_ports
from ckpt.plan.steps import BringUp, MakeLink, PlaceCounterpart, Step
from ckpt.records import dataclass

Node = tuple[str, str]
"""A link of the group: the key of its namespace, and its name."""

GroupStep = tuple[str, Step]
"""The key of the namespace, and what shall be true there."""


@dataclass(frozen=True, slots=True)
class _Phases:
    """The plan of one namespace, cut up."""

    first: list[Step] = field(default_factory=list)
    making: list[MakeLink | PlaceCounterpart] = field(default_factory=list)
    middle: list[Step] = field(default_factory=list)
    raising: list[BringUp] = field(default_factory=list)
    last: list[Step] = field(default_factory=list)


def plan_networks(wanted: Mapping[str, Network], observed: Mapping[str, Network]) -> tuple[GroupStep, ...]:
    """The steps that make each fresh namespace read as ``observed`` equal to the one ``wanted`` under its key.

    Raises UnsupportedError (``link-kind``) for a link that cannot be made.
    """
    phases = {key: _cut(plan_network(network, observed[key])) for key, network in wanted.items()}
    order = {node: number for number, node in enumerate(_order(wanted))}

    def place(one: tuple[str, BringUp]) -> int:
        return order[one[0], one[1].link.ifname]

    raising = [(key, step) for key, phase in phases.items() for step in phase.raising]
    return (
        *((key, step) for key, phase in phases.items() for step in phase.first),
        *_making(wanted, {key: phase.making for key, phase in phases.items()}, order),
        *((key, step) for key, phase in phases.items() for step in phase.middle),
        *sorted(raising, key=place),
        *((key, step) for key, phase in phases.items() for step in phase.last),
    )


def _cut(steps: Sequence[Step]) -> _Phases:
    phases = _Phases()
    for step in steps:
        if isinstance(step, MakeLink | PlaceCounterpart):
            phases.making.append(step)
        elif isinstance(step, BringUp):
            phases.raising.append(step)
        elif phases.raising:
            phases.last.append(step)
        elif phases.making:
            phases.middle.append(step)
        else:
            phases.first.append(step)
    return phases


def _making(
    wanted: Mapping[str, Network],
    making: Mapping[str, Sequence[MakeLink | PlaceCounterpart]],
    order: Mapping[Node, int],
) -> Iterator[GroupStep]:
    def place(one: tuple[str, MakeLink | PlaceCounterpart]) -> int:
        key, step = one
        ends = [step.link, step.peer] if isinstance(step, MakeLink) else [step.link]
        return min(order[key, end.ifname] for end in ends if end is not None)

    steps = [(key, step) for key, of_one in making.items() for step in of_one]
    made: set[Node] = set()
    # Stable: the outside end of a veth is placed right after it was made.
    for key, step in sorted(steps, key=place):
        if isinstance(step, MakeLink) and (other := _across(step.link)) is not None:
            if (key, step.link.ifname) in made:
                continue
            if other not in order and other[1]:
                raise _missing(step.link)
            if step.link.kind in PAIRED:
                step = replace(step, peer=wanted[other[0]].link(other[1]))
                made.add(other)
        yield key, step


def _missing(link: Link) -> UnsupportedError:
    return UnsupportedError(
        f"the link {link.ifname} cannot be made",
        code="link-kind",
        details="what it leads to in another namespace of the group is not there",
    )


def _across(link: Link) -> Node | None:
    """The counterpart in another namespace of the group."""
    other = link.counterpart
    return (other.netns, other.ifname) if other is not None and other.place is Place.ELSEWHERE else None


def _order(wanted: Mapping[str, Network]) -> Iterable[Node]:
    """All links, each after the one it stands on."""
    links = {(key, link.ifname): link for key, network in wanted.items() for link in network.links}
    names = {key: names_by_index(network.links) for key, network in wanted.items()}

    def below(node: Node) -> list[Node]:
        return [one for one in _below(node[0], links[node], names[node[0]]) if one in links]

    return lowest_first(links, below)


def _below(key: str, link: Link, names: Mapping[str, str]) -> list[Node]:
    other = link.counterpart
    if other is None or link.kind in PAIRED or other.place is Place.CALLER:
        return [(key, name) for name in ring_ports(link, names)]
    return [((key if other.place is Place.INSIDE else other.netns), other.ifname)]
