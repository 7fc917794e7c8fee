# SPDX-License-Identifier: Apache-2.0
"""Which examples share a batch: at random in training, by length in evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from atlas_flwr.errors import DataError

if TYPE_CHECKING:
    from atlas_flwr.data.batches import Batch, Collator
    from atlas_flwr.data.examples import Example

__all__ = ["by_length", "in_order", "sample_batches", "sample_examples"]


def sample_batches(
    examples: Sequence[Example],
    collate: Collator,
    *,
    batch_size: int,
    steps: int,
    seed: int,
) -> Iterator[Batch]:
    """Yield exactly ``steps`` batches, passing over the examples in shuffled epochs."""
    drawn = sample_examples(examples, batch_size=batch_size, steps=steps, seed=seed)
    yield from map(collate, drawn)


def sample_examples(
    examples: Sequence[Example], *, batch_size: int, steps: int, seed: int
) -> Iterator[list[Example]]:
    """Yield the examples of each of :func:`sample_batches`'s batches."""
    if not examples:
        raise DataError("there is no example to draw a batch from")
    rng = random.Random(seed)
    queue: list[Example] = []
    for _ in range(steps):
        while len(queue) < batch_size:
            queue += rng.sample(list(examples), len(examples))
        yield queue[:batch_size]
        del queue[:batch_size]


def in_order(
    examples: Sequence[Example], collate: Collator, batch_size: int
) -> Iterator[Batch]:
    """Yield prompts of every example once, for evaluation.

    Texts of like length share a batch, so that little of it is padding.
    """
    ordered = by_length(examples)
    for start in range(0, len(ordered), batch_size):
        yield collate(ordered[start : start + batch_size], prompt=True)


def by_length(examples: Sequence[Example]) -> list[Example]:
    """Return examples in the order in which :func:`in_order` takes them."""
    return sorted(examples, key=lambda example: example.length)
