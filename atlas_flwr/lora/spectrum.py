# SPDX-License-Identifier: Apache-2.0
r"""Adapters in the basis of their own singular vectors, to be cut at any rank for free.

The *canonical* form of a product with singular triples (u_j, s_j, v_j), s_1 >= s_2 ...

.. math:: B = [\sqrt{s_1} u_1 | \sqrt{s_2} u_2 | \dots], \quad
          A = [\sqrt{s_1} v_1^T; \sqrt{s_2} v_2^T; \dots], \quad scale = 1

has the best approximation of every rank r as its first r directions (Eckart-Young), and
what that approximation leaves over as the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora.algebra import INITIAL_ROW_NORM, completed, thin_svd
from atlas_flwr.lora.factors import LoraFactors

__all__ = [
    "NOTHING",
    "canonical",
    "damped",
    "in_canonical_form",
    "leading",
    "trailing",
]

# Relative to the largest singular value: what float32 factors cannot hold anyway.
NOTHING = 2.0**-24


def canonical(factors: LoraFactors, max_rank: int | None = None) -> LoraFactors:
    """Return the same product in canonical form, at its own rank.

    Parameters
    ----------
    factors : LoraFactors
        Of any rank and scale, finite.
    max_rank : int, optional
        Keep at most so many directions, which loses the smallest ones. ``None`` loses
        nothing.

    Returns
    -------
    LoraFactors
        float32, scale 1; one direction of zeros where the product is zero.
    """
    return in_canonical_form(*thin_svd(factors), max_rank)


def in_canonical_form(
    U: Tensor, S: Tensor, V: Tensor, max_rank: int | None = None
) -> LoraFactors:
    """Make the canonical form of singular triples, as :func:`canonical` does."""
    rank = max(int((S[0] * NOTHING < S).sum()), 1)
    if max_rank is not None:
        rank = min(rank, max_rank)
    root = S[:rank].sqrt()
    A, B = (V[:, :rank] * root).T, U[:, :rank] * root
    return LoraFactors(A.float().contiguous(), B.float().contiguous())


def leading(factors: LoraFactors, rank: int, *, scale: float = 1.0) -> LoraFactors:
    """Return the best approximation at ``rank`` of a product in canonical form.

    A's rows get the norm of LoRA's initialisation and B the singular values, so that
    training goes on as it began (see :func:`~atlas_flwr.lora.recompress`). Above the
    product's own rank A's further rows are orthogonal to the others and B's columns 0.

    Raises
    ------
    AdapterError
        If the rank is impossible or the scale is 0.
    """
    m, n = factors.shape
    if not 1 <= rank <= min(m, n):
        raise AdapterError(
            f"rank {rank} for a layer of shape {(m, n)}; allowed: 1 to {min(m, n)}"
        )
    if scale == 0:
        raise AdapterError("scale 0 cannot carry an adapter; give it a value > 0")
    norms = factors.A[:rank].norm(dim=1)
    kept = int((norms > 0).sum())
    norms = norms[:kept]
    right = completed((factors.A[:kept] / norms[:, None]).T, rank).T
    left = torch.zeros(m, rank, dtype=factors.B.dtype, device=factors.B.device)
    left[:, :kept] = factors.B[:, :kept] * norms / (INITIAL_ROW_NORM * scale)
    return LoraFactors((INITIAL_ROW_NORM * right).contiguous(), left, scale)


def trailing(factors: LoraFactors, rank: int) -> LoraFactors | None:
    """Return what :func:`leading` leaves over at ``rank``; ``None`` for nothing.

    ``rank`` may be 0, which leaves everything over.
    """
    if rank >= factors.rank or not bool(factors.A[rank:].any()):
        return None
    return LoraFactors(factors.A[rank:], factors.B[:, rank:], factors.scale)


def damped(factors: LoraFactors, weights: Tensor) -> LoraFactors | None:
    """Multiply each direction of a product by a weight; ``None`` if all are 0.

    Parameters
    ----------
    factors : LoraFactors
        Of rank R.
    weights : Tensor
        Shape (R,).
    """
    kept = weights != 0
    if not bool(kept.any()):
        return None
    A = factors.A[kept] * weights[kept, None].to(factors.A.dtype)
    return LoraFactors(A, factors.B[:, kept], factors.scale)
