# SPDX-License-Identifier: Apache-2.0
"""The shared start: every client's first adapters, from the run's seed alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.lora import AdapterState, Scaling, ia3_key, initial_factors

__all__ = ["FINGERPRINT_RANK", "initial_state", "initial_vectors"]

# One rank for every client's fingerprint, whatever its device affords for training:
# sketches of unlike tensors cannot be compared.
FINGERPRINT_RANK = 4


def initial_state(
    shapes: Mapping[str, tuple[int, int]],
    *,
    rank: int,
    scaling: Scaling,
    seed: int,
    dense: Mapping[str, NDArray[np.float32]] | None = None,
    only: Iterable[str] | None = None,
) -> AdapterState:
    """Make the adapters that all clients start from: A random, B zero.

    Parameters
    ----------
    shapes : Mapping[str, tuple[int, int]]
        (d_out, d_in) of every adapted layer, by its name in the whole model.
    rank : int
        Rank; layers with a smaller side get that side's length.
    scaling, seed : Scaling, int
        See :func:`atlas_flwr.lora.initial_factors`.
    dense : Mapping[str, NDArray], optional
        Arrays that are trained in full.
    only : Iterable[str], optional
        Restrict to these layers.
    """
    names = shapes if only is None else set(only)
    factors = {
        name: initial_factors(
            name, shape, min(rank, *shape), scaling=scaling, seed=seed
        )
        for name, shape in shapes.items()
        if name in names
    }
    return AdapterState(factors, dict(dense or {}))


def initial_vectors(
    shapes: Mapping[str, tuple[int, int]],
    dense: Mapping[str, NDArray[np.float32]] | None = None,
) -> AdapterState:
    """Make the IA3 vectors that all clients start from: ones, which change nothing.

    Parameters
    ----------
    shapes : Mapping[str, tuple[int, int]]
        See :func:`atlas_flwr.lora.ia3_shapes`.
    dense : Mapping[str, NDArray], optional
        Other arrays that are trained in full.
    """
    ones = {ia3_key(name): np.ones(s, np.float32) for name, s in shapes.items()}
    return AdapterState(dense={**(dense or {}), **ones})
