# SPDX-License-Identifier: Apache-2.0
"""A client's local training: some steps of AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import nn

from atlas_flwr.data import Batch
from atlas_flwr.errors import AtlasError
from atlas_flwr.train.overlap import Ran, overlapping
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
    in_flight: int = 1,
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
    in_flight : int
        Batches of an optimiser step that are on their way at once (see
        :func:`~atlas_flwr.train.overlap.overlapping`).

    Raises
    ------
    AtlasError
        If the loss is not finite.
    """
    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    stepper = adamw(trained, optimizer)

    def run(step: Step) -> Ran:
        loss = objective(step)
        total = loss.total()
        if not torch.isfinite(total):
            raise AtlasError(
                f"the loss is {total.item()} at local step {step.index + 1}; lower "
                f"learning-rate (now {optimizer.lr})"
            )
        (total if step.labels is None else total * step.share).backward()
        penalty = None if loss.penalty is None else loss.penalty.item()
        return Ran(loss.task.item() if loss.counted else None, penalty)

    ran: list[Ran] = []
    examples = 0
    with overlapping(model, in_flight) as all_of:
        for window in _windows(model, batches, optimizer.accumulate):
            ran += all_of(run, window)
            examples += sum(len(step.batch) for step in window)
            if len(window) == optimizer.accumulate:
                stepper.step()
                stepper.zero_grad()
    losses = [r.task for r in ran if r.task is not None]
    penalties = [r.penalty for r in ran if r.penalty is not None]
    mean = sum(losses) / max(len(losses), 1)
    added = sum(penalties) / len(penalties) if penalties else None
    return Trained(mean, added, len(ran), examples)


def _windows(
    model: nn.Module, batches: Iterable[Batch], accumulate: int
) -> Iterator[list[Step]]:
    """Yield the batches of each optimiser step, with the labels of all of these."""
    rest, index = iter(batches), count()
    while window := list(islice(rest, accumulate)):
        labels = sum(batch.label_count for batch in window)
        known = None if accumulate == 1 else labels
        yield [Step(model, batch, next(index), known) for batch in window]
