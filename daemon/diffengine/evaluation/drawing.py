# SPDX-License-Identifier: GPL-2.0-or-later
"""What the figures have in common: colours, axes, and how the paper's values are drawn in."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's colours, which people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, RED, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#8C8C8C",
)
REPORT_INCHES = 9.6
TECHNIQUES = {"sharing": SKY, "patching": RED, "compression": GREEN, "swapping": GREY}
PAPER = "paper (2008)"
# Bars side by side whose values have room beside each other.
MOST_UPRIGHT = 24


def figure(columns: int = 1, rows: int = 1, height: float = 3.7, same_y: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, in order of reading. Wider, and its text would be made smaller in the report."""
    made = Figure(figsize=(REPORT_INCHES, height * rows), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False, sharey=same_y)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8.5)
    return made, list(axes.flat)


def titles(axis: Axes, title: str, x: str = "", y: str = "") -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)


def plain_numbers(axis: XAxis | YAxis) -> None:
    """Of a logarithmic axis: 100 rather than ten to the power of two."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def legend(axis: Axes, **where: Any) -> None:
    axis.legend(fontsize=8, frameon=False, **where)


def draw_paper(
    axis: Axes, x: Sequence[float], y: Sequence[float], marker: str = "D", label: str | None = PAPER
) -> None:
    """What the paper printed, as hollow marks."""
    axis.plot(x, y, marker, color="black", fillstyle="none", markersize=5, markeredgewidth=1.2, label=label)


def grouped_bars(
    axis: Axes,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    colours: Sequence[str],
    show: str = ".1f",
    paper: Mapping[str, Sequence[float | None]] | None = None,
) -> None:
    """Bars side by side for each group, with their values; the paper's as diamonds on the bars they belong to."""
    width = 0.8 / len(series)
    places = np.arange(len(groups))
    labelled = False
    for number, ((name, values), colour) in enumerate(zip(series.items(), colours, strict=False)):
        at = places - 0.4 + width * (number + 0.5)
        axis.bar(at, values, width * 0.92, label=name, color=colour)
        for x, value in zip(at, values, strict=True):
            axis.annotate(
                format(value, show),
                (x, value),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                rotation=90 if len(groups) * len(series) > MOST_UPRIGHT else 0,
            )
        for x, printed in zip(at, (paper or {}).get(name, ()), strict=False):
            if printed is not None:
                # Beside the bar's own value, which stands in its middle.
                draw_paper(axis, [x + width * 0.3], [printed], label=None if labelled else PAPER)
                labelled = True
    axis.set_xticks(places, groups)
    axis.margins(y=0.18)


def stacked_bars(axis: Axes, bars: Sequence[str], parts: Mapping[str, Sequence[float]], colours: Sequence[str]) -> None:
    bottom = np.zeros(len(bars))
    for (name, heights), colour in zip(parts.items(), colours, strict=False):
        axis.bar(range(len(bars)), heights, 0.62, bottom=bottom, label=name, color=colour)
        bottom += np.array(heights)
    axis.set_xticks(range(len(bars)), bars)


def horizontal_bars(
    axis: Axes, names: Sequence[str], lengths: Sequence[float], texts: Sequence[str], colours: Sequence[str]
) -> list[int]:
    """The first on top, each with its text at its end. Returns their places on the y axis."""
    places = list(range(len(names)))[::-1]
    axis.barh(places, lengths, 0.7, color=colours)
    for place, length, text in zip(places, lengths, texts, strict=True):
        axis.annotate(text, (length, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks(places, names)
    return places


def note_bars(axis: Axes, heights: Sequence[float], texts: Sequence[str]) -> None:
    for place, (height, text) in enumerate(zip(heights, texts, strict=True)):
        axis.annotate(text, (place, height), (0, 3), textcoords="offset points", ha="center", fontsize=8)
