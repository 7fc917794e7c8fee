# SPDX-License-Identifier: Apache-2.0
"""Averages of the factors themselves, which are not the average of the products.

mean(B) mean(A) is another matrix than mean(B A): inexact, and what most of the
literature does. Here to be compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atlas_flwr.aggregation.contribution import (
    Contribution,
    dense_means,
    layer_names,
    shares,
)
from atlas_flwr.aggregation.rule import Rule, Start
from atlas_flwr.lora import AdapterState, LoraFactors

__all__ = ["Mean", "SparsityMean", "padded_mean"]


class Mean(Rule):
    """Average A and B apart, as FedAvg does to them (FedIT; SplitLoRA, eq. 7-8).

    Ranks may differ: factors are zero-padded to the largest of the round, and a client
    is sent the first rows and columns that it has room for. A direction that no client
    of a round has is lost; whoever has room for it later begins it anew.
    """

    rescales = False

    def start(self, held: AdapterState, at: Start) -> AdapterState:
        """Send the first directions, as they are, and the initial ones beyond them."""
        factors = dict(at.nested(held).factors)
        for name, fresh in factors.items():
            if name in held.factors:
                found = held.factors[name].with_scale(fresh.scale)
                # Were A and B both 0 in a direction, it could never be learned.
                A = torch.cat([found.A, fresh.A[found.rank :]])[: fresh.rank]
                B = _padded(found.B, fresh.rank, 1)[:, : fresh.rank]
                factors[name] = LoraFactors(A, B, fresh.scale)
        return AdapterState(factors, held.dense)

    def combine(
        self, held: AdapterState | None, parts: Sequence[Contribution]
    ) -> AdapterState:
        """Average the members' factors."""
        factors = {}
        for name in layer_names(parts):
            have = [part for part in parts if name in part.state.factors]
            stack = [part.state.factors[name] for part in have]
            factors[name] = padded_mean(stack, self.weights(name, have))
        state = AdapterState(factors, dense_means(parts))
        return held.merged(state) if held else state

    def weights(self, name: str, have: Sequence[Contribution]) -> list[float]:
        """Return the members' weights in a layer, which sum to 1."""
        return shares(have)


class SparsityMean(Mean):
    """Weigh each client by the Frobenius norm of its product (HetLoRA, eq. 4-5).

    ||B A||_F is had from the small Gram matrices: tr(B^T B A A^T).
    """

    adds_changes = False

    def weights(self, name: str, have: Sequence[Contribution]) -> list[float]:
        """Return norms over their sum; plain shares where all products are 0."""
        stack = [part.state.factors[name] for part in have]
        norms = [abs(f.scale) * _norm(f) for f in stack]
        total = sum(norms)
        return [norm / total for norm in norms] if total else shares(have)


def padded_mean(stack: Sequence[LoraFactors], weights: Sequence[float]) -> LoraFactors:
    """Average A, B and the scale apart, zero-padded to the largest rank."""
    rank = max(f.rank for f in stack)
    scale = sum(p * f.scale for p, f in zip(weights, stack, strict=True))
    p = torch.tensor(weights, dtype=stack[0].A.dtype)[:, None, None]
    A = (p * torch.stack([_padded(f.A, rank, 0) for f in stack])).sum(0)
    B = (p * torch.stack([_padded(f.B, rank, 1) for f in stack])).sum(0)
    return LoraFactors(A, B, scale)


def _norm(factors: LoraFactors) -> float:
    A, B = factors.A.double(), factors.B.double()
    return float(((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt())


def _padded(tensor: Tensor, rank: int, dim: int) -> Tensor:
    missing = rank - tensor.shape[dim]
    if missing <= 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)
