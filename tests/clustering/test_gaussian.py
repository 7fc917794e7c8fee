from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import kstest, norm

from atlas_flwr.clustering import gaussian_delta, gaussian_sigma, noised
from atlas_flwr.errors import DataError

EPSILONS = st.floats(0.05, 20)
DELTAS = st.floats(1e-9, 0.2)


@settings(deadline=None)
@given(st.floats(0.3, 8), st.floats(0.05, 4), st.floats(0.5, 3))
def test_delta_is_the_integral_that_defines_it(sigma, epsilon, sensitivity):
    """The hockey-stick divergence of two normals, integrated numerically."""

    def excess(x):
        return norm.pdf(x, sensitivity, sigma) - math.exp(epsilon) * norm.pdf(
            x, 0, sigma
        )

    # The excess is positive above one point alone.
    start = sensitivity / 2 + epsilon * sigma**2 / sensitivity
    expected = quad(excess, start, start + 40 * sigma, limit=200)[0]
    found = gaussian_delta(sigma, epsilon, sensitivity)
    assert found == pytest.approx(expected, abs=1e-7)


@given(EPSILONS, DELTAS, st.floats(0.1, 10))
def test_sigma_is_private_and_nothing_less_is(epsilon, delta, sensitivity):
    sigma = gaussian_sigma(epsilon, delta, sensitivity)
    assert gaussian_delta(sigma, epsilon, sensitivity) <= delta
    assert gaussian_delta(sigma * (1 - 1e-6), epsilon, sensitivity) > delta


@given(st.floats(0.05, 0.99), st.floats(1e-9, 0.1))
def test_the_analytic_mechanism_needs_less_noise_than_the_classical(epsilon, delta):
    classical = 2 * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    assert gaussian_sigma(epsilon, delta) < classical


def test_sigma_as_published():
    """As the authors' own code gives it for sensitivity 1 (arXiv 1805.06530)."""
    assert gaussian_sigma(1, 1e-5, 1) == pytest.approx(3.7306, abs=1e-4)


@given(EPSILONS, DELTAS)
def test_sigma_is_in_proportion_to_the_sensitivity(epsilon, delta):
    one, three = (gaussian_sigma(epsilon, delta, s) for s in (1, 3))
    assert three == pytest.approx(3 * one, rel=1e-9)


def test_noise_has_the_sigma_that_was_asked_for():
    sketch = np.eye(64, dtype=np.float32)[0]
    noise = np.stack([noised(sketch, 2, 1e-5, seed=s) - sketch for s in range(400)])
    sigma = gaussian_sigma(2, 1e-5)
    assert noise.std() == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean()) < 5 * sigma / noise.size**0.5


def test_noise_of_no_seed_is_normal_too_and_never_the_same():
    sketch = np.zeros(100_000)
    first, second = (noised(sketch, 2, 1e-5) for _ in range(2))
    assert not (first == second).any()
    for noise in (first, second):
        # At this level a right generator fails once in a million runs.
        assert kstest(noise / gaussian_sigma(2, 1e-5), "norm").pvalue > 1e-6


def test_long_sketches_are_clipped_and_short_ones_kept():
    direction = np.full((4, 4), 0.25)
    same = [noised(direction * norm, 1, 1e-5, seed=1) for norm in (1, 2, 50)]
    np.testing.assert_allclose(same[1:], [same[0]] * 2, atol=1e-6)
    short = noised(direction / 2, 1, 1e-5, seed=1)
    np.testing.assert_allclose(same[0] - short, direction / 2, atol=1e-6)


def test_noise_is_of_the_seed_alone():
    sketch = np.ones(8)
    assert np.array_equal(
        noised(sketch, 1, 0.01, seed=1), noised(sketch, 1, 0.01, seed=1)
    )
    assert not np.array_equal(
        noised(sketch, 1, 0.01, seed=1), noised(sketch, 1, 0.01, seed=2)
    )


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 0.1), (-1, 0.1), (1, 0), (1, 1), (math.nan, 0.1)]
)
def test_what_is_no_privacy_is_refused(epsilon, delta):
    with pytest.raises(DataError, match="above 0"):
        gaussian_sigma(epsilon, delta)


def test_a_sketch_that_is_not_finite_is_refused():
    with pytest.raises(DataError, match="NaN"):
        noised(np.array([1.0, math.nan]), 1, 0.1, seed=0)
