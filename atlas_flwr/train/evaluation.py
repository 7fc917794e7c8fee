# SPDX-License-Identifier: Apache-2.0
"""Accuracy and loss of a model on labelled text, or on the text that it is to write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from atlas_flwr.data import Batch
from atlas_flwr.errors import DataError
from atlas_flwr.train.step import answer_logits, label_logits

__all__ = ["Evaluated", "evaluate"]

ROWS = 64  # of logits over a whole vocabulary whose loss is computed at once


@dataclass(frozen=True)
class Evaluated:
    """Result on a test set.

    Attributes
    ----------
    accuracy : float
        Share of examples whose best label is right, in [0, 1]; of text that is to be
        written, share of its tokens that are the likeliest.
    loss : float
        Mean cross-entropy of the right label, in nats. For causal models this is over
        the whole vocabulary, at the label's first token; of text that is to be written,
        at each of its tokens, so that its exponential is the perplexity.
    examples : int
        Size of the test set.
    confusion : tuple[int, ...]
        Examples by their class and the one predicted, row after row, C x C; empty
        where there are no classes.
    tokens : int
        Those that were scored, of text that is to be written; else 0.
    """

    accuracy: float
    loss: float
    examples: int
    confusion: tuple[int, ...] = ()
    tokens: int = 0


def evaluate(
    model: nn.Module, batches: Iterable[Batch], label_ids: Sequence[int]
) -> Evaluated:
    """Score a model.

    Parameters
    ----------
    model : nn.Module
        A split model or a whole one.
    batches : Iterable[Batch]
        Prompts without labels, with ``targets``; for text that is to be written, with
        labels.
    label_ids : Sequence[int]
        Column of each class in the logits: a causal model's first label tokens, a
        classifier's outputs. The prediction is the best of these. Empty where text is
        to be written.
    """
    model.eval()
    if not label_ids:
        return _written(model, batches)
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


@torch.no_grad()
def _written(model: nn.Module, batches: Iterable[Batch]) -> Evaluated:
    """Score each labelled token, given those before it."""
    loss, right, tokens, examples = 0.0, 0, 0, 0
    for batch in batches:
        logits, labels = label_logits(model, batch)
        parts = zip(logits.split(ROWS), labels.split(ROWS), strict=True)
        for some, wanted in parts:
            loss += float(F.cross_entropy(some, wanted, reduction="sum"))
            right += int((some.argmax(1) == wanted).sum())
        tokens += len(labels)
        examples += len(batch)
    if not tokens:
        raise DataError("there is no test example to evaluate on")
    return Evaluated(right / tokens, loss / tokens, examples, tokens=tokens)
