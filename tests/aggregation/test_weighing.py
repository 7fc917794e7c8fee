"""A group moves by the sum of its updates that a remedy states, under every rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.aggregation import AGGREGATIONS, Contribution
from atlas_flwr.aggregation.weighing import weighed
from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState, LoraFactors, canonical, leading, trailing
from atlas_flwr.remedies.base import UNCHANGED, ServerHooks

M, N = 6, 5


class Counts(ServerHooks):
    def __init__(self, counts):
        self.given = counts

    def counts(self, group, updates):
        return self.given


def drawn(rng, rank):
    A, B = rng.normal(size=(rank, N)), rng.normal(size=(M, rank))
    return LoraFactors(torch.tensor(A).float(), torch.tensor(B).float(), 1.5)


def product(factors):
    return factors.scale * (factors.B.double() @ factors.A.double())


def members(rng, held, ranks):
    """Clients of several ranks that were sent the first directions of what is held."""
    parts = []
    for k, rank in enumerate(ranks):
        sent = AdapterState(
            {"q": leading(held.factors["q"], rank, scale=1.5)}, {"head": np.ones(3)}
        )
        state = AdapterState({"q": drawn(rng, rank)}, {"head": rng.normal(size=3)})
        parts.append(Contribution(str(k), float(k + 1), state, sent))
    return parts


@pytest.mark.parametrize("name", ["both", "truncate"])
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_a_group_moves_by_the_updates_that_count(name, seed, count):
    rng = np.random.default_rng(seed)
    held = AdapterState({"q": canonical(drawn(rng, 4))})
    ranks = [int(r) for r in rng.integers(1, 4, size=count)]
    parts = members(rng, held, ranks)
    c = rng.uniform(0, 1, size=count) * rng.integers(0, 2, size=count)
    counted = weighed(parts, "0", Counts(c))
    after = AGGREGATIONS[name]().combine(held, counted)
    p = np.array([part.weight for part in parts]) / sum(part.weight for part in parts)
    wanted = torch.zeros(M, N, dtype=torch.float64)
    head = np.zeros(3)
    for part, share, much in zip(parts, p, c, strict=True):
        sent, got = part.sent.factors["q"], part.state.factors["q"]
        rest = trailing(held.factors["q"], got.rank)
        if name == "both" and rest is not None:
            wanted += share * product(rest)
        wanted += share * product(sent) + much * (product(got) - product(sent))
        head += share * 1 + much * (part.state.dense["head"] - 1)
    torch.testing.assert_close(
        product(after.factors["q"]), wanted, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(after.dense["head"], head, rtol=1e-6, atol=1e-9)


def test_a_member_that_counts_in_part_takes_no_more_room_of_a_flat_rule():
    rng = np.random.default_rng(0)
    held = AdapterState({"q": canonical(drawn(rng, 1))})
    parts = members(rng, held, [1, 1])
    rule = AGGREGATIONS["both"](flat=True)
    plain = rule.combine(held, parts).factors["q"].rank
    assert plain == 2
    counted = weighed(parts, "0", Counts([0.1, 0.2]))
    assert rule.combine(held, counted).factors["q"].rank == plain


def test_without_a_remedy_members_count_as_they_are():
    parts = [Contribution("0", 1.0, AdapterState())]
    assert weighed(parts, "0", UNCHANGED) is parts


def test_a_member_of_which_it_is_not_known_what_it_was_sent_is_refused():
    parts = [Contribution("7", 1.0, AdapterState())]
    with pytest.raises(AdapterError, match="client 7"):
        weighed(parts, "0", Counts([0.5]))
