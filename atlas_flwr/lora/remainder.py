# SPDX-License-Identifier: Apache-2.0
r"""A sum in two parts: its strongest directions as factors, all others dense.

A product that grows by the ranks of every round,

.. math:: D = B A + E, \quad B A \text{ of rank } r,

keeps its size where only B and A are handed out, and stays exact where E is kept: what
has not been handed out is not lost, and comes into B A as soon as it is among the r
strongest directions. E has the size of the layer, however many rounds there were.

B A is the best approximation of rank r within a subspace: that of the former
directions, of what was added, and of a few probes of E. One step of subspace iteration
finds it without an SVD of the (m, n) matrix (Halko, Martinsson, Tropp, SIAM Review
53(2), 2011). E is the difference to what B A is in float32, so that whatever the
approximation and the rounding, their sum is D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_flwr.lora.algebra import signed, thin_svd
from atlas_flwr.lora.factors import LoraFactors
from atlas_flwr.lora.spectrum import NOTHING, in_canonical_form
from atlas_flwr.lora.state import AdapterState

__all__ = ["divided", "share_of_rest"]

PROBES = 8  # random combinations of E's rows, beside the directions that are known


def divided(
    product: LoraFactors, rest: Tensor | None, rank: int
) -> tuple[LoraFactors, Tensor | None]:
    """Divide ``product + rest`` into factors of a rank at most, and a new rest.

    Parameters
    ----------
    product : LoraFactors
        Of any rank R, finite.
    rest : Tensor, optional
        Shape (m, n).
    rank : int
        At least 1.

    Returns
    -------
    tuple[LoraFactors, Tensor or None]
        In canonical form; and float32, shape (m, n), or ``None`` where float32 cannot
        tell it from nothing beside the factors.
    """
    U, S, V = thin_svd(product)
    kept = in_canonical_form(U, S, V)
    if rest is None and kept.rank <= rank:
        return kept, None
    whole = (U, S, V) if rest is None else _strongest(U, S, V, rest)
    kept = in_canonical_form(*whole, rank)
    left = torch.cat([U * S, -kept.B.double()], 1) @ torch.cat([V.T, kept.A.double()])
    left = (left if rest is None else left.add_(rest)).float()
    nothing = left.norm() <= NOTHING * whole[1].norm()
    return kept, None if bool(nothing) else left


def _strongest(
    U: Tensor, S: Tensor, V: Tensor, rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular triples of ``U S V^T + rest``, nearly."""
    m, n = rest.shape
    if len(S) + PROBES >= min(m, n):
        whole = (U * S) @ V.T + rest
        left, values, right = torch.linalg.svd(whole, full_matrices=False)
        left, right = signed(left, right.T)
        return left, values, right
    E = rest.float()  # to find a subspace; the sum itself is made in float64
    generator = torch.Generator().manual_seed(m)
    probes = torch.randn(m, PROBES, generator=generator)
    known = torch.linalg.qr(torch.cat([V, (E.T @ probes).double()], 1))[0]
    seen = U @ (S[:, None] * (V.T @ known)) + (E @ known.float()).double()
    basis = torch.linalg.qr(seen)[0]
    core = V @ (S[:, None] * (U.T @ basis)) + (E.T @ basis.float()).double()
    right, turned = torch.linalg.qr(core)  # (n, k), (k, k)
    inner, values, outer = torch.linalg.svd(turned.T)
    left, right = signed(basis @ inner, right @ outer.T)
    return left, values, right


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
