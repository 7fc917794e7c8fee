"""What a minority of bad clients can do under each rule: no more than it states."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from atlas_flwr.remedies.robust_sums import RobustKeys
from atlas_flwr.robust import ROBUST, robust_rule
from atlas_flwr.robust.base import capped_shares, lower_median
from atlas_flwr.robust.geometric_median import geometric_median

BOUND = 2.0


@st.composite
def clusters(draw, least=3):
    """Honest updates near each other, and fewer bad ones that may be anything."""
    honest = draw(st.integers(least, 20))
    bad = draw(st.integers(1, max(1, (honest - 1) // 2)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    good = rng.normal(size=6) + 0.3 * rng.normal(size=(honest, 6))
    kind = draw(st.sampled_from(["scaled", "reversed", "far", "equal"]))
    size = 10.0 ** draw(st.floats(0, 8))
    mean = good.mean(0)
    evil = {
        "scaled": size * (mean + 0.1 * rng.normal(size=(bad, 6))),
        "reversed": -size * (mean + 0.1 * rng.normal(size=(bad, 6))),
        "far": size * rng.normal(size=(bad, 6)),
        "equal": np.repeat(size * rng.normal(size=(1, 6)), bad, 0),
    }[kind]
    weights = rng.integers(1, 50, size=honest + bad).astype(float)
    weights[honest:] = draw(st.sampled_from([1.0, 50.0, 1e9]))
    return good, evil, weights


def moved(name, updates, weights, bad_share=0.5):
    rule = robust_rule(name, BOUND, bad_share)
    c = rule.coefficients(updates @ updates.T, weights)
    assert np.isfinite(c).all()
    return c, c @ updates


@given(clusters())
def test_norm_bound_lets_nobody_move_its_cluster_by_more_than_it_states(cluster):
    good, evil, weights = cluster
    updates = np.concatenate([good, evil])
    c, _ = moved("norm-bound", updates, weights)
    longest = np.linalg.norm(good, axis=1).max()
    shares = capped_shares(weights, BOUND)
    by_one = np.abs(c) * np.linalg.norm(updates, axis=1)
    assert (by_one <= BOUND * longest * shares * (1 + 1e-9)).all()


@given(clusters())
def test_no_clients_word_of_its_examples_counts_beyond_twice_the_honest_ones(cluster):
    good, _, weights = cluster
    counted = capped_shares(weights, BOUND)
    honest = counted[: len(good)]
    assert counted.max() <= BOUND * honest.max()
    assert lower_median(weights) <= weights[: len(good)].max()


@given(clusters())
def test_the_geometric_median_stays_within_its_theorem(cluster):
    good, evil, weights = cluster
    updates = np.concatenate([good, evil])
    c, found = moved("geometric-median", updates, weights)
    alpha = len(evil) / len(updates)
    centre = good.mean(0)
    radius = np.linalg.norm(good - centre, axis=1).max()
    most = 2 * (1 - alpha) / (1 - 2 * alpha) * radius
    assert np.linalg.norm(found - centre) <= most * (1 + 1e-6)
    assert c.sum() == pytest.approx(1)


@given(clusters())
def test_trimmed_keeps_no_update_farther_out_than_an_honest_one(cluster):
    good, evil, weights = cluster
    updates = np.concatenate([good, evil])
    c, _ = moved("trimmed", updates, weights)
    middle = geometric_median(updates @ updates.T) @ updates
    away = np.linalg.norm(updates - middle, axis=1)
    assert away[c > 0].max() <= away[: len(good)].max() * (1 + 1e-9)


@given(st.integers(3, 9), st.integers(0, 2**32 - 1))
def test_the_median_is_where_the_sum_of_distances_is_least(count, seed):
    updates = np.random.default_rng(seed).normal(size=(count, 3))
    found = geometric_median(updates @ updates.T) @ updates

    def total(point):
        return np.linalg.norm(updates - point, axis=1).sum()

    best = minimize(
        total, updates.mean(0), method="Nelder-Mead", options={"xatol": 1e-9}
    )
    assert total(found) <= best.fun * (1 + 1e-7)


def test_a_median_that_is_an_update_is_found():
    updates = np.array([[0.0, 0.0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    assert geometric_median(updates @ updates.T) @ updates == pytest.approx([0, 0])


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_clients_that_agree_are_added_as_ever(name, count):
    updates = np.repeat([[1.0, -2.0]], count, 0)
    _, found = moved(name, updates, np.ones(count), bad_share=0.25)
    assert found == pytest.approx([1.0, -2.0])


@pytest.mark.parametrize("name", ROBUST)
def test_clients_without_examples_or_changes_do_not_count(name):
    updates = np.array([[1.0, 0], [1.1, 0], [0.9, 0], [0, 0], [5, 5]])
    c, _ = moved(name, updates, np.array([1.0, 1, 1, 1, 0]))
    assert c[4] == 0
    assert c[:3].min() >= 0


def test_of_two_clients_the_longer_update_is_cut_to_twice_the_shorter():
    updates = np.array([[1.0, 0.0], [0.0, 1000.0]])
    _, found = moved("norm-bound", updates, np.ones(2))
    assert found == pytest.approx([0.5, 1.0])


def test_among_clients_that_changed_nothing_a_bad_one_moves_nobody():
    good, evil = np.zeros((3, 2)), np.array([[1e6, 0.0]])
    for name in ROBUST:
        _, found = moved(name, np.concatenate([good, evil]), np.ones(4))
        assert found == pytest.approx([0.0, 0.0])


def test_the_key_of_the_run_config_offers_every_rule():
    offered = get_args(get_type_hints(RobustKeys)["robust"])
    assert {*offered} == {"none", *ROBUST}


@pytest.mark.parametrize("name", [*ROBUST])
def test_clients_without_examples_have_no_say_in_the_others_counts(name):
    rng = np.random.default_rng(0)
    updates, idle = rng.normal(size=(5, 6)), 1e-3 * rng.normal(size=(7, 6))
    weights = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    rule, both = robust_rule(name, BOUND, 0.25), np.vstack([updates, idle])
    alone = rule.coefficients(updates @ updates.T, weights)
    found = rule.coefficients(both @ both.T, np.append(weights, np.zeros(7)))
    np.testing.assert_allclose(found, np.append(alone, np.zeros(7)), atol=1e-9)
