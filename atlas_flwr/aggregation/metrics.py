# SPDX-License-Identifier: Apache-2.0
"""What clients tell of their work, averaged: each metric over those who told it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import WARNING

from flwr.app import Message, MetricRecord, RecordDict

from atlas_flwr.log import log

__all__ = ["averaged_metrics", "name_odd_metrics"]

Value = int | float | list[int] | list[float]


def averaged_metrics(
    contents: Sequence[RecordDict], weighted_by_key: str
) -> MetricRecord:
    """Average metrics by weight, each over the clients that sent it.

    Flower's own average counts a client that left a metric out as if it had sent 0, and
    lets one NaN make the mean NaN. Here numbers that are not finite are left out, and
    so is what is of another form than most clients' (a list, or one of another length).
    Use it as a strategy's ``train_metrics_aggr_fn``.

    Parameters
    ----------
    contents : Sequence[RecordDict]
        Of the replies, with one MetricRecord each.
    weighted_by_key : str
        The metric that weighs; it is not averaged itself.

    Returns
    -------
    MetricRecord
        Empty where no client has any weight.
    """
    sums: dict[str, tuple[list[float], float, bool]] = {}
    records = [next(iter(content.metric_records.values())) for content in contents]
    forms = _forms(records)
    for record in records:
        weight = float(_number(record[weighted_by_key]))
        for key, value in record.items():
            if key == weighted_by_key or not weight or _is_odd(value):
                continue
            if _form(value) != forms[key]:
                continue
            numbers = value if isinstance(value, list) else [value]
            total, weights, is_list = sums.get(
                key, ([0.0] * len(numbers), 0.0, isinstance(value, list))
            )
            total = [t + weight * n for t, n in zip(total, numbers, strict=True)]
            sums[key] = total, weights + weight, is_list
    means: dict[str, Value] = {}
    for key, (total, weights, is_list) in sums.items():
        mean = [number / weights for number in total]
        means[key] = mean if is_list else mean[0]
    return MetricRecord(means)


def name_odd_metrics(replies: Iterable[Message], sender: Callable[[int], str]) -> None:
    """Warn of metrics that no mean can take in, with the names of who sent them.

    Parameters
    ----------
    replies : Iterable[Message]
        Those with an error are passed over.
    sender : Callable[[int], str]
        Names the client on a node.
    """
    odd: dict[tuple[str, str], list[str]] = {}
    sound = [reply for reply in replies if not reply.has_error()]
    forms = _forms(
        [r for reply in sound for r in reply.content.metric_records.values()]
    )
    for reply in sound:
        for key, value in _items(reply.content.metric_records):
            if _is_odd(value):
                why = "is not finite"
            elif isinstance(value, list) != (forms[key] >= 0):
                why = "has another form than others' (a number, or numbers in a list)"
            else:
                continue
            who = sender(reply.metadata.src_node_id)
            odd.setdefault((key, why), []).append(who)
    for (key, why), clients in odd.items():
        log(
            WARNING, "metric %r of client %s %s: left out", key, ", ".join(clients), why
        )


def _items(records: Mapping[str, MetricRecord]) -> list[tuple[str, Value]]:
    return [item for record in records.values() for item in record.items()]


def _form(value: Value) -> int:
    """Return a list's length; -1 for a single number."""
    return len(value) if isinstance(value, list) else -1


def _forms(records: Sequence[MetricRecord]) -> dict[str, int]:
    """Return the form that most clients send each metric in; the first of equals."""
    counts: dict[str, Counter[int]] = {}
    for record in records:
        for key, value in record.items():
            counts.setdefault(key, Counter())[_form(value)] += 1
    return {key: found.most_common(1)[0][0] for key, found in counts.items()}


def _is_odd(value: Value) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return not all(math.isfinite(number) for number in numbers)


def _number(value: Value) -> float:
    return float(value[0] if isinstance(value, list) else value)
