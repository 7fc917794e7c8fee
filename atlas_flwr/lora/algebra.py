# SPDX-License-Identifier: Apache-2.0
r"""Sums of LoRA products, exactly, and their best approximations, cheaply.

Shapes: m outputs, n inputs, K adapters of ranks r_k, R = sum r_k.

.. math:: \sum_k p_k s_k B_k A_k
          = [B_1 | \dots | B_K] [p_1 s_1 A_1; \dots; p_K s_K A_K]

(FLoRA, NeurIPS'24; HSplitLoRA, arXiv 2505.02795). Weight and scale go on one factor
only. The mean of the factors, mean(B) mean(A), is another matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora.factors import LoraFactors

__all__ = [
    "INITIAL_ROW_NORM",
    "completed",
    "concatenate",
    "recompress",
    "thin_svd",
]

# Root mean square norm of a row of A as LoRA initialises it: n entries of variance
# 1 / (3 n), which is kaiming_uniform with a = sqrt(5).
INITIAL_ROW_NORM = 3**-0.5


def concatenate(
    factors: Sequence[LoraFactors], weights: Sequence[float]
) -> LoraFactors:
    """Return ``sum_k weights[k] * factors[k].delta()`` exactly, as factors.

    Parameters
    ----------
    factors : Sequence[LoraFactors]
        Of one layer, K >= 1 of them, at any ranks and scales.
    weights : Sequence[float]
        K weights, of any sign; they need not sum to 1.

    Returns
    -------
    LoraFactors
        Rank R, scale 1, dtype of the factors.

    Raises
    ------
    AdapterError
        If there is none, the counts differ, a weight is not finite, or a shape
        differs: naming which.
    """
    if not factors or len(factors) != len(weights):
        raise AdapterError(
            f"{len(factors)} adapters and {len(weights)} weights: there must be at "
            "least one, and one weight for each"
        )
    _refuse_unlike(factors, weights)
    scaled = [
        (p * f.scale) * f.A.detach() for p, f in zip(weights, factors, strict=True)
    ]
    columns = [f.B.detach() for f in factors]
    return LoraFactors(torch.cat(scaled, 0), torch.cat(columns, 1), 1.0)


def recompress(
    factors: LoraFactors, rank: int, *, scale: float = 1.0, balanced: bool = False
) -> LoraFactors:
    """Return the best approximation of ``factors`` at ``rank``, in Frobenius norm.

    Thin QR of B and of A's transpose, and an SVD of the R x R core (Eckart-Young): in
    O((m + n) R^2 + R^3), without the (m, n) product.

    Parameters
    ----------
    factors : LoraFactors
        Of any rank.
    rank : int
        Rank of the result, at most min(m, n). Above the product's own rank the result
        is exact, and its further directions, A's rows orthogonal to the others and B's
        columns zero, are free to be trained.
    scale : float
        Scale of the result, not 0.
    balanced : bool
        Where the singular values go. By default all into B, while A's rows keep the
        norm of LoRA's initialisation: after a round Delta W is small, and an A as
        small as its square root would slow B's training. ``True`` splits them evenly,
        which has the smallest norms.

    Raises
    ------
    AdapterError
        If the rank is impossible, the scale is 0, or the factors are not finite.
    """
    m, n = factors.shape
    if not 1 <= rank <= min(m, n):
        raise AdapterError(
            f"rank {rank} for a layer of shape {(m, n)}; allowed: 1 to {min(m, n)}"
        )
    if scale == 0:
        raise AdapterError("scale 0 cannot carry an adapter; give it a value > 0")
    U, S, V = thin_svd(factors)
    kept = min(rank, len(S))
    left = torch.zeros(m, rank, dtype=U.dtype, device=U.device)
    if balanced:
        root = S[:kept].sqrt()
        right = torch.zeros(rank, n, dtype=U.dtype, device=U.device)
        left[:, :kept] = U[:, :kept] * root / scale
        right[:kept] = root[:, None] * V[:, :kept].T
    else:
        left[:, :kept] = U[:, :kept] * S[:kept] / (INITIAL_ROW_NORM * scale)
        right = INITIAL_ROW_NORM * completed(V[:, :kept], rank).T
    dtype = factors.A.dtype
    return LoraFactors(right.to(dtype).contiguous(), left.to(dtype).contiguous(), scale)


def _refuse_unlike(factors: Sequence[LoraFactors], weights: Sequence[float]) -> None:
    shape = factors[0].shape
    for index, (found, weight) in enumerate(zip(factors, weights, strict=True)):
        if found.shape != shape:
            raise AdapterError(
                f"adapter {index} is of a layer of shape {found.shape}, adapter 0 of "
                f"{shape}: only adapters of one layer can be added"
            )
        if not math.isfinite(weight):
            raise AdapterError(
                f"adapter {index} has weight {weight}; it must be finite"
            )


def thin_svd(factors: LoraFactors) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of scale * B @ A, in float64: U (m, k), S (k,), V (n, k)."""
    factors.check_finite(f"a layer of shape {factors.shape}")
    B, A = factors.B.detach().double(), factors.A.detach().double()
    Qb, Rb = torch.linalg.qr(B)
    Qa, Ra = torch.linalg.qr(A.T)
    u, S, vt = torch.linalg.svd(factors.scale * (Rb @ Ra.T), full_matrices=False)
    U, V = Qb @ u, Qa @ vt.T
    # A sign convention makes the result unique: each left vector's largest entry > 0.
    largest = U.abs().argmax(0)
    signs = torch.where(U.gather(0, largest[None]) < 0, -1.0, 1.0).to(U.dtype)[0]
    return U * signs, S, V * signs


def completed(V: Tensor, rank: int) -> Tensor:
    """Add orthonormal columns to V (n, k) until there are ``rank``."""
    n, k = V.shape
    if k >= rank:
        return V
    basis = torch.linalg.qr(torch.cat([V, _spread(n, rank - k, V)], 1))[0]
    return torch.cat([V, basis[:, k:rank]], 1)


def _spread(n: int, count: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    extra = torch.randn(n, count, generator=generator, dtype=torch.float64)
    return extra.to(like)
