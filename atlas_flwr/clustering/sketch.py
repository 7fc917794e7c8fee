# SPDX-License-Identifier: Apache-2.0
r"""Fingerprints: gradients projected to a few numbers by a seeded sparse matrix.

.. math:: f = P g / \lVert P g \rVert, \quad P_{jk} \in \{-1, 0, +1\} \sqrt{3 / s}

with s rows and probabilities 1/6, 2/3, 1/6 (Achlioptas 2003): norms are kept in
expectation. P needs no data, unlike PCA, and is never held whole: each tensor's block
is drawn from the seed and the tensor's name, a slice at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from atlas_flwr.errors import DataError
from atlas_flwr.seeds import derive_seed

__all__ = ["fingerprint", "project"]

_SLICE = 1 << 15  # entries of g per slice: a block of P stays under some megabytes


def project(
    gradients: Mapping[str, Tensor], dim: int = 64, seed: int = 0
) -> NDArray[np.float64]:
    """Project named tensors to ``dim`` numbers, linearly.

    Parameters
    ----------
    gradients : Mapping[str, Tensor]
        Any shapes. The result depends on the names, not on their order.
    dim : int
        Rows of P.
    seed : int
        The same for all whose sketches are compared or summed.

    Returns
    -------
    NDArray
        Shape (dim,), float64.
    """
    total = np.zeros(dim)
    for name in sorted(gradients):
        flat = gradients[name].detach().reshape(-1).double().cpu().numpy()
        rng = np.random.default_rng(derive_seed(seed, "projection", name))
        for start in range(0, len(flat), _SLICE):
            part = flat[start : start + _SLICE]
            dice = rng.integers(0, 6, size=(dim, len(part)), dtype=np.int8)
            total += (dice == 0) @ part - (dice == 5) @ part
    out: NDArray[np.float64] = total * np.sqrt(3 / dim)
    return out


def fingerprint(
    gradients: Mapping[str, Tensor], dim: int = 64, seed: int = 0
) -> NDArray[np.float32]:
    """Project named tensors and scale the result to unit norm.

    Returns
    -------
    NDArray
        Shape (dim,), float32.

    Raises
    ------
    DataError
        If the gradients are zero or not finite: there is nothing to compare.
    """
    sketch = project(gradients, dim, seed)
    norm = float(np.linalg.norm(sketch))
    if not np.isfinite(norm) or norm == 0:
        count = sum(t.numel() for t in gradients.values())
        raise DataError(
            f"the {count} gradients of {len(gradients)} tensors project to norm "
            f"{norm}; a fingerprint needs finite gradients that are not all zero: are the "
            "adapters attached, and are there labels?"
        )
    unit: NDArray[np.float32] = (sketch / norm).astype(np.float32)
    return unit
