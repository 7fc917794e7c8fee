# SPDX-License-Identifier: Apache-2.0
"""Which examples share a batch: all evenly often, and none left out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.data import ClassifierCollator, Example, in_order, sample_batches
from atlas_flwr.errors import DataError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


class _Numbers(ClassifierCollator):
    """Tells which examples a batch is made of."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, examples: Any, prompt: bool = False) -> Any:
        self.seen.append([example.text for example in examples])


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 12), st.integers(0, 2**32))
def test_sampling_gives_the_steps_asked_and_passes_evenly(
    count: int, size: int, steps: int, seed: int
) -> None:
    examples = [Example(str(i), 0) for i in range(count)]
    runs = []
    for _ in range(2):
        collate = _Numbers()
        made = sample_batches(
            examples, collate, batch_size=size, steps=steps, seed=seed
        )
        assert len(list(made)) == steps
        runs.append(collate.seen)
    assert runs[0] == runs[1]
    assert all(len(batch) == size for batch in runs[0])
    drawn = Counter(text for batch in runs[0] for text in batch)
    times = [drawn[e.text] for e in examples]
    assert max(times) - min(times) <= 1


@given(st.lists(texts, max_size=9), st.integers(1, 4))
def test_in_order_gives_every_example_once(texts: list[str], size: int) -> None:
    collate = _Numbers()
    list(in_order([Example(text, 0) for text in texts], collate, size))
    assert Counter(t for batch in collate.seen for t in batch) == Counter(texts)
    assert all(len(batch) == size for batch in collate.seen[:-1])


def test_nothing_to_draw_from_is_told_and_not_waited_for():
    with pytest.raises(DataError, match="no example"):
        next(sample_batches([], None, batch_size=2, steps=1, seed=0))
