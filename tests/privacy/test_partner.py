"""What members of a cluster learn of one another from what the cluster is sent."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.aggregation.contribution import Contribution
from atlas_flwr.aggregation.registry import AGGREGATIONS
from atlas_flwr.aggregation.rule import Start
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.privacy.attacks.partner import others_update, product_sent

M, N, RANK = 24, 20, 3


def factors(drawn, rank=RANK):
    return LoraFactors(
        torch.randn(rank, N, generator=drawn), torch.randn(M, rank, generator=drawn)
    )


def off(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def sent(rule, held, rank=RANK):
    start = Start(AdapterState(), {"q": rank}, lambda rank: 1.0)
    state = rule.start(held, start)
    return state, product_sent(state.factors, state.folded)


def round_of(rule, trained, weights):
    """Let clients train from one product; return it, the next, and what changed."""
    held = AdapterState({"q": sum_of(rule)})
    live, before = sent(rule, held)
    parts, changes = [], []
    for i, (new, weight) in enumerate(zip(trained, weights, strict=True)):
        parts.append(Contribution(str(i), weight, AdapterState({"q": new})))
        changes.append(new.delta() - live.factors["q"].delta())
    _, after = sent(rule, rule.combine(held, parts))
    own = product_sent({"q": trained[0]}, live.folded)
    return before, after, own, changes


def sum_of(rule):
    """Return what a cluster of two holds after a round that all began with nothing."""
    drawn = torch.Generator().manual_seed(7)
    parts = [
        Contribution(str(i), 1.0, AdapterState({"q": factors(drawn)})) for i in range(2)
    ]
    return rule.combine(None, parts).factors["q"]


def test_in_a_cluster_of_two_each_has_the_others_update():
    drawn = torch.Generator().manual_seed(0)
    trained = [factors(drawn), factors(drawn)]
    before, after, own, changes = round_of(AGGREGATIONS["both"](), trained, [3.0, 1.0])
    found = others_update(before, after, own, 0.75)["q"].delta()
    assert off(found, changes[1]) < 1e-4


def test_of_three_it_has_the_mean_of_the_two_others_and_neither_of_them():
    drawn = torch.Generator().manual_seed(0)
    trained = [factors(drawn) for _ in range(3)]
    before, after, own, changes = round_of(AGGREGATIONS["both"](), trained, [1.0] * 3)
    found = others_update(before, after, own, 1 / 3)["q"].delta()
    assert off(found, (changes[1] + changes[2]) / 2) < 1e-4
    assert min(off(found, change) for change in changes[1:]) > 0.3


@pytest.mark.parametrize("name", ["both", "fold", "truncate"])
def test_what_is_sent_tells_the_sum_and_not_what_it_was_added_up_from(name):
    drawn = torch.Generator().manual_seed(1)
    one, other, moved = (factors(drawn) for _ in range(3))
    pairs = [
        (one, other),
        (
            LoraFactors(torch.cat([one.A, moved.A]), torch.cat([one.B, moved.B], 1)),
            LoraFactors(
                torch.cat([other.A, moved.A]), torch.cat([other.B, -moved.B], 1)
            ),
        ),
    ]
    held = []
    for pair in pairs:
        rule = AGGREGATIONS[name]()
        parts = [
            Contribution(str(i), 1.0, AdapterState({"q": f}))
            for i, f in enumerate(pair)
        ]
        held.append(rule.combine(None, parts).factors["q"])
    assert off(pairs[0][0].delta(), pairs[1][0].delta()) > 0.3
    for a, b in ((held[0].A, held[1].A), (held[0].B, held[1].B)):
        signs = (a * b).sum(1 if a.shape[1] == N else 0).sign()
        turned = b * (signs[:, None] if a.shape[1] == N else signs)
        torch.testing.assert_close(a, turned, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("share", [-0.5, 1.0, float("nan")])
def test_a_share_that_leaves_nothing_to_others_is_refused(share):
    with pytest.raises(ValueError, match="share="):
        others_update({}, {}, {}, share)
