# SPDX-License-Identifier: Apache-2.0
"""The shared start: every client's first adapters, from the run's seed alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.lora import AdapterState, Scaling, initial_factors

__all__ = ["FINGERPRINT_RANK", "initial_state"]

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
