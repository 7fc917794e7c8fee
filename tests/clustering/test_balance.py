from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.clustering import cluster, quality
from atlas_flwr.clustering.balance import _assigned
from tests.clustering.fingerprints import mixture


@settings(deadline=None)
@given(st.integers(1, 15), st.integers(1, 6), st.integers(0, 99))
def test_sizes_differ_by_one_at_most(n, k, seed):
    points = np.random.default_rng(seed).standard_normal((n, 3))
    found = cluster(points, min(k, n), balanced=True)
    sizes = np.bincount(found.labels, minlength=found.k)
    assert sizes.max() - sizes.min() <= 1
    assert sizes.sum() == n


@pytest.mark.parametrize(("n", "k"), [(5, 2), (6, 3), (7, 3), (4, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_an_assignment_is_the_cheapest_of_all_that_are_balanced(n, k, seed):
    rng = np.random.default_rng(seed)
    rows, centroids = rng.standard_normal((n, 2)), rng.standard_normal((k, 2))
    cost = ((rows[:, None] - centroids) ** 2).sum(2)
    sizes = [n // k + (i < n % k) for i in range(k)]
    cheapest = min(
        cost[range(n), labels].sum()
        for given_sizes in set(permutations(sizes))
        for labels in set(permutations(np.repeat(range(k), given_sizes).tolist()))
    )
    assert cost[range(n), _assigned(rows, centroids)].sum() == pytest.approx(cheapest)


def test_clusters_that_are_balanced_stay_as_they_are():
    points, tasks = mixture(3, 4)
    found = cluster(points, 3, balanced=True)
    assert quality(found.labels, tasks).ari == 1


def test_a_large_task_gives_away_what_it_has_too_many_of():
    points, tasks = mixture(2, 8)
    kept = np.r_[np.flatnonzero(tasks == 0), np.flatnonzero(tasks == 1)[:2]]
    assert sorted(np.bincount(cluster(points[kept], 2).labels)) == [2, 8]
    found = cluster(points[kept], 2, balanced=True)
    assert np.bincount(found.labels).tolist() == [5, 5]
    assert found.labels[8] == found.labels[9]
