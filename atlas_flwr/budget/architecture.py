# SPDX-License-Identifier: Apache-2.0
"""A model's sizes, and the adapters that ranks put on its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atlas_flwr.budget.footprint import Footprint, coarse
from atlas_flwr.errors import BudgetError

__all__ = ["Adapters", "Architecture", "Ranks"]

Ranks = int | Mapping[str, int] | Mapping[tuple[int, str], int]
"""One for all; by a layer's name in its block; or by block and that name (else 0)."""


@dataclass(frozen=True)
class Architecture:
    """A model's sizes.

    Attributes
    ----------
    num_layers : int
        Blocks.
    hidden, widest : int
        d, and the longest side of a block's layer.
    vocabulary : int
        V of a causal model; 0 for others.
    embedding_params, output_params : int
        Of what comes before the blocks, and after them: an LM head that is tied to the
        embeddings is not counted again.
    tied : bool
        Whether the LM head is the input table.
    block_params : int
        Of one block.
    adapted : Mapping[str, tuple[int, int]]
        (d_out, d_in) of a block's layers that get LoRA, at the ranks that are asked of.
    dense_params : int
        Of ``output_params``, those that are trained in full: a classifier's.
    vector_params : int
        Of a block's IA3 vectors, whatever the rank.
    prompt_params : int
        Of a trained prompt, before the blocks.
    footprint : Footprint, optional
        What a step keeps alive. Default: a generous guess.
    """

    num_layers: int
    hidden: int
    widest: int
    vocabulary: int
    embedding_params: int
    output_params: int
    tied: bool
    block_params: int
    adapted: Mapping[str, tuple[int, int]]
    dense_params: int = 0
    vector_params: int = 0
    prompt_params: int = 0
    footprint: Footprint | None = None

    @property
    def steps(self) -> Footprint:
        """The footprint, or the guess in its place."""
        guess = coarse(self.hidden, self.widest, self.vocabulary)
        return guess if self.footprint is None else self.footprint


@dataclass(frozen=True)
class Adapters:
    """The adapters of some blocks.

    Attributes
    ----------
    params : int
        Of all their factors, and vectors.
    ranks : int
        The sum of their ranks.
    layers : Sequence[Sequence[str]]
        Each block's layers that have one.
    """

    params: int
    ranks: int
    layers: Sequence[Sequence[str]]

    @classmethod
    def of(cls, a: Architecture, blocks: Iterable[int], ranks: Ranks) -> Adapters:
        """Count the adapters of some blocks, numbered in the whole model.

        Raises
        ------
        BudgetError
            If a rank is below 0, or for a layer that is not adapted.
        """
        _check(a, ranks)
        found = [
            {
                name: min(_rank(ranks, block, name), *shape)
                for name, shape in a.adapted.items()
            }
            for block in blocks
        ]
        factors = (r * sum(a.adapted[n]) for own in found for n, r in own.items())
        return cls(
            sum(factors) + len(found) * a.vector_params,
            sum(rank for own in found for rank in own.values()),
            [[name for name, rank in own.items() if rank] for own in found],
        )


def _rank(ranks: Ranks, block: int, name: str) -> int:
    if isinstance(ranks, int):
        return ranks
    table: Mapping[Any, int] = ranks
    return table.get((block, name), table.get(name, 0))


def _check(a: Architecture, ranks: Ranks) -> None:
    given = {0: ranks} if isinstance(ranks, int) else ranks
    for key, rank in given.items():
        name = key[1] if isinstance(key, tuple) else key
        if name != 0 and name not in a.adapted:
            raise BudgetError(
                f"ranks are given for layer {name!r}; a block's adapted layers are "
                f"{', '.join(a.adapted)}"
            )
        if rank < 0:
            raise BudgetError(f"rank {rank} for {name!r}; allowed: 0 (none) and up")
