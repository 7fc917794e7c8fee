# SPDX-License-Identifier: Apache-2.0
"""Which plots a run and a comparison are shown with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from atlas_flwr.config import format_bytes, parse_bytes
from atlas_flwr.report.comparison import Comparison, Measure
from atlas_flwr.report.plots import Bars, Line, bar_plot, line_plot
from atlas_flwr.report.summary import Summary

__all__ = ["comparison_charts", "run_charts"]

MOST_BARS = 64


def run_charts(summary: Summary) -> Iterator[str]:
    """Yield a run's plots as ``<svg>`` elements, leaving out those without data."""
    yield _accuracy(summary)
    if any(part.loss for part in summary.per_round):
        yield _loss(summary)
    rounds = {str(part.round): part for part in summary.per_round}
    up = {number: float(part.bytes_up) for number, part in rounds.items()}
    down = {number: float(part.bytes_down) for number, part in rounds.items()}
    yield _byte_plot("Sent by round", [Bars("up", up), Bars("down", down)])
    if summary.client_peak_bytes or summary.server_peak_bytes:
        yield _memory(summary)
    seconds = {number: part.seconds for number, part in rounds.items()}
    yield bar_plot("Seconds by round", [Bars("seconds", seconds)], _short)


def comparison_charts(comparison: Comparison) -> Iterator[str]:
    """Yield a comparison's plots as ``<svg>`` elements."""
    curves = [
        Line(
            method.name,
            {number: measure.mean for number, measure in method.curve.items()},
            {number: measure.spread or 0.0 for number, measure in method.curve.items()},
        )
        for method in comparison.methods
    ]
    yield line_plot("Mean accuracy by round, %", curves, {}, _percent)
    by_task = [
        Bars(method.name, _means(method.accuracy)) for method in comparison.methods
    ]
    if comparison.majority:
        by_task.append(Bars("majority class", _means(comparison.majority)))
    yield bar_plot("Final accuracy by task, %", by_task, _percent)
    methods = comparison.methods
    up = {m.name: m.bytes_up.mean for m in methods if m.bytes_up}
    down = {m.name: m.bytes_down.mean for m in methods if m.bytes_down}
    yield _byte_plot("Sent in a run", [Bars("up", up), Bars("down", down)])
    peaks = {m.name: m.client_peak_bytes.mean for m in methods if m.client_peak_bytes}
    if peaks:
        yield _byte_plot("Peak memory of a client", [Bars("peak", peaks)])
    times = {m.name: m.seconds.mean for m in methods if m.seconds}
    yield bar_plot("Time of a run, s", [Bars("", times)], _short)


def _accuracy(summary: Summary) -> str:
    rounds = summary.per_round
    lines = [
        Line(task, {r.round: r.accuracy[task] for r in rounds if task in r.accuracy})
        for task in summary.tasks
    ]
    means = {
        part.round: part.mean_accuracy
        for part in rounds
        if part.mean_accuracy is not None
    }
    lines.append(Line("mean", means, emphasis=True))
    known = [
        summary.majority[task] for task in summary.tasks if task in summary.majority
    ]
    complete = known and len(known) == len(summary.tasks)
    majority = {"mean majority class": sum(known) / len(known)} if complete else {}
    return line_plot("Accuracy by round, %", lines, majority, _percent)


def _loss(summary: Summary) -> str:
    tested = {r.round: r.mean_loss for r in summary.per_round}
    trained = {r.round: r.train_loss for r in summary.per_round}
    lines = [Line("test", _known(tested)), Line("training", _known(trained))]
    return line_plot("Mean loss by round", lines, {}, _short)


def _memory(summary: Summary) -> str:
    peaks = [(f"{c}", float(size)) for c, size in summary.client_peaks.items() if size]
    if len(peaks) > MOST_BARS:  # evenly from all, with the largest, the smallest first
        ordered = sorted(peaks, key=lambda item: -item[1])
        peaks = ordered[:: -(-len(peaks) // MOST_BARS)][::-1]
    server = {"server": float(summary.server_peak_bytes)}
    shown = dict(peaks) | (server if summary.server_peak_bytes else {})
    return _byte_plot("Peak memory by client", [Bars("peak", shown)])


def _known(values: Mapping[int, float | None]) -> dict[int, float]:
    return {k: v for k, v in values.items() if v is not None and math.isfinite(v)}


def _means(measures: Mapping[str, Measure]) -> dict[str, float]:
    return {name: measure.mean for name, measure in measures.items()}


def _percent(value: float) -> str:
    return f"{100 * value:.0f}"


def _byte_plot(title: str, bars: Sequence[Bars]) -> str:
    """Plot bytes in the unit of the largest, so that ticks are round numbers of it."""
    largest = max((h for group in bars for h in group.heights.values()), default=0.0)
    _, unit = format_bytes(largest).split()
    scale = parse_bytes(f"1{unit}")
    scaled = [
        Bars(group.label, {key: h / scale for key, h in group.heights.items()})
        for group in bars
    ]
    return bar_plot(f"{title}, {unit}", scaled, _short)


def _short(value: float) -> str:
    return f"{value:g}"
