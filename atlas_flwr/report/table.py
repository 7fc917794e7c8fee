# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal, as plain text."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from atlas_flwr.config import format_bytes
from atlas_flwr.ordering import by_number
from atlas_flwr.report.summary import SCORES, RoundSummary, Summary

__all__ = [
    "SCORE_COLUMNS",
    "accuracy_columns",
    "accuracy_rows",
    "as_text",
    "final_table",
    "number",
    "percent",
    "round_table",
    "score_rows",
]

MISSING = "–"
HUGE = 1e9  # from here on a number is written with an exponent
SCORE_COLUMNS = ("score", "untrained", "trained")


def percent(value: float | None) -> str:
    """Write a share as per cent with one decimal; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:.1f}"


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with fixed digits, if it is not huge; a dash where there is none.

    The perplexity of a model that diverged may have hundreds before the point.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    kind = "f" if abs(value) < HUGE else "e"
    return f"{value:.{digits}{kind}}"


def as_text(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], total: bool = True
) -> str:
    """Set a table in text: the first column to the left, numbers to the right.

    Parameters
    ----------
    title : str
        Line above the table.
    header : Sequence[str]
        Names of the columns.
    rows : Sequence[Sequence[str]]
        Cells.
    total : bool
        Whether the last row sums the others up, and a line parts it from them.
    """
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for index, row in enumerate(rows):
        table.add_row(*row, end_section=total and index == len(rows) - 2)
    stream = io.StringIO()
    Console(file=stream, width=200, color_system=None, markup=False).print(table)
    lines = (line.rstrip() for line in stream.getvalue().splitlines())
    return "\n".join(line for line in lines if line)


def round_table(summary: Summary, number_of: int | None = None) -> str:
    """Set one round's table: each task untrained, by majority, and now.

    Parameters
    ----------
    summary : Summary
        The run so far.
    number_of : int, optional
        The round; ``None`` is the last.

    Returns
    -------
    str
        Empty where there is no such round.
    """
    found = [r for r in summary.per_round if number_of in (None, r.round)]
    if not found:
        return ""
    now = found[-1]
    rows = [_round_row(summary, now, task) for task in summary.tasks]
    rows.append(
        [
            "mean",
            percent(_mean_over(summary.untrained, summary.tasks)),
            percent(_mean_over(summary.majority, summary.tasks)),
            percent(now.mean_accuracy),
            number(now.mean_loss),
        ]
    )
    title = f"round {now.round} of {summary.planned_rounds} · {summary.strategy}"
    header = ("accuracy, %", "untrained", "majority", f"round {now.round}", "loss")
    return f"{as_text(title, header, rows)}\n{_costs(now)}"


def final_table(summary: Summary) -> str:
    """Set the run's last table: untrained, majority class and trained, side by side."""
    where = f"after round {summary.final.round}" if summary.final else "not evaluated"
    title = f"{summary.strategy} · {summary.model} · seed {summary.seed} · {where}"
    header = ("accuracy, %", *accuracy_columns(summary))
    table = f"{as_text(title, header, accuracy_rows(summary))}\n{_totals(summary)}"
    written = score_rows(summary)
    if not written:
        return table
    columns = ("written text", *SCORE_COLUMNS)
    return f"{table}\n{as_text('', columns, written, total=False)}"


def accuracy_columns(summary: Summary) -> tuple[str, ...]:
    """Name the columns of :func:`accuracy_rows` after the tasks'."""
    return tuple(_columns(summary))


def _columns(summary: Summary) -> dict[str, Mapping[str, float]]:
    """Values by task; runs of an older version have no scores of the classes."""
    final = summary.final
    columns = {
        "untrained": summary.untrained,
        "majority class": summary.majority,
        "trained": final.accuracy if final else {},
    }
    if final and final.balanced_accuracy:
        columns["balanced"] = final.balanced_accuracy
        columns["macro-F1"] = final.macro_f1
    return columns


def accuracy_rows(summary: Summary) -> list[list[str]]:
    """Write accuracies by task, untrained, by majority and trained, and their means.

    Where they are known, the trained model's scores that count each class the same
    come last: balanced accuracy and macro-F1.
    """
    columns = [*_columns(summary).values()]
    rows = [[task, *(percent(c.get(task)) for c in columns)] for task in summary.tasks]
    means = [percent(_mean_over(column, summary.tasks)) for column in columns]
    return [*rows, ["mean", *means]]


def score_rows(summary: Summary) -> list[list[str]]:
    """Write what is known of each task that is answered by text, and of each cluster.

    Loss, in nats a token, and perplexity are numbers, all else per cent.
    """
    first, final = summary.first, summary.final
    before = first.perplexity if first else {}
    after = final.perplexity if final else {}
    rows = []
    for task in sorted({*before, *after}):
        pair = before.get(task), after.get(task)
        losses = (part.loss.get(task) if part else None for part in (first, final))
        rows.append([task, "loss", *map(number, losses)])
        rows.append([task, "perplexity", *(number(value, 1) for value in pair)])
        for name in SCORES:
            old = getattr(first, name).get(task) if first else None
            new = getattr(final, name).get(task) if final else None
            if old is not None or new is not None:
                rows.append([task, f"{name}, %", percent(old), percent(new)])
    return [*rows, *_cluster_rows(summary)]


def _cluster_rows(summary: Summary) -> list[list[str]]:
    first, final = summary.first, summary.final
    before = first.cluster_scores if first else {}
    after = final.cluster_scores if final else {}
    return [
        [
            f"cluster {cluster}",
            f"{name}, %",
            percent(before.get(cluster, {}).get(name)),
            percent(after.get(cluster, {}).get(name)),
        ]
        for cluster in sorted({*before, *after}, key=by_number)
        for name in SCORES
        if name in before.get(cluster, {}) or name in after.get(cluster, {})
    ]


def _round_row(summary: Summary, now: RoundSummary, task: str) -> list[str]:
    return [
        task,
        percent(summary.untrained.get(task)),
        percent(summary.majority.get(task)),
        percent(now.accuracy.get(task)),
        number(now.loss.get(task)),
    ]


def _mean_over(values: Mapping[str, float], tasks: Sequence[str]) -> float | None:
    known = [values[task] for task in tasks if task in values]
    complete = known and len(known) == len(tasks)
    return sum(known) / len(known) if complete else None


def _costs(now: RoundSummary) -> str:
    parts = [
        f"up {format_bytes(now.bytes_up)}",
        f"down {format_bytes(now.bytes_down)}",
        f"{now.seconds:.1f} s",
    ]
    if now.worst_client is not None:
        worst = f"worst client {now.worst_client} at {percent(now.worst_accuracy)} %"
        parts.append(worst)
    if now.failures:
        parts.append(f"{now.failures} failed")
    if now.late:
        parts.append(f"{now.late} late")
    return "  " + " · ".join(parts)


def _totals(summary: Summary) -> str:
    parts = [
        f"up {format_bytes(summary.bytes_up)}",
        f"down {format_bytes(summary.bytes_down)}",
        f"client peak {_bytes_or_dash(summary.client_peak_bytes)}",
        f"server peak {_bytes_or_dash(summary.server_peak_bytes)}",
        f"{summary.wall_seconds:.1f} s",
    ]
    return "  " + " · ".join(parts)


def _bytes_or_dash(size: int) -> str:
    return format_bytes(size) if size else MISSING
