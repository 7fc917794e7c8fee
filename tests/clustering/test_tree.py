from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.clustering import cluster, quality
from atlas_flwr.clustering.noise import Noise
from atlas_flwr.clustering.rows import Rows
from atlas_flwr.clustering.tree import count_beyond_noise
from tests.clustering.fingerprints import in_parts


def test_noise_is_estimated_without_bias_and_so_are_its_dimensions():
    rng = np.random.default_rng(0)
    scales = np.linspace(0.2, 1, 20)
    variance = (scales**2).sum()
    found = [
        Noise.of(rng.standard_normal((40, 3, 20)) * scales + rng.standard_normal(20))
        for _ in range(50)
    ]
    means = [noise.variances.mean() for noise in found]
    assert np.mean(means) == pytest.approx(variance, rel=0.02)
    dims = variance**2 / (scales**4).sum()
    assert np.mean([noise.dims for noise in found]) == pytest.approx(dims, rel=0.03)
    assert found[0].freedom == 2


def test_noise_is_told_for_each_client():
    parts = np.random.default_rng(0).standard_normal((3, 200, 5))
    found = Noise.of(parts * np.array([1.0, 2.0, 3.0])[:, None, None])
    np.testing.assert_allclose(found.variances, [5, 20, 45], rtol=0.15)


@pytest.mark.parametrize("n", [2, 6, 8, 12])
def test_clients_of_one_task_are_one_cluster_but_for_the_level(n):
    """False alarms: at most 5 % in expectation, 200 trials, 3 standard errors."""
    alarms = sum(
        cluster(in_parts(1, n, noise=0.5, seed=seed)[0], seed=0).k > 1
        for seed in range(200)
    )
    assert alarms / 200 <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


def test_pure_clusters_are_seldom_cut_too():
    found = [cluster(in_parts(3, 4, noise=0.3, seed=s)[0], seed=0).k for s in range(60)]
    assert min(found) == 3
    assert found.count(3) >= 54


@pytest.mark.parametrize(
    ("k", "each"), [(2, 1), (3, 2), pytest.param(4, 2, marks=pytest.mark.slow)]
)
def test_differences_are_seen_where_silhouettes_see_none(k, each):
    by_noise = by_silhouette = 0
    for seed in range(8):
        points, tasks = in_parts(k, each, noise=0.7, decay=1.0, seed=seed)
        by_noise += quality(cluster(points).labels, tasks).ari == 1
        by_silhouette += cluster(points.mean(1)).k == k
    assert by_noise >= 7
    assert by_silhouette <= 2


def test_differences_within_a_task_are_allowed_up_to_the_tolerance():
    """Clients of one task differ by more than noise, yet less than tasks do."""
    rng = np.random.default_rng(0)
    points, _ = in_parts(3, 4, noise=0.1)
    points = points + 0.15 * rng.standard_normal((12, 1, 64)) / 8
    parts = Rows.of(points).parts
    assert count_beyond_noise(parts, 12, tolerance=0.0) > 3
    assert count_beyond_noise(parts, 12) == 3


def test_the_most_different_are_told_apart_first():
    points, _ = in_parts(6, 3, noise=0.2)
    assert cluster(points, max_k=4).k == 4
    assert cluster(points).k == 6


def test_more_noise_merges_what_it_hides():
    counts = [
        np.mean([cluster(in_parts(4, 2, noise=x, seed=s)[0]).k for s in range(8)])
        for x in (0.2, 1.0, 4.0)
    ]
    assert counts[0] == 4
    assert counts[0] > counts[1] > counts[2]
    assert counts[2] < 1.5


def test_scales_of_clients_do_not_matter():
    points, _ = in_parts(3, 3, seed=4)
    scaled = points * np.linspace(1, 40, 9)[:, None, None]
    one, other = cluster(points), cluster(scaled)
    assert one.labels.tolist() == other.labels.tolist()


def test_equal_parts_without_any_noise_are_told_apart_exactly():
    points = np.repeat(np.eye(8)[[0, 0, 1, 1, 2]][:, None], 3, axis=1)
    assert cluster(points).labels.tolist() == [0, 0, 1, 1, 2]
    assert cluster(np.ones((4, 3, 8))).k == 1


def test_one_client_is_one_cluster():
    assert cluster(in_parts(1, 1)[0]).k == 1
