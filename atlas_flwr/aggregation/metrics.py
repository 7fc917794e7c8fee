# SPDX-License-Identifier: Apache-2.0
"""What clients tell of their work, averaged: each metric over those who told it."""

from __future__ import annotations

import math
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
    so is a list whose length is not that of the first one. Use it as a strategy's
    ``train_metrics_aggr_fn``.

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
    for record in (next(iter(c.metric_records.values())) for c in contents):
        weight = float(_number(record[weighted_by_key]))
        for key, value in record.items():
            if key == weighted_by_key or not weight or _is_odd(value):
                continue
            numbers = value if isinstance(value, list) else [value]
            total, weights, is_list = sums.get(
                key, ([0.0] * len(numbers), 0.0, isinstance(value, list))
            )
            if len(numbers) != len(total):
                continue
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
    odd: dict[str, list[str]] = {}
    for reply in (reply for reply in replies if not reply.has_error()):
        for key in _odd_keys(reply.content.metric_records):
            odd.setdefault(key, []).append(sender(reply.metadata.src_node_id))
    for key, clients in odd.items():
        who = ", ".join(clients)
        log(WARNING, "metric %r of client %s is not finite: left out", key, who)


def _odd_keys(records: Mapping[str, MetricRecord]) -> list[str]:
    items = (item for record in records.values() for item in record.items())
    return [key for key, value in items if _is_odd(value)]


def _is_odd(value: Value) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return not all(math.isfinite(number) for number in numbers)


def _number(value: Value) -> float:
    return float(value[0] if isinstance(value, list) else value)
