# SPDX-License-Identifier: Apache-2.0
"""What a client's reply to a round of training must be."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from atlas_flwr.clustering import fingerprint
from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState, kept_rank
from atlas_flwr.protocol import keys

__all__ = [
    "CLIENT_APP_RAISED",
    "alpha_of",
    "check_trained",
    "reason_of",
    "records_of",
    "update_sketch",
    "weight_of",
]

CLIENT_APP_RAISED = 2  # Flower's code for an error reply of a ClientApp

_RAYS_DETAILS = " class_name:"  # of an actor that died: ids, and common causes
_FLOWERS_FORM = re.compile(r"<class '(?:\w+\.)*(\w+)'>:<'(.*?)(?:'>)?$")


def reason_of(reply: Message) -> str:
    """Return in one line why a reply is an error."""
    told = " ".join(str(reply.error.reason).split()).partition(_RAYS_DETAILS)[0]
    return _FLOWERS_FORM.sub(r"\1: \2", told)


def records_of(
    message: Message, sender: str, weighted_by_key: str
) -> tuple[ArrayRecord, MetricRecord, float]:
    """Return a training reply's arrays, metrics and weight.

    Raises
    ------
    AdapterError
        Naming the sender, if one is missing, or the weight is not above zero.
    """
    content = message.content
    updates, told = content.array_records, content.metric_records
    if len(updates) != 1 or len(told) != 1:
        raise AdapterError(
            f"{sender}: a reply needs one ArrayRecord and one MetricRecord; it has "
            f"{[*updates]} and {[*told]}"
        )
    weight = weight_of(message, sender, weighted_by_key)
    if not weight:
        raise AdapterError(
            f"{sender}: {weighted_by_key!r} is {weight:g}; it must be a number above 0"
        )
    (arrays,), (metrics,) = updates.values(), told.values()
    return arrays, metrics, weight


def weight_of(message: Message, sender: str, weighted_by_key: str) -> float:
    """Return what a reply says that it weighs: a number, at least 0.

    Raises
    ------
    AdapterError
        Naming the sender, if it has not one MetricRecord, or this no such number.
    """
    told = message.content.metric_records
    if len(told) != 1:
        raise AdapterError(
            f"{sender}: a reply needs one MetricRecord; it has {[*told]}"
        )
    (metrics,) = told.values()
    if weighted_by_key not in metrics:
        raise AdapterError(
            f"{sender}: its MetricRecord lacks {weighted_by_key!r}, by which replies "
            f"are weighed; it has {', '.join(sorted(metrics))}"
        )
    weight = metrics[weighted_by_key]
    if isinstance(weight, list) or not 0 <= weight < float("inf"):
        raise AdapterError(
            f"{sender}: {weighted_by_key!r} is {weight}; it must be a number, and "
            "finite and not below 0"
        )
    return float(weight)


def alpha_of(metrics: MetricRecord, sender: str) -> float:
    """Return the LoRA alpha that a client says is its own.

    Raises
    ------
    AdapterError
        Naming the sender, if it is no number above 0.
    """
    alpha = metrics[keys.ALPHA]
    if isinstance(alpha, list) or not 0 < alpha < float("inf"):
        raise AdapterError(
            f"{sender}: its metric {keys.ALPHA!r} is {alpha}; it must be a number "
            "above 0"
        )
    return float(alpha)


def check_trained(
    sender: str,
    state: AdapterState,
    sent: AdapterState | None,
    rank_decay: float = 1.0,
) -> None:
    """Refuse a trained state that is not of what was sent.

    Parameters
    ----------
    sender : str
        Whose it is, for messages.
    state : AdapterState
        What came back, with the trunk's share of a split client.
    sent : AdapterState, optional
        What it was sent to train from; ``None`` if it was sent nothing.
    rank_decay : float
        Below 1 it may have pruned a layer once
        (:func:`~atlas_flwr.lora.pruning.kept_rank`).

    Raises
    ------
    AdapterError
        Naming the sender and the layer: missing, or of another rank.
    """
    if sent is None:
        raise AdapterError(f"{sender}: a reply to a message that was not sent")
    missing = sorted(set(sent.factors) - set(state.factors))
    missing += sorted(set(sent.dense) - set(state.dense))
    if missing:
        raise AdapterError(
            f"{sender}: {len(missing)} of the arrays sent to it are missing in its "
            f"reply, the first: {missing[0]!r}"
        )
    if state.folded:
        raise AdapterError(
            f"{sender}: its reply has products to fold, the first of layer "
            f"{next(iter(state.folded))!r}; clients reply with what they trained alone"
        )
    for name, factors in state.factors.items():
        rank = sent.factors[name].rank if name in sent.factors else None
        least = kept_rank(rank, rank_decay) if rank else rank
        if factors.rank not in (rank, least):
            may = "must keep it" if rank == least else f"may only prune it to {least}"
            raise AdapterError(
                f"{sender}: layer {name!r} has rank {factors.rank}; it was sent at "
                f"rank {rank}, and {may} while it trains"
            )


def update_sketch(start: AdapterState, end: AdapterState) -> NDArray[np.float32] | None:
    """Sketch what a round has changed: the factors, or where none has all else.

    Beside factors other arrays do not count: a classifier's tell the label set. Whole
    numbers, which counters are, count only where nothing else has changed.

    Returns
    -------
    NDArray, optional
        Shape (64,); ``None`` where nothing has changed.
    """
    changes: dict[str, Any] = {}
    for name, factors in end.factors.items():
        changes[f"{name}.A"] = factors.A - start.factors[name].A
        changes[f"{name}.B"] = factors.B - start.factors[name].B
    for kinds in ("fc", "biu"):
        if any(bool((change != 0).any()) for change in changes.values()):
            break
        trained = {k: v for k, v in end.dense.items() if v.dtype.kind in kinds}
        changes = {key: _change(start.dense[key], v) for key, v in trained.items()}
    if not any((change != 0).any() for change in changes.values()):
        return None
    sketch: NDArray[np.float32] = fingerprint(changes)
    return sketch


def _as_pairs(array: NDArray[Any]) -> NDArray[np.float64]:
    return np.stack([np.real(array), np.imag(array)], axis=-1)


def _change(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float64]:
    """Subtract; infinities that stay are no change. Complex numbers are two each."""
    if after.dtype.kind == "c":
        before, after = (_as_pairs(a) for a in (before, after))
    moved = np.isfinite(after) & np.isfinite(before)
    change = np.zeros(after.shape)
    np.subtract(after, before, out=change, where=moved, dtype=np.float64)
    return change
