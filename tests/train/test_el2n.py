"""EL2N scores on tiny models."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.train.el2n import el2n, hardest
from atlas_flwr.train.step import last_logits
from tests.train.splits import KINDS, batches, split_model


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(0)
    return request.param


def test_el2n_is_the_norm_of_the_error_by_hand(kind):
    model, given = split_model(kind), batches(kind, 2)
    ids = [3, 1, 4, 2]
    for batch in given:
        batch.targets[:] = torch.arange(len(batch)) % 4
    scores = el2n(model, given, ids)
    expected = []
    for batch in given:
        with torch.no_grad():
            logits = last_logits(model, batch)
        logits = logits[:, -1] if batch.causal else logits
        for row, target in zip(logits, batch.targets, strict=True):
            error = F.softmax(row[ids], 0)
            error[target] -= 1
            expected.append(error.square().sum().sqrt())
    torch.testing.assert_close(scores, torch.stack(expected))


@given(
    st.lists(st.floats(0, 1.5, width=32), min_size=1, max_size=40), st.floats(0, 0.95)
)
def test_the_hardest_stay_and_as_many_as_asked(values, dropped):
    scores = torch.tensor(values)
    kept = hardest(scores, dropped)
    assert kept == sorted(set(kept))
    assert len(kept) == max(1, len(values) - int(dropped * len(values) + 1e-9))
    lost = set(range(len(values))) - set(kept)
    assert all(scores[k] >= scores[j] for k in kept for j in lost)


@pytest.mark.parametrize("percent", range(1, 96))
def test_of_a_hundred_as_many_are_dropped_as_percent_are_asked(percent):
    assert len(hardest(torch.rand(100), percent / 100)) == 100 - percent
