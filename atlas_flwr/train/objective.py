# SPDX-License-Identifier: Apache-2.0
"""What a round's steps minimise: the batch's loss, or one that a remedy has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from atlas_flwr.data import Batch
from atlas_flwr.split import SplitModel
from atlas_flwr.train.alignment import Alignment
from atlas_flwr.train.auxiliary import AuxiliaryTail
from atlas_flwr.train.loop import StepLoss, plain_loss

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """A loss for each step, and which of them a round's mean is of.

    Attributes
    ----------
    loss : StepLoss
        See :func:`atlas_flwr.train.loop.train`.
    counts : Callable[[int], bool]
        The same.
    """

    loss: StepLoss = plain_loss
    counts: Callable[[int], bool] = lambda index: True

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: Sequence[Batch],
        *,
        align: float = 0.0,
        auxiliary_steps: int = 0,
        seed: int = 0,
    ) -> Objective:
        """Make a round's objective, on the model as the round begins.

        Parameters
        ----------
        model : nn.Module
            A split model or a whole one.
        batches : Sequence[Batch]
            The round's, in order.
        align : float
            Strength of :class:`~atlas_flwr.train.alignment.Alignment`; 0 for none.
        auxiliary_steps : int
            Steps between two that cross, by
            :class:`~atlas_flwr.train.auxiliary.AuxiliaryTail`; 0 for none.
        seed : int
            Of the latter.
        """
        loss: StepLoss = Alignment(model, batches, align) if align else plain_loss
        if not auxiliary_steps:
            return cls(loss)
        assert isinstance(model, SplitModel)
        auxiliary = AuxiliaryTail(model, auxiliary_steps, seed, loss)
        return cls(auxiliary, auxiliary.crosses)
