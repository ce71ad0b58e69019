"""A bar for each measured accuracy with its interval, as SVG: one text file that browsers draw in light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from zoo.evaluation.statistics import Accuracy

LEFT, BARS, ROW, TOP, BOTTOM = 190, 380, 34, 34, 34  # pixels; the values stand to the right of the bars
WIDTH = LEFT + BARS + 150
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #24292f }
  .bar { fill: #5b8def } .clean { fill: #9aa4b2 } .whisker { stroke: #24292f; stroke-width: 1.5 }
  .grid { stroke: #d0d7de } .guess { stroke: #c0392b; stroke-dasharray: 4 3 } .small { font-size: 12px; opacity: .75 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .bar { fill: #4c7ddb } .clean { fill: #6e7681 } .whisker { stroke: #e6edf3 }
    .grid { stroke: #3d444d } .guess { stroke: #ff7b72 }
  }
"""


def accuracy_svg(title: str, accuracies: Mapping[str, Accuracy], *, unattacked: set[str], guess: float) -> str:
    """The SVG of ``accuracies`` by protocol, in their order.

    Args:
        title: read out by screen readers.
        unattacked: the protocols whose images nobody attacked; their bars are grey.
        guess: the accuracy of guessing, drawn as a dashed line.
    """
    height = TOP + ROW * len(accuracies) + BOTTOM
    said = "; ".join(f"{name} {100 * one.value:.1f} %" for name, one in accuracies.items())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">',
        f"<title>{escape(title)}</title><desc>{escape(said)}</desc><style>{STYLE}</style>",
    ]
    bottom = height - BOTTOM
    for percent in range(0, 101, 20):
        x = _x(percent / 100)
        parts.append(f'<line class="grid" x1="{x}" y1="{TOP - 8}" x2="{x}" y2="{bottom}"/>')
        parts.append(f'<text class="small" x="{x}" y="{bottom + 18}" text-anchor="middle">{percent} %</text>')
    for row, (name, one) in enumerate(accuracies.items()):
        y = TOP + ROW * row
        low, high = map(_x, one.ci95)
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 16}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{"clean" if name in unattacked else "bar"}" x="{LEFT}" y="{y}" height="22" rx="2" '
            f'width="{_x(one.value) - LEFT:.1f}"/>',
            f'<path class="whisker" fill="none" d="M{low} {y + 11}H{high}M{low} {y + 6}v10M{high} {y + 6}v10"/>',
            f'<text x="{LEFT + BARS + 12}" y="{y + 16}">{100 * one.value:.1f} %'
            f'<tspan class="small" dx="6">n = {one.n:,}</tspan></text>',
        ]
    x = _x(guess)
    parts.append(f'<line class="guess" x1="{x}" y1="{TOP - 8}" x2="{x}" y2="{bottom}"/>')
    parts.append(f'<text class="small" x="{x}" y="{TOP - 14}" text-anchor="middle">guessing</text></svg>')
    return "\n".join(parts) + "\n"


def _x(share: float) -> float:
    return round(LEFT + BARS * share, 1)
