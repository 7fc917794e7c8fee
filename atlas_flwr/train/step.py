# SPDX-License-Identifier: Apache-2.0
"""One training step's loss, alike for split models and whole ones, on any device.

Shapes: B rows, K last positions, V words; N labels, of which a batch may have far fewer
than B x K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas_flwr.data import Batch
from atlas_flwr.split import SplitModel
from atlas_flwr.split.label_head import in_one_piece, only_at
from atlas_flwr.split.passes import takes_positions
from atlas_flwr.types import NO_LABEL

__all__ = [
    "Objective",
    "Step",
    "StepLoss",
    "answer_logits",
    "batch_loss",
    "device_of",
    "label_logits",
    "last_logits",
    "model_inputs",
    "task_loss",
]


@dataclass(frozen=True)
class StepLoss:
    """A step's loss.

    Attributes
    ----------
    task : Tensor
        The task's own, a scalar; what is reported as the training loss.
    penalty : Tensor, optional
        What is added to it, a scalar.
    counted : bool
        Whether the task's is in the round's mean: an estimate is not.
    """

    task: Tensor
    penalty: Tensor | None = None
    counted: bool = True

    def total(self) -> Tensor:
        """Return what the backward pass begins with."""
        return self.task if self.penalty is None else self.task + self.penalty

    def plus(self, term: Tensor) -> StepLoss:
        """Add a penalty."""
        added = term if self.penalty is None else self.penalty + term
        return replace(self, penalty=added)


@dataclass(frozen=True)
class Step:
    """One step of local training.

    Attributes
    ----------
    model : nn.Module
        A split model or a whole one.
    batch : Batch
        What it learns from.
    index : int
        From 0 in each round.
    labels : int, optional
        Those of all batches of its optimiser step; ``None`` where it is the only one.
    """

    model: nn.Module
    batch: Batch
    index: int
    labels: int | None = None
    _known: list[tuple[Tensor, Tensor]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @property
    def share(self) -> float:
        """Part of its optimiser step, by its labels."""
        return 1.0 if self.labels is None else self.batch.label_count / self.labels

    @property
    def log_probabilities(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N, V) where labels are, float32, and the labels (N,).

        The model runs once, whoever asks; not for a vanilla split model, which ends in
        its trunk.
        """
        # Not a cached_property: until Python 3.12 steps of all threads share its lock.
        if self._known:
            return self._known[0]
        logits, labels = label_logits(self.model, self.batch)
        self._known.append((F.log_softmax(logits, dim=-1), labels))
        return self._known[0]


Objective = Callable[[Step], StepLoss]


def task_loss(step: Step) -> StepLoss:
    """Return the loss of the task alone: the mean over a batch's labels.

    A causal model's LM head runs where labels are, and nowhere else. A vanilla split
    model computes the loss in its trunk, which answers no logits.
    """
    model = step.model
    if not isinstance(model, SplitModel) or model.tail is not None:
        return StepLoss(F.nll_loss(*step.log_probabilities, ignore_index=NO_LABEL))
    batch = step.batch.to(device_of(model))
    kept = {"logits_to_keep": batch.logits_to_keep} if batch.causal else {}
    if step.labels is not None:
        kept["num_items_in_batch"] = step.labels
    given = {**model_inputs(model, batch), "labels": batch.labels, **kept}
    loss = model(**given, loss_alone=True).loss
    assert isinstance(loss, Tensor)
    return StepLoss(loss if step.labels is None else loss / step.share)


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model takes its texts on: that of what it has first."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the keyword arguments that a Hugging Face model takes, less the labels.

    They are on the model's device, wherever the batch is.
    """
    batch = batch.to(device_of(model))
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.position_ids is not None and takes_positions(model):
        inputs["position_ids"] = batch.position_ids
    if batch.token_type_ids is not None:
        inputs["token_type_ids"] = batch.token_type_ids
    return inputs


def batch_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return a batch's :func:`task_loss`, a scalar that can be differentiated."""
    return task_loss(Step(model, batch, 0)).task


def label_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run the model; return logits (N, V) where labels are, float32, and labels (N,).

    Both are on the logits' device. A vocabulary is wide, so that logits of a long text
    are a client's largest tensor: the LM head is given the places alone that have a
    label to predict. It is told by its module, whatever a family does before and after.
    """
    if not batch.causal or batch.looks_ahead:
        logits = last_logits(model, batch)
        batch = batch.to(logits.device)
        if batch.causal:
            return logits[:, -1].float(), batch.labels[:, -1]
        return logits.float(), batch.labels
    places = batch.label_places
    ends = model.tail if isinstance(model, SplitModel) else model
    with only_at(ends, places):
        logits = last_logits(model, batch)
    rows, columns = places.to(logits.device)
    if logits.shape[:2] == (len(batch), batch.logits_to_keep):
        logits = logits[rows, columns]  # a head that is no module of its own
    labels = batch.labels.to(logits.device)[:, -batch.logits_to_keep + 1 :]
    return logits.flatten(0, -2).float(), labels[rows, columns]


def answer_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return a model's answer to prompts: logits (B, V) or (B, C), float32, on the CPU.

    Nothing is recorded for a backward pass.
    """
    with torch.no_grad():
        logits = last_logits(model, batch)
    return (logits[:, -1] if batch.causal else logits).float().cpu()


def last_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Run the model; return logits (B, K, V) of its last positions, or (B, C)."""
    kept: dict[str, Any] = {}
    if batch.causal:
        kept["logits_to_keep"] = batch.logits_to_keep
    with in_one_piece(model):
        logits = model(**model_inputs(model, batch), **kept).logits
    assert isinstance(logits, Tensor)
    return logits
