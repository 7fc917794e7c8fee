# SPDX-License-Identifier: Apache-2.0
r"""Aggregation of one cluster's adapters, per layer, wherever the layer ran.

With weights p_k, renormalised over the clients that have the layer, and scales s_k:

.. math:: \Delta W = \sum_k p_k s_k B_k A_k
          = [B_1 | \dots | B_K] [p_1 s_1 A_1; \dots; p_K s_K A_K]

following HSplitLoRA (arXiv 2505.02795) and FLoRA (NeurIPS'24). The product is exact;
no client's factor meets another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState, LoraFactors, concatenate, recompress

__all__ = ["AGGREGATIONS", "Contribution", "aggregate", "at_rank"]

Combine = Callable[[Sequence[LoraFactors], Sequence[float], int], LoraFactors]


@dataclass(frozen=True)
class Contribution:
    """What one client brings to its cluster.

    Attributes
    ----------
    client : str
        Its id, for messages.
    weight : float
        Unnormalised, e.g. its number of examples.
    state : AdapterState
        Its trained adapters, the trunk's among them.
    """

    client: str
    weight: float
    state: AdapterState


def aggregate(
    contributions: Sequence[Contribution],
    mode: str = "concat",
    max_rank: int = 64,
    fallback: AdapterState | None = None,
) -> AdapterState:
    """Aggregate the contributions of one cluster.

    Parameters
    ----------
    contributions : Sequence[Contribution]
        At least one; total weight above zero.
    mode : str
        A key of :data:`AGGREGATIONS`.
    max_rank : int
        Stacks of a greater rank are recompressed to this one; below it nothing is lost.
    fallback : AdapterState, optional
        Layers and arrays that no contribution has are taken from it.

    Raises
    ------
    AdapterError
        If there is nothing to aggregate.
    """
    total = sum(c.weight for c in contributions)
    if total <= 0:
        raise AdapterError(
            f"{len(contributions)} contributions of total weight {total}: aggregation "
            "needs at least one client with examples"
        )
    combine = AGGREGATIONS[mode]
    factors = {}
    for name in _names(c.state.factors for c in contributions):
        have = [c for c in contributions if name in c.state.factors]
        weights = _shares(have)
        stack = [c.state.factors[name] for c in have]
        factors[name] = combine(stack, weights, max_rank)
    dense = {}
    for key in _names(c.state.dense for c in contributions):
        have = [c for c in contributions if key in c.state.dense]
        dense[key] = _mean([c.state.dense[key] for c in have], _shares(have))
    state = AdapterState(factors, dense)
    return fallback.merged(state) if fallback else state


def at_rank(
    state: AdapterState, ranks: Mapping[str, int], scale: Callable[[int], float]
) -> AdapterState:
    """Give each layer in ``ranks`` its best approximation at that rank.

    Parameters
    ----------
    state : AdapterState
        A cluster's adapters.
    ranks : Mapping[str, int]
        Rank by layer.
    scale : Callable[[int], float]
        The scale that a client applies at a rank.
    """
    factors = {
        name: recompress(state.factors[name], rank, scale=scale(rank))
        for name, rank in ranks.items()
    }
    return AdapterState(factors, state.dense)


def nested(
    state: AdapterState, ranks: Mapping[str, int], scale: Callable[[int], float]
) -> AdapterState:
    """Give each layer the first rows of the shared initial A, and of B.

    An initial adapter has B = 0, so there is no product to approximate; what matters is
    that clients of all ranks start in the same directions.
    """
    factors = {}
    for name, rank in ranks.items():
        A, B = state.factors[name].A, state.factors[name].B
        if rank > A.shape[0]:
            raise AdapterError(
                f"layer {name!r}: rank {rank} was assigned, but the initial arrays "
                f"have rank {A.shape[0]}; start with arrays of the largest rank"
            )
        factors[name] = LoraFactors(A[:rank], B[:, :rank], scale(rank))
    return AdapterState(factors, state.dense)


def concatenated(
    stack: Sequence[LoraFactors], weights: Sequence[float], max_rank: int
) -> LoraFactors:
    """Sum the products exactly; recompress only above ``max_rank``."""
    total = concatenate(stack, weights)
    m, n = total.shape
    cap = min(max_rank, m, n)
    return total if total.rank <= cap else recompress(total, cap)


def averaged(
    stack: Sequence[LoraFactors], weights: Sequence[float], max_rank: int
) -> LoraFactors:
    """Average A and B apart, zero-padded to the largest rank: inexact, as a baseline.

    This is what FedAvg does to factors (FedIT, SplitLoRA's aggregation); with unequal
    ranks it is HetLoRA's zero-padding without its pruning.
    """
    rank = max(f.rank for f in stack)
    scale = sum(p * f.scale for p, f in zip(weights, stack, strict=True))
    p = torch.tensor(weights, dtype=stack[0].A.dtype)[:, None, None]
    A = (p * torch.stack([_padded(f.A, rank, 0) for f in stack])).sum(0)
    B = (p * torch.stack([_padded(f.B, rank, 1) for f in stack])).sum(0)
    return LoraFactors(A, B, scale)


AGGREGATIONS: Mapping[str, Combine] = {"concat": concatenated, "mean": averaged}


def _padded(tensor: torch.Tensor, rank: int, dim: int) -> torch.Tensor:
    shape = list(tensor.shape)
    shape[dim] = rank - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def _shares(have: Sequence[Contribution]) -> list[float]:
    total = sum(c.weight for c in have)
    return [c.weight / total for c in have] if total else [1 / len(have)] * len(have)


def _names(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _mean(
    arrays: Sequence[NDArray[np.float32]], weights: Sequence[float]
) -> NDArray[np.float32]:
    total = np.zeros(arrays[0].shape, dtype=np.float64)
    for array, weight in zip(arrays, weights, strict=True):
        total += weight * array
    return total.astype(np.float32)
