# SPDX-License-Identifier: Apache-2.0
r"""What a client changed in a round, and how the changes of several lie to each other.

An update is the difference of products and dense arrays, U_k = W_k - W: of LoRA layers
:math:`s' B' A' - s B A`, which is never formed. With both terms stacked to factors
[B' | -B] and [s' A'; s A], the inner product of two updates is the sum of the entries
of :math:`(B_i^T B_j) \circ (A_i A_j^T)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlas_flwr.lora.factors import LoraFactors
from atlas_flwr.lora.state import AdapterState

__all__ = ["Update", "inner_products"]


@dataclass(frozen=True)
class Update:
    """What a client was sent, and what it sent back.

    Attributes
    ----------
    client : str
        Its id.
    weight : float
        Unnormalised, e.g. its number of examples.
    before, after : AdapterState
        Only layers and arrays of ``after`` count.
    """

    client: str
    weight: float
    before: AdapterState
    after: AdapterState


def inner_products(updates: Sequence[Update]) -> NDArray[np.float64]:
    """Return the Gram matrix of updates: shape (K, K), <U_i, U_j> over all arrays.

    A layer that a client does not have adds nothing to its products.
    """
    gram = np.zeros((len(updates), len(updates)))
    for name in sorted({n for found in updates for n in found.after.factors}):
        gram += _layer_products(updates, name)
    for key in sorted({n for found in updates for n in found.after.dense}):
        rows = [_dense_change(found, key) for found in updates]
        size = max(len(row) for row in rows)
        whole = np.stack([row if len(row) else np.zeros(size) for row in rows])
        gram += whole @ whole.T
    return gram


def _layer_products(updates: Sequence[Update], name: str) -> NDArray[np.float64]:
    terms: list[tuple[int, float, LoraFactors]] = []
    for k, found in enumerate(updates):
        if name in found.after.factors:
            terms.append((k, 1.0, found.after.factors[name]))
            if name in found.before.factors:
                terms.append((k, -1.0, found.before.factors[name]))
    A = torch.cat([f.scale * _double(f.A) for _, _, f in terms])
    B = torch.cat([sign * _double(f.B) for _, sign, f in terms], 1)
    owner = torch.cat([torch.full((f.rank,), k) for k, _, f in terms])
    sums = torch.zeros(len(updates), len(A), dtype=torch.float64)
    sums.index_add_(0, owner, (B.T @ B) * (A @ A.T))
    gram = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    gram.index_add_(1, owner, sums)
    return np.asarray(gram.numpy())


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _dense_change(found: Update, key: str) -> NDArray[np.float64]:
    after = found.after.dense.get(key)
    if after is None or after.dtype.kind != "f":
        return np.zeros(0)  # counters and flags are no directions
    change = after.astype(np.float64)
    before = found.before.dense.get(key, np.zeros_like(after)).astype(np.float64)
    moved = np.isfinite(change) & np.isfinite(before)  # infinities that stay have not
    return np.subtract(change, before, out=np.zeros(change.shape), where=moved).ravel()
