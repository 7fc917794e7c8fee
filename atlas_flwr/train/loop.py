# SPDX-License-Identifier: Apache-2.0
"""A client's local training: some steps of AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from atlas_flwr.data import Batch
from atlas_flwr.errors import AtlasError
from atlas_flwr.train.step import Objective, Step, task_loss
from atlas_flwr.types import OptimizerSpec

__all__ = ["Trained", "adamw", "train"]


@dataclass(frozen=True)
class Trained:
    """What a round of local training was.

    Attributes
    ----------
    loss : float
        The task's, the mean over the steps that count.
    penalty : float, optional
        What was added to it, the mean over the steps that had any.
    steps : int
        Batches seen.
    examples : int
        Examples seen, repetitions counted.
    """

    loss: float
    penalty: float | None
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
    objective: Objective = task_loss,
) -> Trained:
    """Train the parameters of ``model`` that require gradients.

    Dropout is off: a frozen base with small adapters seldom needs it, the trunk's
    answers stay repeatable, and clients of one cluster see one function.

    Parameters
    ----------
    model : nn.Module
        A split model or a whole one.
    batches : Iterable[Batch]
        As many as steps are wanted, times ``optimizer.accumulate``: the loss of a step
        is the mean over the labels of all its batches, as Transformers' ``Trainer`` has
        it. Batches that are left over for no whole step change nothing.
    optimizer : OptimizerSpec
        AdamW's settings; the trunk steps its own adapters with the same.
    objective : Callable[[Step], StepLoss]
        What a step minimises.

    Raises
    ------
    AtlasError
        If the loss is not finite.
    """
    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    stepper = adamw(trained, optimizer)
    losses: list[float] = []
    penalties: list[float] = []
    steps, examples = 0, 0
    for index, (batch, labels) in enumerate(_counted(batches, optimizer.accumulate)):
        step = Step(model, batch, index, labels)
        loss = objective(step)
        total = loss.total()
        if not torch.isfinite(total):
            raise AtlasError(
                f"the loss is {total.item()} at local step {index + 1}; lower "
                f"learning-rate (now {optimizer.lr})"
            )
        (total if labels is None else total * step.share).backward()
        if (index + 1) % optimizer.accumulate == 0:
            stepper.step()
            stepper.zero_grad()
        if loss.counted:
            losses.append(loss.task.item())
        if loss.penalty is not None:
            penalties.append(loss.penalty.item())
        steps += 1
        examples += len(batch)
    mean = sum(losses) / max(len(losses), 1)
    added = sum(penalties) / len(penalties) if penalties else None
    return Trained(mean, added, steps, examples)


def _counted(
    batches: Iterable[Batch], accumulate: int
) -> Iterator[tuple[Batch, int | None]]:
    """Yield batches with the labels of all that their optimiser step has."""
    if accumulate == 1:
        yield from ((batch, None) for batch in batches)
        return
    rest = iter(batches)
    while step := list(islice(rest, accumulate)):
        labels = sum(batch.label_count for batch in step)
        yield from ((batch, labels) for batch in step)
