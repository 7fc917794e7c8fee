# SPDX-License-Identifier: Apache-2.0
"""A late update moves its group by its change, times its share, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas_flwr.aggregation import AGGREGATIONS, Contribution
from atlas_flwr.aggregation.groups import ClusterAdapters
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.remedies.base import ServerHooks
from tests.matrix_clients import KEYS, initial

NAME, DENSE = "model.q", KEYS[2]


def moved(state, seed):
    """Train: move factors and dense arrays at random."""
    drawn = torch.Generator().manual_seed(seed)
    factors = {
        name: LoraFactors(
            f.A + torch.randn(f.A.shape, generator=drawn),
            f.B + torch.randn(f.B.shape, generator=drawn),
            f.scale,
        )
        for name, f in state.factors.items()
    }
    noise = np.random.default_rng(seed)
    dense = {
        key: (a + noise.normal(size=a.shape)).astype(a.dtype)
        for key, a in state.dense.items()
    }
    return AdapterState(factors, dense)


def product(state):
    """All that a client with this state computes with, live and folded."""
    total = state.factors[NAME].delta().double()
    return total + (state.folded[NAME].delta().double() if state.folded else 0)


def group_of(rule, ranks):
    """Two rounds of two clients, and what a third was sent in the second."""
    groups = ClusterAdapters(AGGREGATIONS[rule](None, False))
    groups.begin(initial(rank=4))
    for number in (1, 2):
        sent = [groups.start("0", r, number) for r in ranks]
        parts = [
            Contribution(str(k), 1.0 + k, moved(s, 10 * number + k), s)
            for k, s in enumerate(sent[:2])
        ]
        groups.aggregate({"0": parts})
    return groups, sent[2]


@pytest.mark.parametrize("rule", ["both", "fold"])
def test_a_late_change_is_added_to_what_its_group_has_learned_meanwhile(rule):
    ranks = (2, 3, 2)
    groups, old = group_of(rule, ranks)
    sent = [groups.start("0", r, 3) for r in ranks[:2]]
    new, late = [moved(s, 30 + k) for k, s in enumerate(sent)], moved(old, 40)
    held = groups.groups["0"]
    before = held.factors[NAME].delta().double()
    weights = torch.tensor([1.0, 2.0, 3.0 * 2**-0.5], dtype=torch.float64)
    p = weights / weights.sum()
    changes = [
        n.factors[NAME].delta().double() - s.factors[NAME].delta().double()
        for n, s in zip([*new, late], [*sent, old], strict=True)
    ]
    wanted = before + sum(
        share * change for share, change in zip(p, changes, strict=True)
    )
    dense = held.dense[DENSE] + sum(
        float(share) * (n.dense[DENSE] - s.dense[DENSE])
        for share, n, s in zip(p, [*new, late], [*sent, old], strict=True)
    )
    parts = [
        Contribution("0", 1.0, new[0], sent[0]),
        Contribution("1", 2.0, new[1], sent[1]),
        Contribution("2", 3.0 * 2**-0.5, late, old, late=True),
    ]
    groups.aggregate({"0": parts})
    found = groups.groups["0"]
    torch.testing.assert_close(
        found.factors[NAME].delta().double(), wanted, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(found.dense[DENSE], dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["both", "fold", "truncate", "mean"])
def test_who_is_late_and_has_learned_nothing_pulls_nobody_back(rule):
    """Beside one who has not moved either, a group stays as it is handed out."""
    groups, old = group_of(rule, (4, 4, 4))
    sent = groups.start("0", 4, 3)
    still = AdapterState(sent.factors, sent.dense)
    wanted = product(sent)
    late = AdapterState(old.factors, old.dense)
    groups.aggregate(
        {
            "0": [
                Contribution("0", 1.0, still, sent),
                Contribution("2", 5.0, late, old, late=True),
            ]
        }
    )
    found = product(groups.start("0", 4, 4))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_mean_by_norms_counts_who_is_late_as_all_others():
    """A change has no norm to be weighed by: it would be taken off and added."""
    found = []
    for late in (True, False):
        groups, old = group_of("sparsity-mean", (4, 4, 4))
        sent = groups.start("0", 4, 3)
        parts = [
            Contribution("0", 1.0, moved(sent, 30), sent),
            Contribution("2", 5.0, moved(old, 40), old, late=late),
        ]
        groups.aggregate({"0": parts})
        found.append(groups.groups["0"].factors[NAME].delta())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("rule", [*AGGREGATIONS])
@pytest.mark.parametrize("counts", [None, [0.25, 1.5]])
def test_infinities_that_were_there_at_first_stay_where_updates_are_taken_off(
    rule, counts
):
    """A mask's are sent along with what is trained."""

    class Counting(ServerHooks):
        def counts(self, group, updates):
            return counts

    groups, old = group_of(rule, (4, 4, 4))
    groups.hooks = Counting()
    mask = np.array([0.0, -np.inf, np.inf], np.float32)
    still = AdapterState(groups.start("0", 4, 3).factors, {DENSE: mask})
    late = AdapterState(old.factors, {DENSE: mask})
    parts = [Contribution("0", 1.0, still, still)]
    parts.append(Contribution("2", 5.0, late, late, late=counts is None))
    groups.groups["0"] = groups.groups["0"].merged(AdapterState({}, {DENSE: mask}))
    groups.aggregate({"0": parts})
    np.testing.assert_array_equal(groups.groups["0"].dense[DENSE], mask)
