from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.clustering import fingerprint, project
from atlas_flwr.errors import DataError

NAMES = st.lists(st.text("abc.", min_size=1), min_size=1, max_size=5, unique=True)


PINNED = np.array([0.0, 1.0, 10.0, -9990.0, 9990.0, 0.0]) / (6 * 86 / 256) ** 0.5


def gradients(names, seed=0, width=70):
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(rng.standard_normal((3, width))) for name in names}


@given(NAMES, st.randoms())
def test_a_fingerprint_does_not_depend_on_the_order_of_the_tensors(names, random):
    one = gradients(names)
    shuffled = list(one)
    random.shuffle(shuffled)
    other = {name: one[name] for name in shuffled}
    assert np.array_equal(fingerprint(one), fingerprint(other))


@given(NAMES, st.floats(-3, 3), st.floats(-3, 3))
def test_a_projection_is_linear(names, a, b):
    x, y = gradients(names, 1), gradients(names, 2)
    mixed = {name: a * x[name] + b * y[name] for name in names}
    expected = a * project(x) + b * project(y)
    np.testing.assert_allclose(project(mixed), expected, atol=1e-9)


@given(NAMES)
def test_each_tensor_has_its_own_block_of_the_matrix(names):
    parts = gradients(names)
    apart = sum(project({name: value}) for name, value in parts.items())
    np.testing.assert_allclose(project(parts), apart, atol=1e-9)


def test_norms_and_angles_are_kept_on_average():
    x, y = gradients(["a", "b"], 1, 200), gradients(["a", "b"], 2, 200)
    dot = sum(float((x[n] * y[n]).sum()) for n in x)
    square = sum(float(v.square().sum()) for v in x.values())
    sketches = [(project(x, 64, s), project(y, 64, s)) for s in range(200)]
    squares = np.array([u @ u for u, _ in sketches])
    dots = np.array([u @ v for u, v in sketches])
    # Var ||Pg||^2 = 2/s ||g||^4 where a third of P is not 0: 5 standard errors.
    assert squares.mean() == pytest.approx(square, rel=5 * (2 / 64 / 200) ** 0.5)
    assert squares.std() == pytest.approx(square * (2 / 64) ** 0.5, rel=0.3)
    assert abs(dots.mean() - dot) < 5 * dots.std() / 200**0.5


def test_a_third_of_the_matrix_is_not_zero_and_its_signs_are_fair():
    columns = [project({"x": row}, 64, 3) for row in np.eye(300)]
    signs = np.sign(columns)
    assert np.abs(signs).mean() == pytest.approx(86 / 256, abs=0.02)
    assert abs(signs.mean()) < 0.02
    assert len(np.unique(np.round(np.abs(columns), 12))) == 2


def test_long_tensors_are_projected_by_one_matrix_too():
    slices = 2 * (1 << 15) + 11
    rng = np.random.default_rng(0)
    values = rng.standard_normal(slices)
    first, rest = values.copy(), values.copy()
    first[40_000:], rest[:40_000] = 0, 0
    apart = project({"x": first}, 8) + project({"x": rest}, 8)
    np.testing.assert_allclose(project({"x": values}, 8), apart, atol=1e-8)


def test_the_matrix_is_pinned_so_that_clients_of_all_versions_agree():
    found = project({"model.layers.0.q": 10.0 ** np.arange(5)}, 6, 7)
    np.testing.assert_allclose(found, PINNED, rtol=1e-12)


def test_fingerprints_are_short_float32_of_unit_norm_and_seeded():
    one = fingerprint(gradients(["a"]), 16, 1)
    assert (one.shape, one.dtype) == ((16,), np.float32)
    assert float(np.linalg.norm(one)) == pytest.approx(1)
    assert not np.array_equal(one, fingerprint(gradients(["a"]), 16, 2))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_gradients_that_say_nothing_are_refused(value):
    with pytest.raises(DataError, match="12 gradients of 1 tensors"):
        fingerprint({"a": torch.full((3, 4), value)})
    with pytest.raises(DataError, match="0 gradients of 0 tensors"):
        fingerprint({})
