from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from atlas_flwr.clustering.graph import adjacency, mixing_matrix
from atlas_flwr.errors import DataError

points = st.integers(1, 6).flatmap(
    lambda n: arrays(np.float64, (n, 3), elements=st.floats(-5, 5))
)


@given(points, st.floats(0, 1), st.none() | st.floats(0.1, 9))
def test_every_row_and_column_is_a_convex_combination(found, strength, width):
    matrix = mixing_matrix(adjacency(found, width), strength)
    assert (matrix >= -1e-12).all()
    np.testing.assert_allclose(matrix.sum(0), 1)
    np.testing.assert_allclose(matrix.sum(1), 1)


def test_one_task_unlike_many_that_are_the_same_is_mixed_by_what_differs():
    found = np.array([[1.0, 1], [1, 1], [1, 1], [1, 1], [0, 1]])
    a = adjacency(found)
    np.testing.assert_allclose(a[0, 1:4], 1)
    np.testing.assert_allclose(a[4, :4], np.exp(-1))


def test_the_step_is_that_of_miras_equation():
    rng = np.random.default_rng(0)
    a = rng.random((4, 4))
    a = (a + a.T) * (1 - np.eye(4))
    W, eta = rng.normal(size=(4, 7)), 0.3 / a.sum(1).max()
    wanted = W.copy()
    for k in range(4):
        for other in range(4):
            wanted[k] -= eta * a[k, other] * (W[k] - W[other])
    np.testing.assert_allclose(mixing_matrix(a, 0.3) @ W, wanted)


def test_strength_zero_is_local_training_and_unlike_tasks_are_left_alone():
    found = np.array([[0.0, 0], [0, 1], [100, 100]])
    assert np.array_equal(mixing_matrix(adjacency(found), 0.0), np.eye(3))
    matrix = mixing_matrix(adjacency(found, width=1.0), 0.5)
    assert matrix[0, 1] > 0.1
    assert matrix[2, 2] == pytest.approx(1)


def test_a_complete_graph_at_full_strength_of_two_swaps_and_at_half_averages():
    a = np.ones((2, 2))
    np.testing.assert_allclose(mixing_matrix(a, 0.5), np.full((2, 2), 0.5))
    np.testing.assert_allclose(mixing_matrix(a, 1.0), 1 - np.eye(2))


@pytest.mark.parametrize(
    ("a", "strength", "sentence"),
    [
        (np.ones((2, 3)), 0.5, "must be square"),
        (np.array([[0, 1.0], [0.5, 0]]), 0.5, "not symmetric"),
        (-np.ones((2, 2)), 0.5, "at least 0"),
        (np.ones((2, 2)), 1.5, "from 0 to 1"),
    ],
)
def test_what_cannot_mix_is_refused(a, strength, sentence):
    with pytest.raises(DataError, match=sentence):
        mixing_matrix(a, strength)
