# SPDX-License-Identifier: Apache-2.0
"""Accuracy and loss of a model on labelled text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from atlas_flwr.data import Batch
from atlas_flwr.errors import DataError
from atlas_flwr.train.step import answer_logits

__all__ = ["Evaluated", "evaluate"]


@dataclass(frozen=True)
class Evaluated:
    """Result on a test set.

    Attributes
    ----------
    accuracy : float
        Share of examples whose best label is right, in [0, 1].
    loss : float
        Mean cross-entropy of the right label, in nats. For causal models this is over
        the whole vocabulary, at the label's first token.
    examples : int
        Size of the test set.
    confusion : tuple[int, ...]
        Examples by their class and the one predicted, row after row, C x C.
    """

    accuracy: float
    loss: float
    examples: int
    confusion: tuple[int, ...] = ()


def evaluate(
    model: nn.Module, batches: Iterable[Batch], label_ids: Sequence[int]
) -> Evaluated:
    """Score a model.

    Parameters
    ----------
    model : nn.Module
        A split model or a whole one.
    batches : Iterable[Batch]
        Prompts without labels, with ``targets``.
    label_ids : Sequence[int]
        Column of each class in the logits: a causal model's first label tokens, a
        classifier's outputs. The prediction is the best of these.
    """
    model.eval()
    columns = torch.tensor(list(label_ids))
    confusion = torch.zeros(len(columns), len(columns), dtype=torch.long)
    loss, examples = 0.0, 0
    for batch in batches:
        logits = answer_logits(model, batch)
        predicted = logits[:, columns].argmax(1)
        confusion.index_put_(
            (batch.targets, predicted), torch.ones_like(predicted), accumulate=True
        )
        right = columns[batch.targets]
        loss += float(F.cross_entropy(logits, right, reduction="sum"))
        examples += len(batch)
    if not examples:
        raise DataError("there is no test example to evaluate on")
    accuracy = int(confusion.trace()) / examples
    counts = tuple(confusion.flatten().tolist())
    return Evaluated(accuracy, loss / examples, examples, counts)
