# SPDX-License-Identifier: Apache-2.0
"""A client's fingerprint: its LoRA gradient at the shared start, projected."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas_flwr.clustering import fingerprint
from atlas_flwr.data import Batch
from atlas_flwr.train.step import batch_loss

__all__ = ["sketch_gradients"]


def sketch_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    name: Callable[[str], str],
    dim: int = 64,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Sum the gradients of ``model``'s ``lora_B`` over batches and project them.

    At the shared start B is zero, so A has no gradient yet. A classifier's own gradient
    is left out: it tells the label set, not the task.

    Parameters
    ----------
    model : nn.Module
        With adapters at the start that all clients share; left without gradients.
    batches : Iterable[Batch]
        Training batches; 128 to 256 examples are enough (see ``docs``).
    name : Callable[[str], str]
        Maps a parameter's name to one that is the same on every client.
    dim, seed : int
        See :func:`atlas_flwr.clustering.fingerprint`.

    Returns
    -------
    NDArray
        Shape (dim,), float32, unit norm: 256 bytes for the default ``dim``.
    """
    model.eval()
    model.zero_grad()
    for batch in batches:
        batch_loss(model, batch).backward()
    gradients: dict[str, Tensor] = {
        name(key): parameter.grad
        for key, parameter in model.named_parameters()
        if "lora_B" in key and parameter.grad is not None
    }
    sketch: NDArray[np.float32] = fingerprint(gradients, dim=dim, seed=seed)
    model.zero_grad()
    return sketch
