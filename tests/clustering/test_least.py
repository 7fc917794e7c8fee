"""Clusters of so many members at least, whatever the fingerprints."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.clustering import METHODS, cluster
from atlas_flwr.clustering.least import joined
from atlas_flwr.errors import DataError
from tests.clustering.fingerprints import in_parts, mixture

COORDINATES = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0])


@st.composite
def labelled(draw):
    """Rows, equal ones among them, labels with gaps, and a least size."""
    n = draw(st.integers(1, 14))
    row = st.lists(COORDINATES, min_size=3, max_size=3)
    rows = np.array(draw(st.lists(row, min_size=n, max_size=n)))
    numbers = st.lists(st.integers(0, 9), min_size=n, max_size=n)
    return rows, np.array(draw(numbers)), draw(st.integers(1, n))


def sizes(labels):
    return np.unique(labels, return_counts=True)[1]


def same_partition(one, other):
    return np.array_equal(one[:, None] == one, other[:, None] == other)


@settings(deadline=None)
@given(labelled())
def test_every_cluster_has_enough_and_none_is_divided(made):
    rows, labels, least = made
    found = joined(rows, labels, least)
    assert sizes(found).min() >= least
    assert set(found) == set(range(len(set(found))))
    together = labels[:, None] == labels
    assert (found[:, None] == found)[together].all()


@settings(deadline=None)
@given(labelled())
def test_clusters_that_are_large_enough_stay_as_they_are(made):
    rows, labels, _ = made
    assert same_partition(joined(rows, labels, int(sizes(labels).min())), labels)


def test_a_small_one_joins_the_nearest():
    rows = np.array([[0.0], [0.1], [1.0], [5.0], [5.1]])
    assert joined(rows, np.array([0, 0, 7, 3, 3]), 2).tolist() == [0, 0, 0, 1, 1]
    rows[2] = 4.0
    assert joined(rows, np.array([0, 0, 7, 3, 3]), 2).tolist() == [0, 0, 1, 1, 1]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([*METHODS]), st.integers(1, 9), st.integers(1, 9), st.data())
def test_it_holds_for_every_method_and_for_who_comes_later(method, k, least, data):
    points, _ = in_parts(3, 3, noise=1.0, seed=data.draw(st.integers(0, 99)))
    found = cluster(points, k, method=method, least=least)
    counts = np.bincount(found.labels)
    assert counts.min() >= least
    assert found.k == len(counts) == k - found.joins
    late, _ = in_parts(4, 2, noise=1.0, seed=7)
    assert all(0 <= found.nearest(point) < found.k for point in late)


def test_where_all_are_large_enough_nothing_changes():
    points, _ = mixture(3, 4)
    plain, least = cluster(points, 3), cluster(points, 3, least=4)
    assert plain.labels.tolist() == least.labels.tolist()
    assert np.array_equal(plain.centroids, least.centroids)
    assert (plain.k, plain.silhouette, 0) == (least.k, least.silhouette, least.joins)


def test_what_cannot_be_is_refused():
    points, _ = mixture(2, 2)
    for least in (0, 5):
        with pytest.raises(DataError, match=f"clusters of {least} members at least"):
            joined(points, np.zeros(4, np.int64), least)
    with pytest.raises(DataError, match="of 5 members at least"):
        cluster(points, least=5)
    with pytest.raises(DataError, match="balanced clusters"):
        cluster(points, 2, least=2, balanced=True)
