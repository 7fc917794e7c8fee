# SPDX-License-Identifier: Apache-2.0
"""A rank and a cut for each client, by its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atlas_flwr.budget.allocation import refuse_uncut
from atlas_flwr.budget.architecture import Architecture
from atlas_flwr.budget.memory import MemoryEstimate, Repeated, client_memory
from atlas_flwr.errors import BudgetError

__all__ = ["Assignment", "assign"]

MIB = 1 << 20


@dataclass(frozen=True)
class Assignment:
    """What a client's memory affords.

    Attributes
    ----------
    head, tail : int
        Blocks on the client; ``tail=None`` for a vanilla split.
    rank : int
        LoRA rank.
    estimate : MemoryEstimate
        Its predicted peak.
    """

    head: int
    tail: int | None
    rank: int
    estimate: MemoryEstimate


def assign(
    architecture: Architecture,
    memory: int | None,
    *,
    ranks: Sequence[int],
    max_head: int,
    tail: int | None = 1,
    batch: int,
    length: int,
    fixed_head: int | None = None,
    dtype_bytes: int = 4,
    aligned_steps: int = 0,
    repeated: Repeated | None = None,
    crossing: int | None = None,
    logits_to_keep: int = 2,
) -> Assignment:
    """Choose the largest rank that fits, then the deepest head with what is left.

    Rank before depth, since rank is what a client contributes with; depth after it,
    since blocks on the client spare the server. A larger budget never
    gives a smaller rank, nor at the same rank a shallower head.

    Parameters
    ----------
    architecture : Architecture
        The model.
    memory : int, optional
        The client's bytes; ``None`` for no limit.
    ranks : Sequence[int]
        To choose from.
    max_head : int
        Deepest head to consider.
    tail : int, optional
        Blocks of the tail; ``None`` for a vanilla split.
    batch, length : int
        Of a training step.
    fixed_head : int, optional
        Do not choose the head.
    dtype_bytes : int
        Bytes of a frozen weight.
    aligned_steps : int
        See :func:`~atlas_flwr.budget.client_memory`.
    crossing, logits_to_keep, repeated
        The same.

    Raises
    ------
    BudgetError
        If nothing fits: with the smallest budget that would; or if the model has too
        few blocks to be cut.
    """
    deepest = min(max_head, architecture.num_layers - 1 - (tail or 0))
    heads = [fixed_head] if fixed_head else list(range(1, deepest + 1))
    refuse_uncut(heads, architecture.num_layers, tail)

    def at(head: int, rank: int) -> Assignment:
        estimate = client_memory(
            architecture,
            head=head,
            tail=tail,
            rank=rank,
            batch=batch,
            length=length,
            dtype_bytes=dtype_bytes,
            aligned_steps=aligned_steps,
            repeated=repeated,
            crossing=crossing,
            logits_to_keep=logits_to_keep,
        )
        return Assignment(head, tail, rank, estimate)

    best = None
    for rank in sorted(ranks):
        for head in heads:
            found = at(head, rank)
            if memory is None or found.estimate.total <= memory:
                best = found
    if best is None:
        least = at(min(heads), min(ranks)).estimate.total
        raise BudgetError(
            f"a device of {(memory or 0) / MIB:.1f} MiB holds no part of this model: "
            f"the smallest, {min(heads)} block(s) in the head at rank {min(ranks)}, "
            f"takes {least / MIB:.1f} MiB with batch-size {batch} and max-length "
            f"{length}; give it at least that, or lower those"
        )
    return best
