# SPDX-License-Identifier: Apache-2.0
"""What several groups hold, added up by their weights."""

from __future__ import annotations

from collections.abc import Sequence

from atlas_flwr.aggregation.contribution import (
    Contribution,
    dense_means,
    layer_names,
    shares,
)
from atlas_flwr.aggregation.products import summed_in_parts, weighted_rest
from atlas_flwr.aggregation.rule import Rule
from atlas_flwr.lora import AdapterState, LoraFactors, canonical

__all__ = ["weighted_sum"]


def weighted_sum(
    parts: Sequence[Contribution], rule: Rule | None = None
) -> AdapterState:
    """Sum what groups hold, by weight: each layer over the groups that have it.

    Parameters
    ----------
    parts : Sequence[Contribution]
        Each with what a group holds, or a member of it held.
    rule : Rule, optional
        A flat one hands out no more of a sum than of the largest of its terms.
    """
    factors: dict[str, LoraFactors] = {}
    rest = {}
    for name in layer_names(parts):
        have = [part for part in parts if name in part.state.factors]
        states, weights = _distinct(name, [part.state for part in have], shares(have))
        stack = [state.factors[name] for state in states]
        left = weighted_rest(name, states, weights)
        if len(states) == 1:
            factors[name] = canonical(stack[0])
        else:
            room = rule.room(0, *(found.rank for found in stack)) if rule else None
            factors[name], left = summed_in_parts(name, stack, weights, left, room)
        if left is not None:
            rest[name] = left
    return AdapterState(factors, dense_means(parts), rest=rest)


def _distinct(
    name: str, states: Sequence[AdapterState], weights: Sequence[float]
) -> tuple[list[AdapterState], list[float]]:
    """Add the weights of members that hold the very same factors of a layer."""
    found: dict[int, tuple[AdapterState, float]] = {}
    for state, weight in zip(states, weights, strict=True):
        held = id(state.factors[name])
        _, sum_ = found.get(held, (state, 0.0))
        found[held] = (state, sum_ + weight)
    return [state for state, _ in found.values()], [w for _, w in found.values()]
