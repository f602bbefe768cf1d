"""How a comparison is made: peers do the same work in turn, round after round, and their times become ratios.

A time alone says much of the machine and little of the program, so the result is the ratio to the first peer (the
reference) within each round, as the median of the rounds with the least and the greatest, or, when there are many, with
the quartiles. The order of the peers turns from round to round, so that none always comes first. A peer measures
itself: it gives seconds by name (``dump``, ``frozen``, ``restore``), and sets up and clears away outside of what it
counts.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Seconds = Mapping[str, float]

MANY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One who can do the work: ``measure`` does it once."""

    name: str
    measure: Callable[[], Seconds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One peer at one thing: seconds, and ratios to the reference in the same rounds (median, least, greatest).

    Of ``MANY`` rounds or more, least and greatest are the quartiles. Without ratios where the reference does no such
    thing.
    """

    work: str
    what: str
    peer: str
    rounds: int
    median: float
    least: float
    greatest: float
    ratio: float | None
    ratio_least: float | None
    ratio_greatest: float | None
    goal: float | None = None


def compare(
    work: str,
    peers: Sequence[Peer],
    rounds: int,
    goals: Mapping[tuple[str, str], float] | None = None,
    *,
    told: bool = True,
) -> list[Row]:
    """Let each of ``peers`` do ``work`` in every round; the first is the reference. ``goals`` by what and peer.

    Rounds of a few milliseconds are not ``told`` one by one.
    """
    times: dict[str, list[Seconds]] = {peer.name: [] for peer in peers}
    for number in range(rounds):
        turn = number % len(peers)
        for peer in (*peers[turn:], *peers[:turn]):
            if told:
                print(f"{work}: round {number + 1} of {rounds}, {peer.name}", file=sys.stderr)
            times[peer.name].append(peer.measure())
    names = dict.fromkeys(name for peer in peers for name in times[peer.name][0])
    return [
        _row(work, name, peer.name, times[peer.name], times[peers[0].name], (goals or {}).get((name, peer.name)))
        for name in names
        for peer in peers
        if name in times[peer.name][0]
    ]


def _row(
    work: str, what: str, peer: str, mine: Sequence[Seconds], reference: Sequence[Seconds], goal: float | None
) -> Row:
    seconds = [one[what] for one in mine]
    ratios = [one[what] / other[what] for one, other in zip(mine, reference, strict=True) if what in other]
    return Row(
        work=work,
        what=what,
        peer=peer,
        rounds=len(seconds),
        median=statistics.median(seconds),
        least=_spread(seconds)[0],
        greatest=_spread(seconds)[1],
        ratio=statistics.median(ratios) if ratios else None,
        ratio_least=_spread(ratios)[0] if ratios else None,
        ratio_greatest=_spread(ratios)[1] if ratios else None,
        goal=goal,
    )


def _spread(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < MANY:
        return min(values), max(values)
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def show(rows: Sequence[Row]) -> None:
    """Print ``rows`` as a table."""
    cells = [("WORK", "WHAT", "BY", "MEDIAN", "SPREAD", "RATIO", "SPREAD", "GOAL")]
    cells += [
        (
            row.work,
            row.what,
            row.peer,
            f"{row.median * 1000:.0f} ms",
            f"{row.least * 1000:.0f}-{row.greatest * 1000:.0f}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.ratio is None else f"{row.ratio_least:.2f}-{row.ratio_greatest:.2f}",
            ""
            if row.goal is None or row.ratio is None
            else f"{row.goal:g} {'met' if row.ratio <= row.goal else 'MISSED'}",
        )
        for row in rows
    ]
    table(cells)


def table(cells: Sequence[Sequence[str]]) -> None:
    """Print aligned columns: text to the left, what follows the third to the right."""
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    for line in cells:
        justified = (
            cell.rjust(width) if place > 2 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(justified).rstrip())


def write_json(path: Path, machine: Mapping[str, object], rows: Sequence[Row], **more: object) -> None:
    """Write the results, and what machine they are of, for a program."""
    content = {"machine": machine, "rows": [asdict(row) for row in rows], **more}
    path.write_text(json.dumps(content, indent=2) + "\n")
