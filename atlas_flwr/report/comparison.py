# SPDX-License-Identifier: Apache-2.0
"""Several runs side by side: methods over seeds, and their differences seed by seed.

Runs that differ only in their seed are one method. Between two methods the seeds they
share are paired: the same seed means the same data, devices and initial adapters, so
the spread of the differences is often far smaller than that of the accuracies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from atlas_flwr.config import RunConfig
from atlas_flwr.errors import DataError
from atlas_flwr.report.store import RunFolder
from atlas_flwr.report.summary import RoundSummary, Summary
from atlas_flwr.report.totals import summarize_folder

__all__ = [
    "Comparison",
    "Measure",
    "Method",
    "compare",
    "compare_folders",
    "one_spelling",
]

NOT_THE_METHOD = frozenset({"seed", "run_name", "runs_dir", "resume"})


@dataclass(frozen=True)
class Measure:
    """A number over seeds.

    Attributes
    ----------
    mean : float
        Mean.
    spread : float, optional
        Standard deviation of the sample (n - 1); ``None`` for one seed.
    count : int
        Seeds.
    """

    mean: float
    spread: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Measure | None:
        """Measure the values that there are; ``None`` for none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        spread = stdev(known) if len(known) > 1 else None
        return cls(fmean(known), spread, len(known))


@dataclass(frozen=True)
class Method:
    """One method over its seeds.

    Attributes
    ----------
    name : str
        The strategy and, where another method has the same, the keys that differ.
    seeds : tuple[int, ...]
        Seeds that it was run with, ascending.
    accuracy : Mapping[str, Measure]
        Final accuracy by task.
    mean_accuracy, worst_accuracy : Measure, optional
        Final mean over tasks; of the worst client.
    difference : Measure, optional
        Of the final mean accuracy to the first method, over the shared seeds; ``None``
        for the first itself and where no seed is shared.
    curve : Mapping[int, Measure]
        Mean accuracy over tasks, by round.
    bytes_up, bytes_down, client_peak_bytes, seconds : Measure, optional
        Of the whole run; peaks that were not measured do not count.
    runs : Mapping[int, Summary]
        By seed.
    """

    name: str
    seeds: tuple[int, ...]
    accuracy: Mapping[str, Measure]
    mean_accuracy: Measure | None
    worst_accuracy: Measure | None
    difference: Measure | None
    curve: Mapping[int, Measure]
    bytes_up: Measure | None
    bytes_down: Measure | None
    client_peak_bytes: Measure | None
    seconds: Measure | None
    runs: Mapping[int, Summary]


@dataclass(frozen=True)
class Comparison:
    """Methods in the order in which their runs were given.

    Attributes
    ----------
    methods : tuple[Method, ...]
        The first is what the others are compared with.
    tasks : tuple[str, ...]
        Names of all tasks.
    majority, untrained : Mapping[str, Measure]
        By task, over seeds; of a seed's runs the first counts.
    """

    methods: tuple[Method, ...]
    tasks: tuple[str, ...]
    majority: Mapping[str, Measure]
    untrained: Mapping[str, Measure]


Run = tuple[RunConfig, Summary]


def compare_folders(folders: Sequence[RunFolder]) -> Comparison:
    """Compare run folders; their summaries are rebuilt from their events."""
    return compare([(f.config(), summarize_folder(f)) for f in folders])


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare runs; of two with the same configuration and seed the later counts.

    Raises
    ------
    DataError
        When there is none.
    """
    if not runs:
        raise DataError("nothing to compare: give at least one run")
    grouped = _grouped(runs)
    names = _names(list(grouped))
    first = next(iter(grouped.values()))
    summaries = [summary for _, summary in runs]
    tasks = sorted({task for summary in summaries for task in summary.tasks})
    one_a_seed = {summary.seed: summary for summary in reversed(summaries)}
    return Comparison(
        methods=tuple(
            _method(names[config], by_seed, first)
            for config, by_seed in grouped.items()
        ),
        tasks=tuple(tasks),
        majority=_measures(tasks, [s.majority for s in one_a_seed.values()]),
        untrained=_measures(tasks, [s.untrained for s in one_a_seed.values()]),
    )


def _grouped(runs: Sequence[Run]) -> dict[RunConfig, dict[int, Summary]]:
    grouped: dict[RunConfig, dict[int, Summary]] = {}
    for config, summary in runs:
        defaults = {name: getattr(RunConfig(), name) for name in NOT_THE_METHOD}
        method = dataclasses.replace(one_spelling(config), **defaults)
        grouped.setdefault(method, {})[config.seed] = summary
    return grouped


def one_spelling(config: RunConfig) -> RunConfig:
    """Return a configuration with one path for each place that a task file lies in.

    A file that is itself a link stays where it is: its data lie beside the link.

    Parameters
    ----------
    config : RunConfig
        A run's; its relative paths are seen from its app, and stay.
    """
    return dataclasses.replace(config, tasks=",".join(map(_place, config.task_list)))


def _place(task: str) -> str:
    path = Path(task)
    return str(path.parent.resolve() / path.name) if path.is_absolute() else task


def _names(methods: Sequence[RunConfig]) -> dict[RunConfig, str]:
    names = {}
    for method in methods:
        alike = [other for other in methods if other.strategy == method.strategy]
        differing = [
            f"{entry.name.replace('_', '-')}={_told(method, entry.name, alike)}"
            for entry in dataclasses.fields(RunConfig)
            if len({getattr(other, entry.name) for other in alike}) > 1
        ]
        names[method] = " ".join([method.strategy, *differing])
    return names


def _told(method: RunConfig, key: str, alike: Sequence[RunConfig]) -> object:
    """Return a key's value; tasks by their names, where these tell methods apart."""
    if key == "tasks":
        named = {other.tasks: _task_names(other) for other in alike}
        if len(set(named.values())) == len(named):
            return named[method.tasks]
    return getattr(method, key)


def _task_names(config: RunConfig) -> str:
    return ",".join(Path(task).stem for task in config.task_list)


def _method(
    name: str, by_seed: Mapping[int, Summary], first: Mapping[int, Summary]
) -> Method:
    summaries = list(by_seed.values())
    finals = [summary.final for summary in summaries]
    tasks = sorted({task for summary in summaries for task in summary.tasks})
    return Method(
        name=name,
        seeds=tuple(sorted(by_seed)),
        accuracy=_measures(tasks, [f.accuracy if f else {} for f in finals]),
        mean_accuracy=Measure.of(_final_mean(summary) for summary in summaries),
        worst_accuracy=Measure.of(f.worst_accuracy if f else None for f in finals),
        difference=None if by_seed is first else _difference(by_seed, first),
        curve=_curve(summaries),
        bytes_up=Measure.of(float(s.bytes_up) for s in summaries),
        bytes_down=Measure.of(float(s.bytes_down) for s in summaries),
        client_peak_bytes=Measure.of(s.client_peak_bytes or None for s in summaries),
        seconds=Measure.of(s.wall_seconds for s in summaries),
        runs=dict(sorted(by_seed.items())),
    )


def _measures(
    tasks: Sequence[str], values: Sequence[Mapping[str, float]]
) -> dict[str, Measure]:
    found = {task: Measure.of(v.get(task) for v in values) for task in tasks}
    return {task: measure for task, measure in found.items() if measure is not None}


def _final_mean(summary: Summary) -> float | None:
    return summary.final.mean_accuracy if summary.final else None


def _difference(
    by_seed: Mapping[int, Summary], first: Mapping[int, Summary]
) -> Measure | None:
    differences = []
    for seed in sorted(by_seed.keys() & first.keys()):
        ours, theirs = _final_mean(by_seed[seed]), _final_mean(first[seed])
        if ours is not None and theirs is not None:
            differences.append(ours - theirs)
    return Measure.of(differences)


def _curve(summaries: Sequence[Summary]) -> dict[int, Measure]:
    by_round: dict[int, list[RoundSummary]] = {}
    for summary in summaries:
        for part in summary.per_round:
            by_round.setdefault(part.round, []).append(part)
    means = {
        number: Measure.of(part.mean_accuracy for part in by_round[number])
        for number in sorted(by_round)
    }
    return {number: mean for number, mean in means.items() if mean is not None}
