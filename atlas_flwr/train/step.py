# SPDX-License-Identifier: Apache-2.0
"""One training step's loss, alike for split models and whole ones, on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas_flwr.data import Batch
from atlas_flwr.split import SplitModel
from atlas_flwr.split.passes import takes_positions

__all__ = [
    "NO_LABEL",
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

NO_LABEL = -100  # PyTorch's and Hugging Face's


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
    """

    model: nn.Module
    batch: Batch
    index: int

    @cached_property
    def log_probabilities(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N, V) where labels may be, float32, and the labels (N,).

        The model runs once, whoever asks; not for a vanilla split model, which ends in
        its trunk.
        """
        logits, labels = label_logits(last_logits(self.model, self.batch), self.batch)
        return F.log_softmax(logits, dim=-1), labels


Objective = Callable[[Step], StepLoss]


def task_loss(step: Step) -> StepLoss:
    """Return the loss of the task alone: the mean over a batch's labels.

    A causal batch is left-padded and has its labels in its last ``logits_to_keep``
    positions, so that the LM head runs on those alone. A vanilla split model computes
    the loss in its trunk.
    """
    model = step.model
    if not isinstance(model, SplitModel) or model.tail is not None:
        return StepLoss(F.nll_loss(*step.log_probabilities, ignore_index=NO_LABEL))
    batch = step.batch.to(device_of(model))
    kept = {"logits_to_keep": batch.logits_to_keep} if batch.causal else {}
    loss = model(**model_inputs(model, batch), labels=batch.labels, **kept).loss
    assert isinstance(loss, Tensor)
    return StepLoss(loss)


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


def label_logits(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits (N, V) where labels may be, in float32, and the labels (N,).

    Both are on the logits' device. A causal batch has ``NO_LABEL`` where a text is
    shorter than others. Where its labels look ahead, there is one a text.
    """
    batch = batch.to(logits.device)
    if not batch.causal:
        return logits.float(), batch.labels
    if batch.looks_ahead:
        return logits[:, -1].float(), batch.labels[:, -1]
    targets = batch.labels[:, -batch.logits_to_keep + 1 :]
    return logits[:, :-1].flatten(0, 1).float(), targets.flatten()


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
    logits = model(**model_inputs(model, batch), **kept).logits
    assert isinstance(logits, Tensor)
    return logits
