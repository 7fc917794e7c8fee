# SPDX-License-Identifier: Apache-2.0
"""A client's fingerprint: its LoRA gradients at the shared start, projected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas_flwr.clustering import fingerprint_parts
from atlas_flwr.data import Batch
from atlas_flwr.train.step import batch_loss

__all__ = ["batch_gradients", "sketch_gradients"]


def sketch_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    name: Callable[[str], str],
    parts: int = 4,
    dim: int = 64,
    seed: int = 0,
) -> NDArray[np.int8]:
    """Project the gradients of ``model``'s ``lora_B`` over batches, in a few parts.

    Parameters
    ----------
    model : nn.Module
        With adapters at the start that all clients share; left without gradients.
    batches : Iterable[Batch]
        Training batches, no example in more than one: 96 examples are enough (see
        ``docs/clustering.md``).
    name : Callable[[str], str]
        Maps a parameter's name to one that is the same on every client.
    parts, dim, seed : int
        See :func:`atlas_flwr.clustering.fingerprint_parts`.

    Returns
    -------
    NDArray
        Shape (parts, dim), int8: 256 bytes by default.
    """
    gradients = batch_gradients(model, batches, name=name)
    sketch: NDArray[np.int8] = fingerprint_parts(gradients, parts, dim, seed)
    return sketch


def batch_gradients(
    model: nn.Module, batches: Iterable[Batch], *, name: Callable[[str], str]
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradients of ``lora_B`` by batch.

    At the shared start B is zero, so A has no gradient yet. A classifier's own gradient
    is left out: it tells the label set, not the task.
    """
    model.eval()
    for batch in batches:
        model.zero_grad()
        batch_loss(model, batch).backward()
        yield {
            name(key): parameter.grad
            for key, parameter in model.named_parameters()
            if "lora_B" in key and parameter.grad is not None
        }
    model.zero_grad()
