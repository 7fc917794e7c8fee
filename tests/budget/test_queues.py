# SPDX-License-Identifier: Apache-2.0
"""Whose call is taken first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.budget.queues import QUEUES, Fair, Waiting


def served(queue, calls):
    """Let all calls come, then take them one by one; return their places."""
    ranks = [queue.rank(call) for call in calls]
    order = sorted(range(len(calls)), key=lambda k: ranks[k])
    for k in order:
        queue.take(ranks[k])
    return order


calls = st.lists(
    st.builds(
        Waiting,
        left=st.floats(0, 100),
        cluster=st.sampled_from("abc"),
        rows=st.integers(1, 9),
    ),
    min_size=1,
    max_size=12,
)


@given(calls)
def test_first_come_is_first_served(waiting):
    assert served(QUEUES["fifo"](), waiting) == list(range(len(waiting)))


@given(calls)
def test_the_longest_way_goes_first(waiting):
    order = served(QUEUES["longest-path"](), waiting)
    lefts = [waiting[k].left for k in order]
    assert lefts == sorted(lefts, reverse=True)


@pytest.mark.parametrize("crowd", [3, 50])
def test_a_small_cluster_does_not_wait_for_a_crowd(crowd):
    waiting = [*(Waiting(cluster="crowd") for _ in range(crowd)), Waiting(cluster="b")]
    assert served(Fair(), waiting).index(crowd) == 1


@given(st.integers(1, 8), st.integers(1, 8))
def test_clusters_that_always_wait_get_rows_in_equal_shares(first, second):
    """As in generalised processor sharing, they differ by one call of each at most."""
    queue, given_, waiting = Fair(), {"a": 0, "b": 0}, []
    rows = {"a": first, "b": second}
    for cluster in "ab":
        waiting += [
            (queue.rank(Waiting(0, cluster, rows[cluster])), cluster) for _ in range(60)
        ]
    for rank, cluster in sorted(waiting, key=lambda call: call[0])[:60]:
        queue.take(rank)
        given_[cluster] += rows[cluster]
        assert abs(given_["a"] - given_["b"]) <= first + second


def test_a_cluster_that_was_away_saves_up_no_turns():
    queue = Fair()
    for _ in range(100):
        queue.take(queue.rank(Waiting(cluster="busy")))
    waiting = [*[Waiting(cluster="late")] * 50, *[Waiting(cluster="busy")] * 50]
    assert 50 in served(queue, waiting)[:3]
