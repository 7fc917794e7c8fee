from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from atlas_flwr.clustering import detect_drift
from atlas_flwr.errors import DataError
from tests.clustering.fingerprints import in_parts


def pair(seed, n=8, parts=4, noise=0.4, moved=(), by=1.0):
    """Two fingerprints a client of unlike draws; some clients changed their task."""
    before, _ = in_parts(2, n // 2, noise=noise, parts=parts, seed=seed)
    rng = np.random.default_rng([seed, 1])
    shuffled = before - before.mean(1, keepdims=True)
    scales = shuffled.std((0, 1)) * (parts / (parts - 1)) ** 0.5
    fresh = scales * rng.standard_normal((2, *before.shape))
    clean, _ = in_parts(2, n // 2, noise=0.0, parts=parts, seed=seed)
    before, after = clean + fresh[0], clean + fresh[1]
    direction = rng.standard_normal(before.shape[2])
    after[list(moved)] += by * direction / np.linalg.norm(direction)
    return before, after


@pytest.mark.parametrize(("n", "parts"), [(2, 2), (8, 2), (8, 4), (20, 3)])
def test_false_alarms_are_as_rare_as_the_level(n, parts):
    """200 trials: any alarm at all in at most 5 %, within 3 standard errors."""
    found = [detect_drift(*pair(seed, n, parts)) for seed in range(200)]
    allowed = 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    assert np.mean([drift.drifted.any() for drift in found]) <= allowed
    assert np.mean([drift.overall < 0.05 for drift in found]) <= allowed


def test_p_values_are_nearly_uniform_without_drift():
    found = [detect_drift(*pair(seed)).p_values[0] for seed in range(300)]
    assert kstest(found, "uniform").statistic < 0.15


def test_clients_of_unlike_noise_raise_no_more_alarms():
    alarms = 0
    for seed in range(100):
        scales = np.where(np.arange(8) % 2, 1.0, 4.0)[:, None, None]
        before, after = pair(seed, noise=0.1)
        clean, _ = in_parts(2, 4, noise=0.0, seed=seed)
        moves = (clean + scales * (found - clean) for found in (before, after))
        alarms += detect_drift(*moves).drifted.any()
    assert alarms / 100 <= 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5


@pytest.mark.parametrize("moved", [(3,), (0, 5)])
def test_those_who_moved_are_named_and_nobody_else(moved):
    exact = 0
    for seed in range(20):
        drift = detect_drift(*pair(seed, moved=moved, by=1.5))
        exact += np.flatnonzero(drift.drifted).tolist() == list(moved)
    assert exact >= 18


def test_a_move_of_all_that_no_single_client_shows_is_seen_in_the_federation():
    found = [detect_drift(*pair(s, 20, moved=range(20), by=0.35)) for s in range(20)]
    assert np.mean([drift.overall < 0.05 for drift in found]) > 0.9
    assert np.mean([drift.drifted.mean() for drift in found]) < 0.6


def test_scales_do_not_matter():
    before, after = pair(0, moved=(1,))
    drift = detect_drift(before, 40 * after)
    np.testing.assert_allclose(drift.p_values, detect_drift(before, after).p_values)


def test_without_noise_any_move_is_one_and_none_is_none():
    before = np.repeat(np.eye(4)[[0, 1, 2]][:, None], 2, axis=1)
    after = before.copy()
    after[1] = np.eye(4)[3]
    drift = detect_drift(before, after)
    assert drift.drifted.tolist() == [False, True, False]
    assert (drift.overall, detect_drift(before, before).overall) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("before", "after"),
    [((3, 2, 4), (3, 2, 5)), ((3, 1, 4), (3, 1, 4)), ((3, 4), (3, 4))],
)
def test_fingerprints_that_cannot_be_compared_are_refused(before, after):
    with pytest.raises(DataError, match="parts >= 2"):
        detect_drift(np.ones(before), np.ones(after))


@pytest.mark.parametrize("level", [0, 1, -0.1])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(DataError, match="between 0 and 1"):
        detect_drift(*pair(0), level=level)
