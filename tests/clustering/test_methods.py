from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering, spectral_clustering

from atlas_flwr.clustering import METHODS, cluster, quality
from atlas_flwr.errors import DataError
from tests.clustering.fingerprints import in_parts, mixture, unit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("k", "each"), [(2, 5), (4, 3)])
def test_every_method_finds_and_counts_planted_clusters(method, k, each):
    for points, tasks in (mixture(k, each), in_parts(k, each)):
        found = cluster(points, method=method)
        assert found.k == k
        assert quality(found.labels, tasks).ari == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_places_newcomers_with_their_task(method):
    points, tasks = in_parts(3, 8, seed=5)
    found = cluster(points[:15], method=method)
    placed = [found.nearest(point) for point in points]
    assert placed[:15] == found.labels.tolist()
    assert quality(placed, tasks).ari == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_method_can_find_any_number_of_clusters(method, n):
    points = np.random.default_rng(n).standard_normal((n, 4))
    for k in range(1, n + 1):
        labels = cluster(points, k, method=method).labels
        assert len(set(labels.tolist())) == k


@pytest.mark.parametrize("method", METHODS)
def test_equal_points_are_no_trouble(method):
    labels = cluster(np.ones((5, 3)), 2, method=method).labels
    assert len(labels) == 5
    assert set(labels.tolist()) <= {0, 1}


def test_kmeans_finds_the_least_sum_of_squares_of_all_partitions():
    rows = np.random.default_rng(0).standard_normal((8, 2))

    def squares(labels):
        labels = np.asarray(labels)
        groups = [rows[labels == label] for label in set(labels.tolist())]
        return sum(((group - group.mean(0)) ** 2).sum() for group in groups)

    least = min(squares(labels) for labels in product(range(3), repeat=8))
    found = METHODS["kmeans"](rows, 3, 0, 20)
    assert squares(found) == pytest.approx(least)


@pytest.mark.parametrize("seed", range(5))
def test_agglomerative_and_spectral_find_what_sklearn_finds(seed):
    rows = unit(np.random.default_rng(seed).standard_normal((12, 5)))
    ward = AgglomerativeClustering(3, linkage="ward").fit_predict(rows)
    assert quality(METHODS["agglomerative"](rows, 3, 0, 20), ward).ari == 1
    points, _ = mixture(3, 4, noise=0.8, seed=seed)
    rows = unit(points - points.mean(0))
    squared = ((rows[:, None] - rows) ** 2).sum(2)
    likeness = np.exp(-squared / 2 / np.median(squared[np.triu_indices(12, 1)]))
    np.fill_diagonal(likeness, 0)
    graph = spectral_clustering(likeness, n_clusters=3, random_state=0)
    assert quality(METHODS["spectral"](rows, 3, 0, 20), graph).ari == 1


def test_an_unknown_method_is_refused():
    with pytest.raises(DataError, match="agglomerative, kmeans, spectral"):
        cluster(np.eye(3), method="dbscan")
