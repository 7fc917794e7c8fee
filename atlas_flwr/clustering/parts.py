# SPDX-License-Identifier: Apache-2.0
r"""Fingerprints in parts: a few sketches of a client's gradients, and so their noise.

Batch b, with gradients :math:`g_{bt}` of tensors t, belongs to part b mod P, which is

.. math:: f_p = \frac{1}{\lvert p \rvert} \sum_{b \in p} \sum_t
    P_t \frac{g_{bt}}{\lVert g_{bt} \rVert}

with P_t the tensor's block of the matrix of :mod:`atlas_flwr.clustering.sketch`. Each
tensor counts alike in each batch: else the last layers', whose gradients are largest
and tell mostly the classes, would hide the others', and a few odd examples the rest.
The P x dim numbers are rounded to signed bytes with one scale, which moves none by more
than 1/254 of the largest: 4 parts of 64 take 256 bytes, as 64 float32 would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from atlas_flwr.clustering.sketch import flat_array, project
from atlas_flwr.errors import DataError

__all__ = ["fingerprint_parts", "signed_bytes"]

_TOP = 127


def fingerprint_parts(
    batches: Iterable[Mapping[str, Tensor | NDArray[np.floating]]],
    parts: int = 4,
    dim: int = 64,
    seed: int = 0,
) -> NDArray[np.int8]:
    """Sketch each batch's gradients into one of a few parts.

    Parameters
    ----------
    batches : Iterable[Mapping]
        Named gradients of each batch, of any shapes. No example should be in batches of
        two parts: the parts' difference must be that of independent draws.
    parts : int
        Parts to deal batches to, in turn. With fewer batches there are as few parts.
    dim : int
        Numbers in a part.
    seed : int
        The same for all whose fingerprints are compared.

    Returns
    -------
    NDArray
        Shape (parts, dim), int8, up to a scale that parts share.

    Raises
    ------
    DataError
        If there is no part or batch, or gradients are not finite or all zero.
    """
    if parts < 1:
        raise DataError(f"parts={parts}; allowed: 1 or more (4 is usual)")
    means = _means(batches, parts)
    sketches = np.stack([project(part, dim, seed) for part in means] or [np.zeros(dim)])
    top = float(np.abs(sketches).max())
    if not np.isfinite(top) or top == 0:
        raise DataError(
            f"the gradients of {len(means)} parts project to numbers of which the "
            f"largest is {top}; a fingerprint needs finite gradients that are not all "
            "zero: are the adapters attached, and are there labels?"
        )
    return signed_bytes(sketches)


def signed_bytes(sketches: NDArray[np.floating]) -> NDArray[np.int8]:
    """Round numbers to signed bytes, the largest to 127 or -127.

    Parameters
    ----------
    sketches : NDArray
        Any shape; finite, not all zero.

    Returns
    -------
    NDArray
        Of the same shape, up to a scale.
    """
    scale = _TOP / float(np.abs(sketches).max())
    codes: NDArray[np.int8] = np.rint(sketches * scale).astype(np.int8)
    return codes


def _means(
    batches: Iterable[Mapping[str, Tensor | NDArray[np.floating]]], parts: int
) -> list[dict[str, NDArray[np.float64]]]:
    """Return each part's mean of gradients scaled to unit norm, tensor by tensor."""
    sums: list[dict[str, NDArray[np.float64]]] = []
    counts: list[int] = []
    for index, gradients in enumerate(batches):
        if index < parts:
            sums.append({})
            counts.append(0)
        part = sums[index % parts]
        counts[index % parts] += 1
        for name, found in gradients.items():
            flat = flat_array(found)
            norm = np.linalg.norm(flat)
            if norm != 0:  # NaN passes, and is refused in the end
                part[name] = part.get(name, np.zeros(1)) + flat / norm
    return [
        {name: total / count for name, total in part.items()}
        for part, count in zip(sums, counts, strict=True)
    ]
