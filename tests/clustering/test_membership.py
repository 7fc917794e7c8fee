from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.clustering import cluster, memberships
from atlas_flwr.errors import DataError
from tests.clustering.fingerprints import in_parts, mixture, unit

POINTS, TASKS = mixture(3, 5)
FOUND = cluster(POINTS, 3)


@given(st.integers(0, 99), st.floats(1.05, 5))
def test_memberships_are_distributions_that_prefer_the_nearest(seed, fuzziness):
    points = np.random.default_rng(seed).standard_normal((4, 64))
    shares = memberships(points, FOUND, fuzziness=fuzziness)
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(1), 1)
    nearest = [FOUND.nearest(point) for point in points]
    assert shares.argmax(1).tolist() == nearest


def test_memberships_are_those_that_minimise_the_fuzzy_sum_of_squares():
    squared = FOUND.squared_distances(POINTS[:1])[0]
    shares = memberships(POINTS[:1], FOUND, fuzziness=2.0)[0]
    rng = np.random.default_rng(0)
    others = rng.dirichlet(np.ones(3), size=2000)
    assert (shares**2 * squared).sum() <= (others**2 * squared).sum(1).min()
    np.testing.assert_allclose(shares * squared, (shares * squared)[0])


def test_membership_is_hard_in_the_one_limit_and_even_in_the_other():
    hard = memberships(POINTS, FOUND, fuzziness=1.001)
    np.testing.assert_allclose(hard, np.eye(3)[FOUND.labels], atol=1e-6)
    np.testing.assert_allclose(memberships(POINTS, FOUND, fuzziness=1e6), 1 / 3, 1e-3)


def test_a_client_that_mixes_two_tasks_lies_between_them():
    """Its gradient is the mean of the two, weighted by their shares of its data."""
    points, tasks = in_parts(3, 6, noise=0.2, seed=3)
    found = cluster(points, 3)
    one, other = points[tasks == 0].mean(0), points[tasks == 1].mean(0)
    own, theirs, none = (int(found.labels[tasks == task][0]) for task in range(3))
    shares = np.stack(
        [
            memberships((one * (1 - w) + other * w)[None], found)[0]
            for w in (0, 0.3, 0.5, 0.7, 1)
        ]
    )
    assert (np.diff(shares[:, theirs]) > 0).all()
    assert (np.diff(shares[:, own]) < 0).all()
    assert shares[2, none] < 0.15
    assert abs(shares[2, own] - shares[2, theirs]) < 0.25
    assert shares[0, own] > 0.9
    assert shares[4, theirs] > 0.9


def test_a_point_on_a_centroid_belongs_to_it_alone():
    found = cluster(np.repeat(unit(np.eye(8)[:3]), 2, axis=0), 3)
    shares = memberships(np.eye(8)[:3], found)
    np.testing.assert_allclose(shares, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("fuzziness", [1.0, 0.5, float("nan")])
def test_a_fuzziness_that_is_none_is_refused(fuzziness):
    with pytest.raises(DataError, match="above 1"):
        memberships(POINTS, FOUND, fuzziness=fuzziness)
