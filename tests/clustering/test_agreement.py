from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.clustering import cluster, quality
from atlas_flwr.errors import DataError
from tests.clustering.fingerprints import in_parts

LABELS = st.lists(st.integers(0, 3), min_size=2, max_size=12)


@given(LABELS, st.permutations(range(4)))
def test_agreement_ignores_what_groups_are_called(labels, names):
    found = quality([names[label] for label in labels], labels)
    assert found.ari == pytest.approx(1)
    assert found.nmi == pytest.approx(1)
    assert found.purity == 1


@given(LABELS, st.data())
def test_purity_is_the_share_that_a_vote_in_each_cluster_gets_right(tasks, data):
    same_length = st.lists(st.integers(0, 3), min_size=len(tasks), max_size=len(tasks))
    clusters = data.draw(same_length)
    right = 0
    for label in set(clusters):
        members = [t for t, c in zip(tasks, clusters, strict=True) if c == label]
        right += max(members.count(task) for task in set(members))
    assert quality(clusters, tasks).purity == pytest.approx(right / len(tasks))


def test_alternating_groups_agree_no_better_than_chance():
    found = quality([0, 0, 1, 1], ["a", "b", "a", "b"])
    assert found.ari < 0
    assert (found.nmi, found.purity) == (0, 0.5)


def test_lists_of_unlike_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        quality([0, 1], ["a"])


def test_without_tasks_the_fingerprints_alone_tell_the_quality():
    points, tasks = in_parts(3, 5)
    found = quality(tasks, points=points)
    assert (found.ari, found.nmi, found.purity) == (None, None, None)
    assert found.silhouette == pytest.approx(cluster(points, 3).silhouette)
    assert found.stability == 1
    assert quality(tasks, tasks).silhouette is None


def test_silhouette_judges_the_clusters_that_were_given():
    points, _ = in_parts(3, 5)
    assert quality([0] * 7 + [1] * 8, points=points).silhouette < 0.1
    assert quality([0] * 15, points=points).silhouette is None


def test_a_point_for_each_client_is_needed():
    with pytest.raises(DataError, match="3 points of 2 clients"):
        quality([0, 1], points=np.eye(3))
