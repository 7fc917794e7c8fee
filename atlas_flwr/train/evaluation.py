# SPDX-License-Identifier: Apache-2.0
"""Accuracy and loss of a model on labelled text, or on the text that it is to write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import nn

from atlas_flwr.data import Batch
from atlas_flwr.errors import DataError
from atlas_flwr.split import SplitModel
from atlas_flwr.train.step import answer_logits, label_logits
from atlas_flwr.types import NO_LABEL

__all__ = ["Evaluated", "evaluate"]

ROWS = 64  # of logits over a whole vocabulary whose loss is computed at once, or come


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
    model: nn.Module,
    batches: Iterable[Batch],
    label_ids: Sequence[int],
    most_labels: int | None = None,
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
    most_labels : int, optional
        Of text that is to be written, labels of which there are logits at once, unless
        one row has more; a batch with more is parted.
    """
    model.eval()
    if not label_ids:
        return _written(model, batches, most_labels)
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


def _pieces(model: nn.Module, batch: Batch, most: int | None) -> Iterator[Batch]:
    """Part a batch by its rows, so that no piece has more logits than may be.

    A vanilla split model's come from its trunk, and of all of the last positions; a
    client without a tail is planned without a tensor as wide as the vocabulary.
    """
    if isinstance(model, SplitModel) and model.tail is None:
        most, counts = ROWS, [batch.logits_to_keep] * len(batch)
    else:
        counts = (batch.labels != NO_LABEL).sum(1).tolist()
    start = held = 0
    for row, count in enumerate(counts):
        if most is not None and row > start and held + count > most:
            yield batch.rows(start, row)
            start, held = row, 0
        held += count
    yield batch.rows(start, len(batch)) if start else batch


@torch.no_grad()
def _written(model: nn.Module, batches: Iterable[Batch], most: int | None) -> Evaluated:
    """Score each labelled token, given those before it."""
    loss, right, tokens, examples = 0.0, 0, 0, 0
    for batch in chain.from_iterable(_pieces(model, b, most) for b in batches):
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
