# SPDX-License-Identifier: Apache-2.0
"""How many labels a training step has: what its logits take of memory hangs on it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from atlas_flwr.data.batches import Collator
from atlas_flwr.data.completions import CompletionCollator
from atlas_flwr.data.examples import Example
from atlas_flwr.data.responses import GenerationCollator

__all__ = ["LOOKED_AT", "most_labels", "usual_labels"]

LOOKED_AT = 64  # batches: the fullest of thousands is hardly fuller


def most_labels(collate: Collator, drawn: Iterable[Sequence[Example]]) -> int:
    """Return the labels of an example, on average, in the fullest of some batches.

    Parameters
    ----------
    collate : Collator
        Makes the batches.
    drawn : Iterable[Sequence[Example]]
        The examples of each, which has at least one.

    Returns
    -------
    int
        Rounded up; of a class, the tokens of the longest word.
    """
    if not isinstance(collate, GenerationCollator):
        return max(collate.longest_word, 1)
    return max(-(-_labels(collate, batch) // len(batch)) for batch in drawn)


def usual_labels(
    collate: Collator, examples: Sequence[Example], batch_size: int, seed: int
) -> int:
    """Return what :func:`most_labels` is likely to be of clients with these examples.

    Parameters
    ----------
    collate : Collator
        Makes the batches. Pieces of long texts are taken to be full.
    examples : Sequence[Example]
        Of a task, as they were read.
    batch_size : int
        Examples in a batch.
    seed : int
        Of those that are looked at.
    """
    if isinstance(collate, CompletionCollator):
        return collate.max_length - 1
    return most_labels(collate, _some_batches(examples, batch_size, seed))


def _labels(collate: GenerationCollator, batch: Sequence[Example]) -> int:
    return sum(sum(collate.row(example).learned) for example in batch)


def _some_batches(
    examples: Sequence[Example], size: int, seed: int
) -> Iterator[Sequence[Example]]:
    count = min(LOOKED_AT * size, len(examples))
    chosen = random.Random(seed).sample(examples, count)
    for start in range(0, count, size):
        yield chosen[start : start + size]
