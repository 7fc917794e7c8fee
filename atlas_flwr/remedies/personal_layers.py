# SPDX-License-Identifier: Apache-2.0
"""Layers that stay with their client: which they are, and how a client is told.

The server says which they are and at which ranks; the rest is between a client and its
disk.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from atlas_flwr.lora import AdapterState, Scaling, canonical, leading
from atlas_flwr.lora.flattening import flatten, unflatten
from atlas_flwr.remedies.base import Store

__all__ = ["PersonalLayers", "all_kept", "keep", "own_state"]

NAME = "personal"


@dataclass(frozen=True)
class PersonalLayers:
    """What a client keeps to itself.

    Attributes
    ----------
    ranks : Mapping[str, int]
        By layer.
    dense : tuple[str, ...]
        Keys of arrays that are trained in full.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    dense: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Write it, to go into a message's configuration."""
        return json.dumps({"ranks": dict(self.ranks), "dense": list(self.dense)})

    @classmethod
    def from_json(cls, text: str) -> PersonalLayers:
        """Read what :meth:`to_json` wrote."""
        found = json.loads(text)
        return cls(found["ranks"], tuple(found["dense"]))

    def joined(self, other: PersonalLayers) -> PersonalLayers:
        """Return what either names."""
        dense = dict.fromkeys([*self.dense, *other.dense])
        return PersonalLayers({**self.ranks, **other.ranks}, tuple(dense))

    def part_of(self, state: AdapterState) -> AdapterState:
        """Return what of a state is kept."""
        dense = {key: state.dense[key] for key in self.dense}
        return state.select(self.ranks, dense)

    def rest_of(self, state: AdapterState) -> AdapterState:
        """Return what of a state is not."""
        dense = {k: v for k, v in state.dense.items() if k not in self.dense}
        return state.select(state.layers - set(self.ranks), dense)


def own_state(
    store: Store, start: AdapterState, scaling: Scaling, *, before: int
) -> AdapterState:
    """Return a client's own layers as they were before a round.

    Parameters
    ----------
    store : Store
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


def all_kept(store: Store) -> AdapterState | None:
    """Return all that a client has kept, as its last round left it, if anything."""
    arrays = store.load(NAME, before=sys.maxsize)
    return None if arrays is None else unflatten(arrays, NAME)


def keep(store: Store, state: AdapterState, server_round: int) -> None:
    """Keep a client's own layers as a round has left them.

    Layers that it does not train now are remembered with them.
    """
    before = store.load(NAME, before=server_round)
    known = unflatten(before, NAME) if before else AdapterState()
    store.save(NAME, server_round, flatten(known.merged(state), NAME))
