"""How a comparison is made: in turn, by round, against the first. No time is asserted, because none is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benches import measure, plot
from benches.measure import Peer
from benches.net import Size, batch


def peer(name: str, seconds: list[dict[str, float]], turns: list[str] | None = None) -> Peer:
    """One whose measurements are given."""
    left: Iterator[dict[str, float]] = iter(seconds)

    def take() -> dict[str, float]:
        if turns is not None:
            turns.append(name)
        return next(left)

    return Peer(name=name, measure=take)


def test_compare_gives_ratios_within_each_round() -> None:
    reference = peer("criu", [{"dump": 1.0}, {"dump": 10.0}, {"dump": 2.0}])
    other = peer("ckpt", [{"dump": 2.0, "own": 5.0}, {"dump": 10.0, "own": 5.0}, {"dump": 6.0, "own": 5.0}])
    first, second, own = measure.compare("10 MB", [reference, other], 3, {("dump", "ckpt"): 1.5})
    assert (first.ratio, first.ratio_least, first.ratio_greatest) == (1.0, 1.0, 1.0)
    assert (second.median, second.least, second.greatest) == (6.0, 2.0, 10.0)
    assert (second.ratio, second.ratio_least, second.ratio_greatest, second.goal) == (2.0, 1.0, 3.0, 1.5)
    assert (own.what, own.peer, own.ratio) == ("own", "ckpt", None)


def test_compare_of_many_rounds_leaves_out_the_outer_quarters() -> None:
    reference = peer("before", [{"bind": 1.0}] * 21)
    other = peer("after", [{"bind": float(number)} for number in range(20)] + [{"bind": 1000.0}])
    _, row = measure.compare("x", [reference, other], 21, told=False)
    assert (row.ratio, row.ratio_least, row.ratio_greatest) == (10.0, 4.5, 15.5)


def test_compare_lets_none_always_come_first() -> None:
    turns: list[str] = []
    measure.compare("x", [peer(name, [{"t": 1.0}] * 3, turns) for name in "abc"], 3)
    assert turns == list("abcbcacab")


def test_results_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers = [peer("ip", [{"read": 0.1}]), peer("ckpt", [{"read": 0.3, "sysctls": 0.1}])]
    rows = measure.compare("net", peers, 1, {("read", "ckpt"): 2.0})
    capsys.readouterr()
    measure.show(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["net", "read", "ckpt", "300", "ms", "300-300", "3.00", "3.00-3.00", "2", "MISSED"]
    assert lines[3].split() == ["net", "sysctls", "ckpt", "100", "ms", "100-100"]
    measure.write_json(tmp_path / "out.json", {"cpus": 2}, rows)
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["machine"], [row["peer"] for row in written["rows"]]) == ({"cpus": 2}, ["ip", "ckpt", "ckpt"])


def test_batch_makes_as_many_as_it_says() -> None:
    lines = batch(Size(links=100, addresses=200, routes=1000)).splitlines()
    counts = {kind: sum(line.startswith(kind) for line in lines) for kind in ("link add", "address add", "route add")}
    assert counts == {"link add": 50, "address add": 200, "route add": 1000}
    assert len(set(lines)) == len(lines)


def test_plot_draws_a_bar_for_each_peer_but_the_reference() -> None:
    peers = [peer("criu", [{"dump": 1.0}]), peer("ckpt <x>", [{"dump": 1.5}])]
    rows = measure.compare("10 MB", peers, 1, {("dump", "ckpt <x>"): 1.25})
    drawn = ElementTree.fromstring(plot.drawing(rows))
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in drawn.iter(f"{space}text")]
    assert texts == ["10 MB: dump, as a multiple of criu's", "ckpt <x>", "1.50"]
    (bar,) = drawn.iter(f"{space}rect")
    marks = {line.get("class"): float(line.get("x1", "")) for line in drawn.iter(f"{space}line")}
    # All in one measure: the bar ends at 1.5, the marks stand at 1 and at the goal.
    start, length = float(bar.get("x", "")), float(bar.get("width", ""))
    assert [round((marks[kind] - start) / length, 2) for kind in ("one", "goal")] == [0.67, 0.83]
