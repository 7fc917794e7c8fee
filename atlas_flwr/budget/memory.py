# SPDX-License-Identifier: Apache-2.0
"""What training takes of a client's memory, predicted from the architecture.

Bytes, for a head of h and a tail of t blocks, ranks r, batch B, length T::

    weights      b (embeddings + output + (h + t) block)    b bytes a frozen weight
    adapters     16 sum r (d_in + d_out)       value, gradient and Adam's two moments
    activations  4 B T (h + t) (14 d + 5 w)    d hidden, w the widest layer
    logits       12 B K V     K positions: logits, softmax and gradient of each
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Architecture", "MemoryEstimate", "client_memory"]


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
        Of the input table, and of an untied LM head.
    tied : bool
        Whether the LM head is the input table.
    block_params : int
        Of one block.
    adapted : Mapping[str, tuple[int, int]]
        (d_out, d_in) of a block's adapted layers.
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


@dataclass(frozen=True)
class MemoryEstimate:
    """Predicted peak bytes, by what takes them."""

    weights: int
    adapters: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapters + self.activations + self.logits


def client_memory(
    architecture: Architecture,
    *,
    head: int,
    tail: int | None,
    rank: int = 0,
    ranks: Mapping[tuple[int, str], int] | None = None,
    batch: int,
    length: int,
    logits_to_keep: int = 2,
    dtype_bytes: int = 4,
) -> MemoryEstimate:
    """Predict a client's peak while it trains.

    Parameters
    ----------
    architecture : Architecture
        The model.
    head, tail : int
        Blocks on the client; ``tail=None`` for a vanilla split.
    rank : int
        LoRA rank of every adapted layer.
    batch, length : int
        Examples in a step, and tokens of the longest.
    logits_to_keep : int
        Positions that the LM head runs on.
    dtype_bytes : int
        Bytes of a frozen weight.
    """
    a = architecture
    blocks = head + (tail or 0)
    ends_here = tail is not None
    output = a.output_params if ends_here else 0
    weights = dtype_bytes * (a.embedding_params + output + blocks * a.block_params)
    sides = sum(min(rank, m, n) * (m + n) for m, n in a.adapted.values()) * blocks
    if ranks is not None:
        sides = sum(r * sum(a.adapted[name]) for (_, name), r in ranks.items())
    activations = 4 * batch * length * blocks * (14 * a.hidden + 5 * a.widest)
    logits = 12 * batch * logits_to_keep * a.vocabulary if ends_here else 0
    return MemoryEstimate(weights, 16 * sides, activations, logits)
