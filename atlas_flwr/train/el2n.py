# SPDX-License-Identifier: Apache-2.0
r"""Pruning of a client's data by EL2N scores (arXiv 2107.07075, definition 2.4).

An example's score is the norm of the error, :math:`\| p(x) - y \|_2`, with p the
probabilities of the task's classes early in training and y one-hot. Those with the
smallest scores are learned already, and dropped. The paper takes the mean of several
networks; a client has one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas_flwr.data import Batch
from atlas_flwr.train.step import answer_logits

__all__ = ["el2n", "hardest"]


def el2n(
    model: nn.Module, batches: Iterable[Batch], label_ids: Sequence[int]
) -> Tensor:
    """Score examples.

    Parameters
    ----------
    model : nn.Module
        A split model or a whole one; nothing of it is changed.
    batches : Iterable[Batch]
        Prompts without labels, with ``targets``.
    label_ids : Sequence[int]
        Column of each class in the logits.

    Returns
    -------
    Tensor
        Float32, one score an example in [0, sqrt(2)], in the batches' order.
    """
    model.eval()
    columns = torch.tensor(list(label_ids))
    scores = []
    for batch in batches:
        found = answer_logits(model, batch)[:, columns].softmax(1)
        scores.append((found - F.one_hot(batch.targets, len(columns))).norm(dim=1))
    return torch.cat(scores)


def hardest(scores: Tensor, dropped: float) -> list[int]:
    """Return, ascending, the indices that remain when a share is dropped.

    Parameters
    ----------
    scores : Tensor
        Of :func:`el2n`.
    dropped : float
        Share of the examples with the smallest scores, in [0, 1); one at least stays.
    """
    count = math.floor(dropped * len(scores) + 1e-9)  # 0.29 * 100 is below 29
    kept = max(1, len(scores) - count)
    order = torch.argsort(scores, descending=True, stable=True)
    return sorted(order[:kept].tolist())
