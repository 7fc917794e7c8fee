# SPDX-License-Identifier: Apache-2.0
"""From a run's events to its summary."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.config import RunConfig
from atlas_flwr.ordering import by_number
from atlas_flwr.report.carrying import carried
from atlas_flwr.report.classes import balanced_accuracy, macro_f1
from atlas_flwr.report.events import (
    Baseline,
    CallsRefused,
    ClientEvaluated,
    ClientTrained,
    Clustered,
    Event,
    RoundEnded,
    RunEnded,
    RunStarted,
    Sampled,
    SumsSent,
    TrunkRestarted,
)
from atlas_flwr.report.peer_events import (
    PeerLost,
    PeerMoved,
    PeersPaired,
    ReplicaLost,
    ReplicaMoved,
)
from atlas_flwr.report.store import RunFolder
from atlas_flwr.report.summary import RoundSummary, Summary
from atlas_flwr.report.written import gathered_samples, written_scores

__all__ = ["dealt_to", "summarize", "summarize_folder"]

T = TypeVar("T")
MOST_NATS = 700.0  # whose exponential is still a number
# What a round is done again for when its trunk is lost; that it was lost stays told.
DONE_AGAIN = (
    Clustered,
    ClientEvaluated,
    ClientTrained,
    PeersPaired,
    RoundEnded,
    Sampled,
    SumsSent,
)


def summarize_folder(folder: RunFolder) -> Summary:
    """Summarise a run's folder and write its ``summary.json``."""
    summary = summarize(folder.config(), folder.events())
    folder.write_summary(summary.to_json())
    return summary


def dealt_to(folder: RunFolder) -> int:
    """Count the clients that a run's texts are dealt to; all that connected, if old."""
    return folder.partitions() or summarize_folder(folder).num_clients


def summarize(config: RunConfig, events: Iterable[tuple[float, Event]]) -> Summary:
    """Summarise events with their times, oldest first.

    Where a run was resumed, what an earlier start wrote about the rounds that were done
    again counts only as time.
    """
    timeline = list(events)
    happened = _effective(event for _, event in timeline)
    log = _Log.of(happened)
    per_round = tuple(_round_summary(log, number) for number in log.rounds())
    last = {event.client: event for event in log.trained.values()}
    peaks = _peaks(log.trained.values())
    return Summary(
        strategy=config.strategy,
        model=config.model,
        seed=config.seed,
        rounds=max(log.ended, default=0),
        planned_rounds=config.num_rounds,
        finished=any(isinstance(event, RunEnded) for event in happened),
        num_clients=log.num_clients or len(log.tasks),
        clusters=dict(log.clusters),
        true_tasks=_by_client(log.tasks),
        clustering=_clustering(log.clustered),
        ranks=_by_client({client: event.rank for client, event in last.items()}),
        plans=_by_client({client: event.plan for client, event in last.items()}),
        majority={task: event.majority for task, event in log.baselines.items()},
        untrained=_untrained(log, per_round),
        per_round=per_round,
        bytes_up=sum(event.bytes_up for event in log.ended.values()),
        bytes_down=sum(event.bytes_down for event in log.ended.values()),
        client_peak_bytes=max(peaks.values(), default=0),
        server_peak_bytes=max((r.server_peak_bytes for r in per_round), default=0),
        client_peaks=peaks,
        wall_seconds=_wall_seconds(timeline),
        memberships=log.clustered.memberships if log.clustered else {},
        trunk_restarts=log.restarts,
        calls_refused=dict(log.refused),
        samples=gathered_samples(log.sampled, log.clusters),
        codecs=_by_client({c: event.codec for c, event in last.items() if event.codec}),
        **carried(happened),
    )


@dataclass
class _Log:
    """Events sorted by kind; of two about the same thing the later counts."""

    trained: dict[tuple[int, str], ClientTrained] = field(default_factory=dict)
    evaluated: dict[tuple[int, str], ClientEvaluated] = field(default_factory=dict)
    ended: dict[int, RoundEnded] = field(default_factory=dict)
    sent: dict[int, SumsSent] = field(default_factory=dict)
    baselines: dict[str, Baseline] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    clustered: Clustered | None = None
    num_clients: int = 0
    restarts: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    sampled: dict[tuple[int, str, int], Sampled] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Event]) -> _Log:
        log = cls()
        for event in events:
            log._take(event)
        return log

    def _take(self, event: Event) -> None:
        match event:
            case ClientTrained():
                self.trained[event.round, event.client] = event
                self.tasks[event.client] = event.task
            case ClientEvaluated():
                self.evaluated[event.round, event.client] = event
                self.tasks[event.client] = event.task
            case Sampled():
                self.sampled[event.round, event.client, event.number] = event
            case RoundEnded():
                self.ended[event.round] = event
            case SumsSent():
                self.sent[event.round] = event
            case Baseline():
                self.baselines[event.task] = event
            case Clustered():
                self.clustered = event
            case RunStarted():
                self.num_clients = event.num_clients
            case TrunkRestarted():
                self.restarts += 1
            case CallsRefused():
                self.refused.update(event.counts)
            case RunEnded() | PeersPaired() | PeerLost() | PeerMoved():
                pass
            case ReplicaLost() | ReplicaMoved():
                pass

    @property
    def clusters(self) -> Mapping[str, int]:
        return self.clustered.clusters if self.clustered else {}

    def rounds(self) -> list[int]:
        happened = {number for number, _ in (*self.trained, *self.evaluated)}
        return sorted(happened | self.ended.keys())


def _effective(events: Iterable[Event]) -> list[Event]:
    kept: list[Event] = []
    for event in events:
        if isinstance(event, RunStarted):
            done = event.round
            kept = [e for e in kept if e.round <= done and not isinstance(e, RunEnded)]
        elif isinstance(event, TrunkRestarted):
            done = event.round
            kept = [e for e in kept if e.round <= done or not isinstance(e, DONE_AGAIN)]
        kept.append(event)
    return kept


def _round_summary(log: _Log, number: int) -> RoundSummary:
    evaluated = [e for (r, _), e in log.evaluated.items() if r == number]
    trained = [e for (r, _), e in log.trained.items() if r == number]
    accuracy = _per_task((e.task, e.accuracy, e.weight) for e in evaluated)
    loss = _per_task((e.task, e.loss, e.weight) for e in evaluated)
    by_client = _by_client({e.client: e.accuracy for e in evaluated})
    worst = min(by_client, key=lambda client: by_client[client], default=None)
    ended = log.ended.get(number, RoundEnded(number, 0.0, 0, 0))
    return RoundSummary(
        round=number,
        **written_scores(evaluated, log.clusters),
        accuracy=accuracy,
        loss=loss,
        mean_accuracy=_mean(accuracy.values()),
        mean_loss=_mean(loss.values()),
        client_accuracy=by_client,
        worst_client=worst,
        worst_accuracy=None if worst is None else by_client[worst],
        spread=pstdev(by_client.values()) if by_client else None,
        train_loss=_mean(event.loss for event in trained),
        bytes_up=ended.bytes_up,
        bytes_down=ended.bytes_down,
        seconds=ended.seconds,
        failures=ended.failures,
        late=ended.late,
        client_peak_bytes=max((e.peak_bytes for e in trained), default=0),
        server_peak_bytes=ended.server_peak_bytes,
        skipped=sum(event.skipped for event in trained),
        balanced_accuracy=_of_classes(evaluated, balanced_accuracy),
        macro_f1=_of_classes(evaluated, macro_f1),
        perplexity={
            task: math.inf if loss[task] > MOST_NATS else math.exp(loss[task])
            for task in sorted({e.task for e in evaluated if e.writes} & loss.keys())
        },
        train_penalty=_mean(e.penalty for e in trained if e.penalty is not None),
        held_back=log.sent[number].held_back if number in log.sent else 0.0,
    )


def _of_classes(
    evaluated: Sequence[ClientEvaluated],
    score: Callable[[NDArray[np.int64]], float],
) -> dict[str, float]:
    """Score each task's classes, of its clients' examples together.

    Whoever tells of another number of classes than most is left out.
    """
    told: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for event in evaluated:
        if event.confusion:
            told[event.task].append(event.confusion)
    counts: dict[str, NDArray[np.int64]] = {}
    for task, tables in told.items():
        ((size, _),) = Counter(map(len, tables)).most_common(1)
        alike = [table for table in tables if len(table) == size]
        counts[task] = np.array(alike, dtype=np.int64).sum(axis=0)
    sizes = {task: math.isqrt(len(found)) for task, found in counts.items()}
    return {
        task: score(counts[task].reshape(sizes[task], sizes[task]))
        for task in sorted(counts)
    }


def _per_task(parts: Iterable[tuple[str, float, int]]) -> dict[str, float]:
    grouped: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for task, value, weight in parts:
        if weight > 0:
            grouped[task].append((value, weight))
    return {
        task: sum(v * w for v, w in grouped[task]) / sum(w for _, w in grouped[task])
        for task in sorted(grouped)
    }


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return fmean(listed) if listed else None


def _peaks(trained: Iterable[ClientTrained]) -> dict[str, int]:
    peaks: dict[str, int] = {}
    for event in trained:
        peaks[event.client] = max(event.peak_bytes, peaks.get(event.client, 0))
    return _by_client(peaks)


def _by_client(values: Mapping[str, T]) -> dict[str, T]:
    return {c: values[c] for c in sorted(values, key=by_number)}


def _clustering(event: Clustered | None) -> dict[str, float] | None:
    if event is None:
        return None
    scores = ("k", "silhouette", "stability", "ari", "nmi", "purity", "joined")
    found = {name: getattr(event, name) for name in scores}
    return {name: value for name, value in found.items() if value is not None}


def _untrained(log: _Log, per_round: Sequence[RoundSummary]) -> dict[str, float]:
    first = {r.round: r.accuracy for r in per_round}.get(0, {})
    told = {
        task: event.untrained
        for task, event in log.baselines.items()
        if event.untrained is not None
    }
    return {**first, **told}


def _wall_seconds(timeline: Sequence[tuple[float, Event]]) -> float:
    return sum(segment[-1] - segment[0] for segment in _segments(timeline))


def _segments(timeline: Sequence[tuple[float, Event]]) -> Iterator[list[float]]:
    segment: list[float] = []
    for at, event in timeline:
        if isinstance(event, RunStarted) and segment:
            yield segment
            segment = []
        segment.append(at)
    if segment:
        yield segment
