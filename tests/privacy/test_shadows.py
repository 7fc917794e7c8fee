"""Shadows: the ratio of two normal densities, and what it tells that a loss cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from atlas_flwr.cli.shadows import halves, shadow_losses
from atlas_flwr.config import load_config
from atlas_flwr.data import load_task, make_shard, tokenizer_of
from atlas_flwr.data.collation import collator_of
from atlas_flwr.privacy.attacks.base import Suspects
from atlas_flwr.privacy.attacks.registry import MEMBERSHIP
from atlas_flwr.privacy.auc import auc
from atlas_flwr.server_apps.build import scaling_of
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.step import batch_loss
from atlas_flwr.train.weights import ModelFiles

TEXTS, SHADOWS = 60, 4


def suspects(fall, seed=0):
    """Draw losses of texts, unlike in how hard they are, that fall when learned."""
    rng = np.random.default_rng(seed)
    hard = rng.uniform(0.5, 6, TEXTS)
    member = np.arange(TEXTS) < TEXTS // 2
    within = halves(SHADOWS, TEXTS, seed)

    def losses(learned):
        off = rng.normal(0, 0.05, np.shape(learned))
        return torch.tensor(hard - fall * np.asarray(learned) + off)

    return Suspects(losses(member), losses(0 * member), losses(within.numpy()), within)


def area(name, found):
    scores = MEMBERSHIP[name].scores(found).numpy()
    return auc([(scores[: TEXTS // 2], scores[TEXTS // 2 :])], 0)


def test_it_tells_members_where_texts_are_unlike_and_a_loss_alone_does_not():
    found = suspects(fall=0.3)
    assert area("membership-shadow", found)[0] > 0.95
    assert area("membership-loss", found)[0] < 0.7


def test_adapters_that_have_learned_nothing_tell_nothing():
    _, (low, high) = area("membership-shadow", suspects(fall=0.0))
    assert low < 0.5 < high


def test_the_score_is_the_ratio_of_two_normal_densities():
    found = suspects(fall=0.3)

    def logit(losses):
        p = np.exp(-losses.numpy())
        return np.log(p / (1 - p))

    seen, shadows, within = logit(found.losses), logit(found.shadows), found.within

    def density(group):
        rows = [shadows[group[:, i], i] for i in range(TEXTS)]
        variance = np.mean([row.var(ddof=1) for row in rows])
        return norm([row.mean() for row in rows], variance**0.5).logpdf(seen)

    wanted = density(within.numpy()) - density(~within.numpy())
    got = MEMBERSHIP["membership-shadow"].scores(found).numpy()
    assert got == pytest.approx(wanted)


def test_each_text_is_in_half_of_the_shadows():
    drawn = halves(6, 11, 0)
    assert drawn.sum(0).tolist() == [3] * 11
    assert not torch.equal(drawn[0], drawn[2])
    with pytest.raises(ValueError, match="make it even"):
        halves(3, 11, 0)


def test_a_shadow_has_learned_what_it_was_trained_on():
    rates = {"local-steps": 8, "batch-size": 4, "learning-rate": 0.02}
    config = load_config({"model": "tiny", "num-rounds": 1, **rates})
    files = ModelFiles.of(config, "cpu")
    model, shapes = files.whole(), files.outline().shapes(config.target_list)
    like = initial_state(shapes, rank=4, scaling=scaling_of(config), seed=0)
    task = load_task("questions")
    collate = collator_of(files.source, tokenizer_of(files.source), task, 24)
    texts = make_shard(0, 1, [task], train_examples=8).train

    def losses(now):
        with torch.no_grad():
            return torch.stack([batch_loss(now, collate([text])) for text in texts])

    within = halves(2, 8, 0)
    found = shadow_losses(config, model, like, collate, texts, within, 4, losses)
    fallen = losses(model) - found
    own, others = fallen[within].mean(), fallen[~within].mean()
    assert own > others + 0.1


def test_texts_that_all_shadows_know_by_heart_are_told_from_others():
    within = halves(4, 6, 0)
    shadows = torch.where(within, 0.0, 3.0)
    losses = torch.tensor([0.0] * 3 + [3.0] * 3)
    attack = MEMBERSHIP["membership-shadow"]
    told = attack.scores(Suspects(losses, losses, shadows, within))
    area, _ = auc([(told[:3].numpy(), told[3:].numpy())], 0)
    assert area == 1
