# SPDX-License-Identifier: Apache-2.0
"""Line and bar plots as SVG text that takes its colours from the page around it.

Text, axes and grid are drawn in marker colours that become CSS variables with a
fallback, so that one SVG is legible on light and dark pages, and on its own. Series
have colours of middle lightness, and markers whose shape tells them apart as well.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

__all__ = ["Bars", "Line", "bar_plot", "line_plot"]

INK, RULE = "#010203", "#040506"
VARIABLES = {INK: "var(--ink, #3a3f47)", RULE: "var(--rule, #d5d9e0)"}
COLOURS = (
    "#3b82c4",
    "#d9822b",
    "#3f9f5f",
    "#d1495b",
    "#8f6bb3",
    "#2a9d9d",
    "#9a7350",
    "#c766a3",
)
MARKERS = "osD^vPX*"
SIZE_IN = (4.8, 3.0)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "atlas-flwr",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": RULE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,
}
UNWANTED = (
    re.compile(r'(?<=<g) id="[^"]*"'),
    re.compile(r"<defs>\s*<style.*?</style>\s*</defs>\s*", re.DOTALL),
    re.compile(r' (?:width|height)="[\d.]+pt"'),
    re.compile(r"font-family: [^;\"]*;? ?"),
)
Write = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """Points joined by a line.

    Attributes
    ----------
    label : str
        For the legend; empty for none.
    points : Mapping[int, float]
        Height by round.
    spreads : Mapping[int, float]
        Half height of the band around it, where known.
    emphasis : bool
        Draw it thick and in the colour of the text.
    """

    label: str
    points: Mapping[int, float]
    spreads: Mapping[int, float] | None = None
    emphasis: bool = False


@dataclass(frozen=True)
class Bars:
    """One bar a category."""

    label: str
    heights: Mapping[str, float]


def line_plot(
    title: str, lines: Sequence[Line], references: Mapping[str, float], write: Write
) -> str:
    """Plot lines over rounds.

    Parameters
    ----------
    title : str
        Above the plot; also what a screen reader says.
    lines : Sequence[Line]
        What to plot.
    references : Mapping[str, float]
        Dashed horizontal lines, by their label.
    write : Callable[[float], str]
        Writes the ticks of the vertical axis.

    Returns
    -------
    str
        An ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        colours, markers = cycle(COLOURS), cycle(MARKERS)
        for line in lines:
            if line.emphasis:
                _draw_line(axes, line, INK, "")
            else:
                _draw_line(axes, line, next(colours), next(markers))
        for label, height in references.items():
            axes.axhline(height, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                label, (1, height), xycoords=("axes fraction", "data"), ha="right",
                va="bottom", fontsize=8,
            )  # fmt: skip
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return _plot(title, draw, write)


def bar_plot(title: str, bars: Sequence[Bars], write: Write) -> str:
    """Plot bars, those of a category side by side; arguments as :func:`line_plot`."""
    categories = list(dict.fromkeys(key for group in bars for key in group.heights))

    def draw(axes: Axes) -> None:
        width = 0.8 / max(len(bars), 1)
        for index, (group, colour) in enumerate(
            zip(bars, cycle(COLOURS), strict=False)
        ):
            shift = (index - (len(bars) - 1) / 2) * width
            places = [
                i + shift for i, key in enumerate(categories) if key in group.heights
            ]
            heights = [group.heights[key] for key in categories if key in group.heights]
            axes.bar(places, heights, width * 0.92, color=colour, label=group.label)
        shown = range(0, len(categories), 1 + len(categories) // 13)
        axes.set_xticks(list(shown), [categories[i] for i in shown])
        axes.grid(axis="x", visible=False)

    return _plot(title, draw, write)


def _draw_line(axes: Axes, line: Line, colour: str, marker: str) -> None:
    places, heights = list(line.points), list(line.points.values())
    width = 2.6 if line.emphasis else 1.6
    axes.plot(
        places, heights, color=colour, marker=marker, markersize=4.5, linewidth=width,
        label=line.label,
    )  # fmt: skip
    if line.spreads:
        spreads = [line.spreads.get(place, 0.0) for place in places]
        low = [h - s for h, s in zip(heights, spreads, strict=True)]
        high = [h + s for h, s in zip(heights, spreads, strict=True)]
        axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)


def _plot(title: str, draw: Callable[[Axes], None], write: Write) -> str:
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
        labels = [label for label in axes.get_legend_handles_labels()[1] if label]
        if len(labels) > 1:
            if axes.patches:  # bars leave no room for it
                axes.set_ylim(top=1.25 * axes.get_ylim()[1])
            axes.legend(ncols=2 if len(labels) > 4 else 1, loc="best", framealpha=0)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inline(stream.getvalue(), title)


def _inline(document: str, title: str) -> str:
    """Take the ``<svg>`` element out of the document, for use within a page.

    Identifiers that nothing refers to and the style of ``*`` would clash with the
    page's and other plots'; sizes and fonts are the page's.
    """
    element = document[document.index("<svg") :].strip()
    for pattern in UNWANTED:
        element = pattern.sub("", element)
    for colour, variable in VARIABLES.items():
        element = element.replace(colour, variable)
    named = f'<svg role="img" aria-label="{_attribute(title)}" stroke-linejoin="round"'
    return element.replace("<svg", named, 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
