# SPDX-License-Identifier: Apache-2.0
"""A client's local training: some steps of AdamW, with FedProx's term if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atlas_flwr.data import Batch
from atlas_flwr.errors import AtlasError
from atlas_flwr.train.step import batch_loss
from atlas_flwr.types import OptimizerSpec

__all__ = ["StepLoss", "Trained", "adamw", "plain_loss", "train"]

StepLoss = Callable[[nn.Module, Batch, int], Tensor]


def plain_loss(model: nn.Module, batch: Batch, index: int) -> Tensor:
    """Return the batch's loss, whatever the step."""
    return batch_loss(model, batch)


@dataclass(frozen=True)
class Trained:
    """What a round of local training was.

    Attributes
    ----------
    loss : float
        Mean over the steps that count, without what is added to it.
    steps : int
        Batches seen.
    examples : int
        Examples seen, repetitions counted.
    """

    loss: float
    steps: int
    examples: int


def adamw(parameters: Iterable[nn.Parameter], spec: OptimizerSpec) -> torch.optim.AdamW:
    """Make the optimiser that both sides of a cut use."""
    return torch.optim.AdamW(
        parameters,
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
    )


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: OptimizerSpec,
    *,
    proximal_mu: float = 0.0,
    step_loss: StepLoss = plain_loss,
    counts: Callable[[int], bool] = lambda index: True,
    penalty: Callable[[], Tensor] | None = None,
) -> Trained:
    """Train the parameters of ``model`` that require gradients.

    Dropout is off: a frozen base with small adapters seldom needs it, the trunk's
    answers stay repeatable, and clients of one cluster see one function.

    Parameters
    ----------
    model : nn.Module
        A split model or a whole one.
    batches : Iterable[Batch]
        As many as steps are wanted.
    optimizer : OptimizerSpec
        AdamW's settings; the trunk steps its own adapters with the same.
    proximal_mu : float
        FedProx's mu (arXiv 1812.06127): adds ``mu / 2 ||w - w_t||^2`` over the trained
        parameters, w_t being their values now.
    step_loss : StepLoss
        The loss of step ``index``, counted from 0, whose backward pass trains.
    counts : Callable[[int], bool]
        Whether a step's loss is in the mean.
    penalty : Callable[[], Tensor], optional
        A scalar of the trained parameters as they are, added to each step's loss.

    Raises
    ------
    AtlasError
        If the loss is not finite.
    """
    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained] if proximal_mu else []
    stepper = adamw(trained, optimizer)
    losses, steps, examples = [], 0, 0
    for index, batch in enumerate(batches):
        loss = step_loss(model, batch, index)
        if not torch.isfinite(loss):
            raise AtlasError(
                f"the loss is {loss.item()} at local step {index + 1}; lower "
                f"learning-rate (now {optimizer.lr})"
            )
        added = penalty() if penalty else 0.0
        (loss + added + _proximal(trained, start, proximal_mu)).backward()
        if (index + 1) % optimizer.accumulate == 0:
            stepper.step()
            stepper.zero_grad()
        if counts(index):
            losses.append(loss.item())
        steps += 1
        examples += len(batch)
    return Trained(sum(losses) / max(len(losses), 1), steps, examples)


def _proximal(
    now: list[nn.Parameter], start: list[Tensor], mu: float
) -> Tensor | float:
    if not start:
        return 0.0
    squares = [((p - p0) ** 2).sum() for p, p0 in zip(now, start, strict=True)]
    return mu / 2 * torch.stack(squares).sum()
