# SPDX-License-Identifier: Apache-2.0
"""The HTML pages of a run and of a comparison: one file each, with nothing to load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from atlas_flwr.config import RunConfig, format_bytes, to_yaml
from atlas_flwr.remedies import remedy_warnings
from atlas_flwr.report import comparison_rows
from atlas_flwr.report.charts import comparison_charts, run_charts
from atlas_flwr.report.comparison import Comparison
from atlas_flwr.report.privacy import PRIVACY_COLUMNS, privacy_rows
from atlas_flwr.report.store import RunFolder, replace_text
from atlas_flwr.report.summary import Summary
from atlas_flwr.report.table import (
    SCORE_COLUMNS,
    accuracy_columns,
    accuracy_rows,
    number,
    percent,
    score_rows,
)
from atlas_flwr.report.totals import summarize_folder

__all__ = ["Membership", "comparison_page", "run_page", "write_report"]

MOST_CELLS = 40
MISSING = "–"


@dataclass(frozen=True)
class Card:
    """A figure and what it is."""

    label: str
    value: str


@dataclass(frozen=True)
class Membership:
    """Clusters against true tasks.

    Attributes
    ----------
    clusters, true_tasks : Mapping
        Cluster and task by client.
    order : tuple[str, ...]
        Clients by task; empty where they are too many to draw.
    tasks : tuple[str, ...]
        Names of the tasks.
    counts : Mapping[int, tuple[int, ...]]
        By cluster: members of each task.
    verdict : str
        The agreement in words.
    """

    clusters: Mapping[str, int]
    true_tasks: Mapping[str, str]
    order: tuple[str, ...]
    tasks: tuple[str, ...]
    counts: Mapping[int, tuple[int, ...]]
    verdict: str

    @classmethod
    def of(cls, summary: Summary) -> Membership | None:
        """Take it from a summary; ``None`` where nobody was clustered."""
        clusters, tasks = summary.clusters, summary.true_tasks
        known = [client for client in tasks if client in clusters]
        if not known:
            return None
        names = tuple(sorted({tasks[client] for client in known}))
        labels = sorted({clusters[client] for client in known})
        pairs = [(clusters[client], tasks[client]) for client in known]
        counts = {c: tuple(pairs.count((c, task)) for task in names) for c in labels}
        order = tuple(sorted(known, key=lambda c: (tasks[c], clusters[c])))
        drawn = order if len(order) <= MOST_CELLS else ()
        return cls(clusters, tasks, drawn, names, counts, _verdict(summary))

    def words(self) -> list[str]:
        """Tell each cluster's members by their tasks."""
        return [
            " + ".join(
                f"{count} {task}"
                for count, task in zip(found, self.tasks, strict=True)
                if count
            )
            for found in self.counts.values()
        ]

    def cell(self, one: str, other: str) -> str:
        """Classes of the cell of two clients: c for same cluster, t for same task."""
        cluster = "c" if self.clusters[one] == self.clusters[other] else ""
        task = "t" if self.true_tasks[one] == self.true_tasks[other] else ""
        return f"{cluster} {task}".strip()


def write_report(folder: RunFolder) -> Path:
    """Rebuild a run's ``summary.json`` and ``report.html``; return the page's path."""
    summary = summarize_folder(folder)
    page = run_page(summary, folder.config(), privacy_rows(folder))
    replace_text(folder.report_path, page)
    return folder.report_path


def run_page(
    summary: Summary, config: RunConfig, attacks: Sequence[Sequence[str]] = ()
) -> str:
    """Make the page of a run; ``attacks`` are rows of what was read of its wire."""
    state = "" if summary.finished else ", not finished"
    return _render(
        "run.html",
        title=f"{summary.strategy} · {summary.model}",
        subtitle=(
            f"seed {summary.seed} · {summary.num_clients} clients · "
            f"round {summary.rounds} of {summary.planned_rounds}{state}"
        ),
        summary=summary,
        cards=list(_cards(summary)),
        accuracy=accuracy_rows(summary),
        columns=accuracy_columns(summary),
        charts=[Markup(chart) for chart in run_charts(summary)],
        membership=Membership.of(summary),
        clients=list(_clients(summary)),
        attacks=attacks,
        attack_columns=PRIVACY_COLUMNS,
        warnings=remedy_warnings(config),
        scores=score_rows(summary),
        score_columns=SCORE_COLUMNS,
        config_yaml=to_yaml(config),
    )


def comparison_page(comparison: Comparison) -> str:
    """Make the page of a comparison."""
    return _render(
        "compare.html",
        title=" · ".join(method.name for method in comparison.methods),
        legend=comparison_rows.legend(comparison),
        header=comparison_rows.header(comparison),
        rows=comparison_rows.rows(comparison),
        charts=[Markup(chart) for chart in comparison_charts(comparison)],
        clustered=list(_clustered(comparison)),
    )


def _clustered(comparison: Comparison) -> Iterator[tuple[str, int, list[str], str]]:
    """Yield method, seed, clusters and verdict of each run whose clients were."""
    for method in comparison.methods:
        for seed, summary in method.runs.items():
            found = Membership.of(summary)
            if found is not None and summary.clustering:
                yield method.name, seed, found.words(), found.verdict


def _render(template: str, **values: object) -> str:
    environment = Environment(
        loader=PackageLoader("atlas_flwr.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A Flower app bundle carries Markdown, but no HTML: hence the files' names.
    return environment.get_template(f"{template}.md").render(**values)


def _cards(summary: Summary) -> Iterator[Card]:
    final = summary.final
    if final:
        yield Card("mean accuracy", f"{percent(final.mean_accuracy)} %")
        yield Card("worst client", f"{percent(final.worst_accuracy)} %")
    if summary.clustering:
        yield Card("clusters", str(summary.clustering["k"]))
        if "ari" in summary.clustering:
            ari = number(summary.clustering["ari"], 2)
            yield Card("agreement with tasks (ARI)", ari)
    yield Card("sent by clients", format_bytes(summary.bytes_up))
    yield Card("sent to clients", format_bytes(summary.bytes_down))
    if summary.client_peak_bytes:
        yield Card("client peak", format_bytes(summary.client_peak_bytes))
    if summary.server_peak_bytes:
        yield Card("server peak", format_bytes(summary.server_peak_bytes))
    yield Card("wall time", _duration(summary.wall_seconds))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _clients(summary: Summary) -> Iterator[Sequence[str]]:
    final = summary.final.client_accuracy if summary.final else {}
    scores = summary.final.client_scores if summary.final else {}
    for client, task in summary.true_tasks.items():
        peak = summary.client_peaks.get(client, 0)
        yield (
            client,
            task,
            str(summary.clusters.get(client, MISSING)),
            _shares(summary.memberships.get(client, {})),
            summary.plans.get(client) or MISSING,
            str(summary.ranks.get(client) or MISSING),
            format_bytes(peak) if peak else MISSING,
            percent(final.get(client)),
            ", ".join(f"{name} {percent(v)}" for name, v in scores[client].items())
            if client in scores
            else MISSING,
        )


def _shares(membership: Mapping[str, float]) -> str:
    """Tell a client's share in each cluster, the largest first, in percent."""
    told = {label: percent(share) for label, share in membership.items()}
    order = sorted(membership, key=lambda label: -membership[label])
    shown = [f"{label}: {told[label]}" for label in order if membership[label] > 0.0005]
    return ", ".join(shown) or MISSING


def _verdict(summary: Summary) -> str:
    scores = summary.clustering or {}
    words = {
        "silhouette": "silhouette",
        "stability": "stability",
        "ari": "adjusted Rand index",
        "nmi": "normalised mutual information",
        "purity": "purity",
    }
    told = [f"{words[k]} {number(scores[k], 2)}" for k in words if k in scores]
    clusters = scores.get("k", len(set(summary.clusters.values())))
    tasks = len(set(summary.true_tasks.values()))
    return "; ".join([f"clusters: {clusters}", f"true tasks: {tasks}", *told])
