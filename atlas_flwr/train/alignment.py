# SPDX-License-Identifier: Apache-2.0
r"""Alignment of what a client learns with the model that its round began with.

To the loss is added

.. math:: \lambda \, \mathrm{KL}(p_0 \,\|\, p)
    = \lambda \sum_v p_0(v) \log(p_0(v) / p(v)),

the mean over the batch's labels; p are the model's probabilities, p_0 those that it had
at the start of the round, with what all members of the cluster learned. After FlexP-SFL
(arXiv 2508.10349), which keeps personal models near the common one so; the paper's
formula could not be had, and this is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas_flwr.data import Batch
from atlas_flwr.train.step import NO_LABEL, label_logits, last_logits

__all__ = ["Alignment"]


class Alignment:
    """A loss with the alignment's term.

    All batches are run once before training, for p_0: one more forward pass each, over
    the cut. Their log-probabilities are kept, float32, steps x places of labels x
    vocabulary.

    Parameters
    ----------
    model : nn.Module
        A U-shaped split model or a whole one, as the round begins.
    batches : Sequence[Batch]
        Those of the round, in order.
    strength : float
        Lambda.

    Attributes
    ----------
    start : list[Tensor]
        Log-probabilities (N, V) of each batch's labels when the round began.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Batch], strength: float
    ) -> None:
        self.strength = strength
        model.eval()
        with torch.no_grad():
            self.start = [_log_probabilities(model, batch)[0] for batch in batches]

    def __call__(self, model: nn.Module, batch: Batch, index: int) -> Tensor:
        """Return the loss of step ``index``, counted from 0."""
        now, labels = _log_probabilities(model, batch)
        has_label = labels != NO_LABEL
        apart = F.kl_div(now, self.start[index], log_target=True, reduction="none")
        mean = apart.sum(-1).mul(has_label).sum() / has_label.sum()
        return F.nll_loss(now, labels, ignore_index=NO_LABEL) + self.strength * mean


def _log_probabilities(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    logits, labels = label_logits(last_logits(model, batch), batch)
    return F.log_softmax(logits, dim=-1), labels
