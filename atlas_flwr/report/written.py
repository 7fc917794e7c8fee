# SPDX-License-Identifier: Apache-2.0
"""What clients have written: scores by task, client, cluster; samples to show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_flwr.ordering import by_number
from atlas_flwr.report.events import ClientEvaluated, Sampled
from atlas_flwr.report.summary import SCORES, Sample

__all__ = ["gathered_samples", "written_scores"]

Part = tuple[Mapping[str, float], int]


def written_scores(
    evaluated: Sequence[ClientEvaluated], clusters: Mapping[str, int]
) -> dict[str, Any]:
    """Return a round summary's fields of scores, each answer counted the same."""
    tasks: dict[str, list[Part]] = defaultdict(list)
    groups: dict[str, list[Part]] = defaultdict(list)
    scored = [event for event in evaluated if event.scored and event.scores]
    for event in scored:
        part = event.scores, event.scored
        tasks[event.task].append(part)
        if event.client in clusters:
            groups[str(clusters[event.client])].append(part)
    by_task = {task: _means(tasks[task]) for task in sorted(tasks)}
    return {
        **{
            name: {t: found[name] for t, found in by_task.items() if name in found}
            for name in SCORES
        },
        "client_scores": {event.client: dict(event.scores) for event in scored},
        "cluster_scores": {
            name: _means(groups[name]) for name in sorted(groups, key=by_number)
        },
    }


def _means(parts: Sequence[Part]) -> dict[str, float]:
    """Return the mean of each score, over the answers that have it."""
    means = {}
    for name in SCORES:
        known = [(scores[name], count) for scores, count in parts if name in scores]
        if known:
            total = sum(count for _, count in known)
            means[name] = sum(value * count for value, count in known) / total
    return means


def gathered_samples(
    sampled: Mapping[tuple[int, str, int], Sampled], clusters: Mapping[str, int]
) -> tuple[Sample, ...]:
    """Put the answers to one prompt side by side: the first, and the last."""
    prompts: dict[tuple[str, int], dict[int, Sampled]] = defaultdict(dict)
    for (round, client, number_of), event in sampled.items():
        prompts[client, number_of][round] = event
    found = []
    for client, number_of in sorted(prompts, key=lambda p: (by_number(p[0]), p[1])):
        events = prompts[client, number_of]
        last = events[max(events)]
        found.append(
            Sample(
                client=client,
                task=last.task,
                cluster=clusters.get(client),
                prompt=last.prompt,
                reference=last.reference,
                base=events[0].answer if 0 in events else "",
                tuned=last.answer if last.round else "",
            )
        )
    return tuple(found)
