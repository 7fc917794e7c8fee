# SPDX-License-Identifier: Apache-2.0
r"""Fingerprints: gradients projected to a few numbers by a seeded sparse matrix.

.. math:: f = P g / \lVert P g \rVert, \quad P_{jk} \in \{-1, 0, +1\} / \sqrt{q s}

with s rows and a share q of about 1/3 that is not 0 (Achlioptas 2003): norms are kept
in expectation. P needs no data, unlike PCA, and is never held whole: each tensor's
block is drawn from the seed and the tensor's name, a slice at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from atlas_flwr.errors import DataError
from atlas_flwr.seeds import derive_seed

__all__ = ["fingerprint", "flat_array", "project"]

_SLICE = 1 << 15  # entries of g per slice: a block of P stays under some megabytes
_PLUS, _MINUS = 43, 256 - 43  # bytes below the one are +1, from the other on -1
_SHARE = 2 * _PLUS / 256


def project(
    gradients: Mapping[str, Tensor | NDArray[np.floating]],
    dim: int = 64,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Project named tensors to ``dim`` numbers, linearly.

    Parameters
    ----------
    gradients : Mapping[str, Tensor or NDArray]
        Any shapes, on any device. The result depends on the names, not on their order.
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
        flat = flat_array(gradients[name])
        source = np.random.PCG64(derive_seed(seed, "projection", name))
        for start in range(0, len(flat), _SLICE):
            part = flat[start : start + _SLICE]
            total += _signs(source, dim, len(part)) @ part
    out: NDArray[np.float64] = total / np.sqrt(_SHARE * dim)
    return out


def fingerprint(
    gradients: Mapping[str, Tensor | NDArray[np.floating]],
    dim: int = 64,
    seed: int = 0,
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
        count = sum(len(flat_array(found)) for found in gradients.values())
        raise DataError(
            f"the {count} gradients of {len(gradients)} tensors project to norm "
            f"{norm}; a fingerprint needs finite gradients that are not all zero: are "
            "the adapters attached, and are there labels?"
        )
    unit: NDArray[np.float32] = (sketch / norm).astype(np.float32)
    return unit


def flat_array(found: Tensor | NDArray[np.floating]) -> NDArray[np.float64]:
    """Return a tensor's entries, shape (size,), as float64 on the CPU."""
    if isinstance(found, Tensor):
        found = found.detach().double().cpu().numpy()
    return np.asarray(found, np.float64).reshape(-1)


def _signs(source: np.random.PCG64, rows: int, columns: int) -> NDArray[np.float64]:
    """Draw a block of P's signs.

    From the generator's raw words: numpy keeps these the same in all its versions, and
    not what its distributions make of them, yet clients of unlike versions must agree.
    """
    count = rows * columns
    words = source.random_raw(-(-count // 8)).astype("<u8", copy=False)
    drawn = words.view(np.uint8)[:count].reshape(rows, columns)
    signs = (drawn < _PLUS).view(np.int8) - (drawn >= _MINUS).view(np.int8)
    return signs.astype(np.float64)
