# SPDX-License-Identifier: Apache-2.0
"""A client's own layers: begun, found again at whatever rank, and kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.client_apps.store import ClientStore
from atlas_flwr.lora import AdapterState, Scaling, canonical, initial_factors, leading
from atlas_flwr.lora.flattening import flatten, unflatten
from atlas_flwr.protocol.personal import Kept

__all__ = ["begun", "keep", "own_state"]

NAME = "personal"


def begun(
    kept: Kept,
    shapes: Mapping[str, tuple[int, int]],
    dense: Mapping[str, NDArray[np.float32]],
    scaling: Scaling,
    seed: int,
) -> AdapterState:
    """Return what all clients' own layers begin with.

    Parameters
    ----------
    kept : Kept
        Which they are.
    shapes : Mapping[str, tuple[int, int]]
        (d_out, d_in) of the model's layers.
    dense : Mapping[str, NDArray]
        The model's arrays that are trained in full.
    scaling, seed : Scaling, int
        See :func:`atlas_flwr.lora.initial_factors`.
    """
    factors = {
        name: initial_factors(name, shapes[name], rank, scaling=scaling, seed=seed)
        for name, rank in kept.ranks.items()
    }
    return AdapterState(factors, {key: dense[key] for key in kept.dense})


def own_state(
    store: ClientStore, start: AdapterState, scaling: Scaling, *, before: int
) -> AdapterState:
    """Return a client's own layers as they were before a round.

    Parameters
    ----------
    store : ClientStore
        The client's.
    start : AdapterState
        What they begin with, at the ranks that they are to have now. A layer that was
        kept at another rank comes back as its best approximation at this one.
    scaling : Scaling
        LoRA's.
    before : int
        Server round.
    """
    arrays = store.load(NAME, before=before)
    if arrays is None:
        return start
    found = unflatten(arrays, NAME)
    factors = dict(start.factors)
    for name, wanted in start.factors.items():
        own = found.factors.get(name)
        if own is not None and own.rank == wanted.rank:
            factors[name] = own
        elif own is not None:
            rank = wanted.rank
            factors[name] = leading(canonical(own), rank, scale=scaling(rank))
    dense = {key: found.dense.get(key, value) for key, value in start.dense.items()}
    return AdapterState(factors, dense)


def keep(store: ClientStore, state: AdapterState, server_round: int) -> None:
    """Keep a client's own layers as a round has left them.

    Layers that it does not train now are remembered with them.
    """
    before = store.load(NAME, before=server_round)
    known = unflatten(before, NAME) if before else AdapterState()
    store.save(NAME, server_round, flatten(known.merged(state), NAME))
