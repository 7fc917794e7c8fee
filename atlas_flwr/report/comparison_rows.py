# SPDX-License-Identifier: Apache-2.0
"""A comparison as rows of text, for Markdown, HTML and the terminal alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from atlas_flwr.config import format_bytes
from atlas_flwr.report.comparison import Comparison, Measure, Method

__all__ = ["header", "legend", "markdown", "rows"]

MISSING = "–"
COSTS = ("up", "down", "client peak", "seconds")


def header(comparison: Comparison) -> list[str]:
    """Name the columns."""
    scores = ("mean", "to first", "worst client")
    return ["method", "seeds", *comparison.tasks, *scores, *COSTS]


def rows(comparison: Comparison) -> list[list[str]]:
    """Write the baselines, then a row for each method."""
    baselines = {
        "majority class": comparison.majority,
        "untrained": comparison.untrained,
    }
    tasks = comparison.tasks
    return [
        *(_baseline(name, values, tasks) for name, values in baselines.items()),
        *(_method(method, tasks) for method in comparison.methods),
    ]


def legend(comparison: Comparison) -> str:
    """Say what the numbers are."""
    return (
        "Accuracy in per cent, mean ± standard deviation over seeds; `to first`: "
        f"difference of the mean to {comparison.methods[0].name} in points, paired by "
        "seed."
    )


def markdown(comparison: Comparison) -> str:
    """Write the comparison as a Markdown table with its legend."""
    names = header(comparison)
    rule = ["---", *["--:"] * (len(names) - 1)]
    table = [names, rule, *rows(comparison)]
    lines = [f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in table]
    return "\n".join([*lines, "", legend(comparison), ""])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _baseline(
    name: str, values: Mapping[str, Measure], tasks: Sequence[str]
) -> list[str]:
    known = [values[task].mean for task in tasks if task in values]
    complete = known and len(known) == len(tasks)
    mean = f"{100 * fmean(known):.1f}" if complete else MISSING
    return [name, "", *(_points(values.get(task)) for task in tasks), mean, *[""] * 6]


def _method(method: Method, tasks: Sequence[str]) -> list[str]:
    sizes = (method.bytes_up, method.bytes_down, method.client_peak_bytes)
    return [
        method.name,
        ", ".join(str(seed) for seed in method.seeds),
        *(_points(method.accuracy.get(task)) for task in tasks),
        _points(method.mean_accuracy),
        _points(method.difference, sign="+"),
        _points(method.worst_accuracy),
        *(MISSING if size is None else format_bytes(size.mean) for size in sizes),
        MISSING if method.seconds is None else f"{method.seconds.mean:.0f}",
    ]


def _points(measure: Measure | None, sign: str = "") -> str:
    if measure is None:
        return MISSING
    spread = "" if measure.spread is None else f" ± {100 * measure.spread:.1f}"
    return f"{100 * measure.mean:{sign}.1f}{spread}"
