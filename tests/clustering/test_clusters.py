from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.clustering import cluster, quality
from atlas_flwr.errors import DataError
from tests.clustering.fingerprints import mixture


@pytest.mark.parametrize(("k", "each"), [(2, 6), (3, 3), (4, 3), (4, 8), (6, 5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_clusters_are_found_and_counted(k, each, seed):
    points, tasks = mixture(k, each, seed=seed)
    found = cluster(points)
    assert found.k == k
    assert quality(found.labels, tasks).ari == 1
    assert found.silhouette > 0.3


@pytest.mark.parametrize("count", [3, 6, 12, 40])
def test_one_cluster_where_nothing_separates(count):
    chosen = [cluster(mixture(1, count, noise=0.8, seed=s)[0]).k for s in range(4)]
    assert chosen.count(1) >= 3  # the test's level is 0.05


def test_a_given_number_of_clusters_is_kept():
    points, tasks = mixture(4, 3, noise=1.0)
    found = cluster(points, k=4)
    assert (found.k, len(found.centroids)) == (4, 4)
    assert quality(found.labels, tasks).ari > 0.8


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(12)), st.floats(0.3, 1.5))
def test_the_clusters_do_not_depend_on_the_order_of_the_points(order, noise):
    points, _ = mixture(3, 4, noise=noise)
    one, other = cluster(points, max_k=4), cluster(points[order], max_k=4)
    assert one.k == other.k
    assert quality(one.labels[order], other.labels).ari == 1
    assert sorted(map(tuple, one.centroids)) == sorted(map(tuple, other.centroids))


@given(st.integers(1, 5), st.integers(0, 20))
def test_labels_are_numbered_by_first_appearance(k, seed):
    points = np.random.default_rng(seed).standard_normal((7, 3))
    labels = cluster(points, k=k).labels.tolist()
    assert list(dict.fromkeys(labels)) == list(range(k))


def test_newcomers_join_their_task():
    points, tasks = mixture(3, 8, seed=5)
    found = cluster(points[:15])
    placed = [found.nearest(point) for point in points]
    assert quality(placed, tasks).ari == 1
    assert placed[:15] == found.labels.tolist()


def test_how_far_a_sketch_is_from_the_mean_does_not_matter():
    points, tasks = mixture(4, 4)
    stretched = (points - points.mean(0)) * np.linspace(1, 3, 16)[:, None]
    assert quality(cluster(stretched, k=4).labels, tasks).ari == 1


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_points_to_compare_are_one_cluster(count):
    points = np.random.default_rng(0).standard_normal((count, 8))
    found = cluster(points)
    assert (found.k, found.silhouette) == (1, None)
    assert found.labels.tolist() == [0] * count
    assert found.nearest(points[0]) == 0


def test_equal_points_are_one_cluster():
    found = cluster(np.ones((6, 8), np.float32))
    assert (found.k, found.labels.tolist()) == (1, [0] * 6)


def test_copies_of_two_points_are_two_clusters():
    found = cluster(np.repeat(np.eye(8)[:2], 4, axis=0))
    assert found.labels.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("k", [0, 4])
def test_an_impossible_number_of_clusters_is_refused(k):
    with pytest.raises(DataError, match="allowed: 1 to n"):
        cluster(np.eye(3), k=k)


@pytest.mark.parametrize(
    "points", [np.zeros((0, 4)), np.zeros(4), np.full((3, 2), np.nan)]
)
def test_what_is_no_set_of_points_is_refused(points):
    with pytest.raises(DataError, match="all finite"):
        cluster(points)
