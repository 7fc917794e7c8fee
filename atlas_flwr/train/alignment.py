# SPDX-License-Identifier: Apache-2.0
r"""The divergence of what a client learns from the model that its round began with.

It is

.. math:: \mathrm{KL}(p_0 \,\|\, p) = \sum_v p_0(v) \log(p_0(v) / p(v)),

the mean over the batch's labels; p are the model's probabilities, p_0 those that it had
at the start of the round, with what all members of the cluster learned. After FlexP-SFL
(arXiv 2508.10349), which keeps personal models near the common one so; the paper's
formula could not be had, and this is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas_flwr.data import Batch
from atlas_flwr.train.step import Step

__all__ = ["StartingPoint"]


@dataclass(frozen=True)
class StartingPoint:
    """A model's answers to a round's batches before its first step.

    They take one more forward pass each, over the cut, and are kept: steps x places of
    labels x vocabulary.

    Attributes
    ----------
    answers : Sequence[Tensor]
        Log-probabilities (N, V) of each batch's labels, float32.
    """

    answers: Sequence[Tensor]

    @classmethod
    def of(cls, model: nn.Module, batches: Sequence[Batch]) -> StartingPoint:
        """Run all batches once.

        Parameters
        ----------
        model : nn.Module
            A U-shaped split model or a whole one.
        batches : Sequence[Batch]
            Those of the round, in order.
        """
        model.eval()
        steps = (Step(model, batch, index) for index, batch in enumerate(batches))
        with torch.no_grad():
            return cls([step.log_probabilities[0] for step in steps])

    def divergence(self, step: Step) -> Tensor:
        """Return the mean KL divergence over a step's labels, a scalar."""
        now, _ = step.log_probabilities
        start = self.answers[step.index]
        return F.kl_div(now, start, log_target=True, reduction="batchmean")
