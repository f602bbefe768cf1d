"""The ratios of a benchmark as a drawing: a bar for each peer, a line for its spread, and marks for 1 and the goal.

An SVG of plain shapes, which any browser shows; it takes its colours from whether the page is light or dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from benches.measure import Row

_LABELS, _BARS, _LINE, _MARGIN = 150, 460, 18, 12

_STYLE = """\
text { font: 12px sans-serif; fill: #222 } .head { font-weight: bold } .bar { fill: #7aa6c2 } .ckpt { fill: #2b6f9e }
.spread { stroke: #222 } .one { stroke: #888; stroke-dasharray: 3 3 } .goal { stroke: #b5403a; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .spread { stroke: #ddd } }"""


def drawing(rows: Sequence[Row]) -> str:
    """All rows that have a ratio, the reference's left out, by work and what was measured."""
    groups: dict[str, list[Row]] = {}
    references: dict[str, str] = {}
    for row in rows:
        key = f"{row.work}: {row.what}"
        references.setdefault(key, row.peer)
        if row.ratio is not None and row.peer != references[key]:
            groups.setdefault(f"{key}, as a multiple of {references[key]}'s", []).append(row)
    most = max((row.ratio_greatest or 0.0 for group in groups.values() for row in group), default=1.0)
    scale = _BARS / max(most, 1.0)
    body: list[str] = []
    at = _MARGIN
    for head, group in groups.items():
        body.append(_text(_MARGIN, at, head, "head"))
        at += _LINE
        body.append(_line(_LABELS + scale, at, at + _LINE * len(group), "one"))
        for row in group:
            body += _bar(row, at, scale)
            at += _LINE
        at += _LINE // 2
    size = f'width="{_LABELS + _BARS + 60}" height="{at}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{_STYLE}</style>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _bar(row: Row, at: int, scale: float) -> Iterator[str]:
    assert row.ratio is not None and row.ratio_least is not None and row.ratio_greatest is not None
    yield _text(_MARGIN, at, row.peer)
    kind = "bar ckpt" if row.peer.startswith("ckpt") else "bar"
    yield f'<rect class="{kind}" x="{_LABELS}" y="{at + 3}" width="{row.ratio * scale:.1f}" height="{_LINE - 6}"/>'
    least, greatest = (_LABELS + ratio * scale for ratio in (row.ratio_least, row.ratio_greatest))
    middle = at + _LINE // 2
    yield f'<line class="spread" x1="{least:.1f}" x2="{greatest:.1f}" y1="{middle}" y2="{middle}"/>'
    if row.goal is not None:
        yield _line(_LABELS + row.goal * scale, at + 1, at + _LINE - 1, "goal")
    yield _text(greatest + 6, at, f"{row.ratio:.2f}")


def _text(x: float, at: int, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{at + 13}">{escape(text)}</text>'


def _line(x: float, top: int, bottom: int, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
