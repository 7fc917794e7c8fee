# SPDX-License-Identifier: Apache-2.0
r"""A sum in two parts: its strongest directions as factors, all others dense.

A product that grows by the ranks of every round,

.. math:: D = B A + E, \quad B A \text{ of rank } r,

keeps its size where only B and A are handed out, and stays exact where E is kept: what
has not been handed out is not lost, and comes into B A as soon as it is among the r
strongest directions. E has the size of the layer, however many rounds there were.

Each time something is added, the strongest directions of E, found by one step of
subspace iteration from a few probes (Halko, Martinsson, Tropp, SIAM Review 53(2),
2011), are put to those of B A and of what is added; the strongest of all are handed
out, and the others go back. So no SVD of an (m, n) matrix is needed, B A is nearly the
best approximation of its rank, and E, which is small, has a small rounding error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_flwr.lora.algebra import concatenate, thin_svd
from atlas_flwr.lora.factors import LoraFactors
from atlas_flwr.lora.spectrum import NOTHING, in_canonical_form
from atlas_flwr.lora.state import AdapterState

__all__ = ["divided", "share_of_rest"]

PROBES = 8  # directions of E that are tried at a time


def divided(
    product: LoraFactors, rest: Tensor | None, rank: int
) -> tuple[LoraFactors, Tensor | None]:
    """Divide ``product + rest`` into factors of a rank at most, and a new rest.

    Parameters
    ----------
    product : LoraFactors
        Of any rank R, finite.
    rest : Tensor, optional
        Shape (m, n), float32; it is not changed.
    rank : int
        At least 1.

    Returns
    -------
    tuple[LoraFactors, Tensor or None]
        In canonical form; and float32, shape (m, n), or ``None`` where float32 cannot
        tell it from nothing beside the factors.
    """
    if rest is not None:
        strongest = _strongest(rest)
        rest = torch.addmm(rest, strongest.B, strongest.A, alpha=-1.0)
        product = concatenate([product, strongest], [1.0, 1.0])
    U, S, V = thin_svd(product)
    kept = in_canonical_form(U, S, V, rank)
    if rest is None and (S[rank:] <= NOTHING * S[0]).all():
        return kept, None
    left, right = (U[:, rank:] * S[rank:]).float(), V[:, rank:].float()
    rest = left @ right.T if rest is None else rest.addmm_(left, right.T)
    nothing = rest.norm() <= NOTHING * S.norm()
    return kept, None if bool(nothing) else rest


def _strongest(rest: Tensor) -> LoraFactors:
    """Return the strongest directions of a matrix, nearly."""
    m = rest.shape[0]
    generator = torch.Generator().manual_seed(m)
    probes = torch.randn(m, min(PROBES, *rest.shape), generator=generator)
    basis = torch.linalg.qr(rest @ (rest.T @ probes))[0]
    return LoraFactors(basis.T @ rest, basis)


def share_of_rest(state: AdapterState) -> float:
    """Return what a state's rest is of its sums, in Frobenius norm over all layers.

    Its factors must be in canonical form, where a row of A has the squared norm of its
    singular value; the rest is orthogonal to them.
    """
    factors = sum(
        float((found.A.double().norm(dim=1) ** 4).sum())
        for found in state.factors.values()
    )
    rest = sum(float(left.double().norm() ** 2) for left in state.rest.values())
    return (rest / (factors + rest)) ** 0.5 if rest else 0.0
