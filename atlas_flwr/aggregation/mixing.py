# SPDX-License-Identifier: Apache-2.0
"""MIRA's step between groups: each takes a little of those with similar tasks.

After averaging inside clusters, a graph that joins only members of one cluster changes
nothing; this one joins clusters, or, where every client is a group of its own, clients.
See :mod:`atlas_flwr.clustering.graph`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.aggregation.means import padded_mean
from atlas_flwr.aggregation.products import summed_in_parts, weighted_rest
from atlas_flwr.clustering.graph import adjacency, adjacency_of, mixing_matrix
from atlas_flwr.errors import DataError
from atlas_flwr.lora import AdapterState, LoraFactors

__all__ = ["Mixing", "averaged", "mixed"]

Room = Callable[[str, Sequence[LoraFactors]], int | None]


@dataclass(frozen=True)
class Mixing:
    """How strongly groups are drawn to each other, and which.

    Attributes
    ----------
    strength : float
        From 0, where every group keeps to itself, to 1.
    width : float, optional
        Squared distance of fingerprints at which similarity has fallen to 1/e;
        ``None`` takes their median.
    graph : Mapping[tuple[str, str], float], optional
        Similarity of pairs of groups; ``None`` takes it from fingerprints.
    decay : float
        Share of the strength that each round takes from it, from 0 to 1: groups that
        have learned little yet take more of others.
    """

    strength: float = 0.0
    width: float | None = None
    graph: Mapping[tuple[str, str], float] | None = None
    decay: float = 0.0

    @property
    def needs_sketches(self) -> bool:
        """Whether similarity comes from fingerprints."""
        return self.strength > 0 and self.graph is None

    def matrix(
        self,
        groups: Sequence[str],
        sketches: Mapping[str, NDArray[np.floating]],
        server_round: int = 1,
    ) -> tuple[list[str], NDArray[np.float64]]:
        """Return the groups that are mixed, and C in their order.

        Parameters
        ----------
        groups : Sequence[str]
            Those that have trained.
        sketches : Mapping[str, NDArray]
            Mean fingerprints; without a graph, a group that has none stays apart.
        server_round : int
            From 1.

        Raises
        ------
        DataError
            If the strength, its decay, the width or the graph is impossible.
        """
        if not 0 <= self.decay <= 1:
            raise DataError(f"decay {self.decay}; it must be from 0 to 1")
        strength = self.strength * (1 - self.decay) ** (server_round - 1)
        given = self.graph is not None
        names = [name for name in groups if given or name in sketches]
        if not names:
            return [], np.eye(0)
        if given:
            found = adjacency_of(
                np.array([[self._similarity(a, b) for b in names] for a in names])
            )
        else:
            found = adjacency(np.stack([sketches[n] for n in names]), self.width)
        return names, mixing_matrix(found, strength)

    def _similarity(self, one: str, other: str) -> float:
        assert self.graph is not None
        if one == other:
            return 0.0
        found = self.graph.get((one, other), self.graph.get((other, one)))
        if found is None:
            raise DataError(
                f"the graph has no similarity of groups {one!r} and {other!r}; give "
                "one for each pair, 0 where they have nothing in common"
            )
        return float(found)


def mixed(
    groups: Mapping[str, AdapterState],
    matrix: NDArray[np.float64],
    max_rank: int | None = None,
    room: Room | None = None,
    products: bool = True,
) -> dict[str, AdapterState]:
    """Return sum_l C_kl W_l for every group k, exactly.

    Parameters
    ----------
    groups : Mapping[str, AdapterState]
        What each holds, at any rank.
    matrix : NDArray
        C, in the order of ``groups``. A layer that some groups have alone is mixed
        among these, their weights scaled up to the sum of the row.
    max_rank : int, optional
        See :func:`~atlas_flwr.aggregation.products.summed_in_parts`.
    room : Callable, optional
        Told a layer and the terms of its sum, it returns the rank at which that is
        handed out, or ``None`` for all of it, as without.
    products : bool
        Whether W is the product B A. Otherwise it is A and B, each by itself: means of
        factors are mixed so, as in the paper, and stay in their clients' basis.
    """
    names, states = list(groups), list(groups.values())
    if np.array_equal(matrix, np.eye(len(names))):
        return dict(groups)
    return {
        name: _row(states, matrix[index], states[index], max_rank, room, products)
        for index, name in enumerate(names)
    }


def averaged(
    before: AdapterState,
    after: AdapterState,
    share: float,
    max_rank: int | None = None,
    room: Room | None = None,
    products: bool = True,
) -> AdapterState:
    """Return share W_before + (1 - share) W_after: a moving average.

    Parameters
    ----------
    before, after : AdapterState
        What a group held before a round, and what it holds after it.
    share : float
        From 0 to below 1.
    max_rank, room, products
        See :func:`mixed`.
    """
    row = np.array([share, 1 - share])
    return _row([before, after], row, after, max_rank, room, products)


def _row(
    states: list[AdapterState],
    row: NDArray[np.float64],
    own: AdapterState,
    max_rank: int | None,
    room: Room | None,
    products: bool,
) -> AdapterState:
    factors, rest = dict(own.factors), dict(own.rest)
    for layer in own.factors:
        have, weights = _members(states, row, "factors", layer)
        if weights:
            stack = [state.factors[layer] for state in have]
            if not products:
                factors[layer] = padded_mean(stack, weights)
                continue
            most = room(layer, stack) if room else None
            before = weighted_rest(layer, have, weights)
            factors[layer], left = summed_in_parts(
                layer, stack, weights, before, most, max_rank
            )
            rest.pop(layer, None)
            rest |= {} if left is None else {layer: left}
    dense = dict(own.dense)
    for key in own.dense:
        have, weights = _members(states, row, "dense", key)
        if weights:
            terms = (
                c * state.dense[key].astype(np.float64)
                for state, c in zip(have, weights, strict=True)
            )
            dense[key] = np.asarray(sum(terms), own.dense[key].dtype)
    return AdapterState(factors, dense, rest=rest)


def _members(
    states: list[AdapterState], row: NDArray[np.float64], part: str, key: str
) -> tuple[list[AdapterState], list[float]]:
    """Return the groups that have a key, and their weights, of the row's sum."""
    pairs = [
        (state, weight)
        for state, weight in zip(states, row.tolist(), strict=True)
        if weight != 0 and key in getattr(state, part)
    ]
    if not pairs:  # only groups that do not count have it: it stays as it is
        return [], []
    factor = float(row.sum()) / sum(weight for _, weight in pairs)
    return [found for found, _ in pairs], [factor * weight for _, weight in pairs]
