# SPDX-License-Identifier: Apache-2.0
"""LoRA's initialisation, the same on every client, nested over ranks."""

from __future__ import annotations

import torch

from atlas_flwr.lora.factors import LoraFactors
from atlas_flwr.lora.scaling import Scaling
from atlas_flwr.seeds import derive_seed

__all__ = ["initial_factors"]


def initial_factors(
    name: str,
    shape: tuple[int, int],
    rank: int,
    *,
    scaling: Scaling,
    seed: int,
) -> LoraFactors:
    """Draw A as PEFT does (Kaiming uniform with a = sqrt(5)), and B = 0.

    Row i of A depends on ``seed``, ``name`` and i alone: the adapter of rank 4 is the
    first 4 rows of that of rank 8.

    Parameters
    ----------
    name : str
        The layer's name in the whole model.
    shape : tuple[int, int]
        (m, n): outputs, inputs.
    rank : int
        Rank of the adapter.
    scaling : Scaling
        Of the result.
    seed : int
        The run's seed.

    Returns
    -------
    LoraFactors
        float32.
    """
    m, n = shape
    generator = torch.Generator().manual_seed(derive_seed(seed, "lora_A", name))
    A = (torch.rand(rank, n, generator=generator) * 2 - 1) / n**0.5
    return LoraFactors(A, torch.zeros(m, rank), scaling(rank))
