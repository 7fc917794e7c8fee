from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.clustering import fingerprint_parts, project
from atlas_flwr.errors import DataError


def batches(count, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [
        {
            "b": torch.from_numpy(rng.standard_normal((3, 5))),
            "a": scale * rng.standard_normal(7),
        }
        for _ in range(count)
    ]


def directions(codes):
    return codes / np.linalg.norm(codes)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 20))
def test_parts_are_mean_projections_of_unit_gradients(parts, count, seed):
    found = batches(count, seed)
    expected = []
    for part in range(min(parts, count)):
        sketches = [
            sum(
                project({name: np.asarray(g) / np.linalg.norm(g)}, 16, 5)
                for name, g in batch.items()
            )
            for batch in found[part::parts]
        ]
        expected.append(np.mean(sketches, axis=0))
    codes = fingerprint_parts(found, parts, 16, 5)
    exact = np.stack(expected) / np.abs(expected).max() * 127
    assert codes.shape == exact.shape
    np.testing.assert_allclose(codes, exact, atol=0.5 + 1e-9)


def test_a_fingerprint_is_256_bytes_whatever_the_model():
    codes = fingerprint_parts(batches(8))
    assert (codes.shape, codes.dtype, codes.nbytes) == ((4, 64), np.int8, 256)


@given(st.floats(1e-3, 1e3))
def test_no_tensor_hides_another_by_the_size_of_its_gradient(scale):
    one, other = (fingerprint_parts(batches(8, scale=s)) for s in (1.0, scale))
    np.testing.assert_allclose(one, other, atol=1)


def test_rounding_to_bytes_changes_directions_little():
    found = batches(4, seed=2)
    codes = directions(fingerprint_parts(found).astype(float))
    parts = [
        project({n: np.asarray(g) / np.linalg.norm(g) for n, g in batch.items()})
        for batch in found
    ]
    assert (codes * directions(np.stack(parts))).sum() > 0.9999


def test_a_tensor_without_gradient_is_passed_over():
    silent = [{**batch, "c": np.zeros(4)} for batch in batches(4)]
    assert np.array_equal(fingerprint_parts(silent), fingerprint_parts(batches(4)))


def test_batches_may_come_one_by_one():
    codes = fingerprint_parts(batch for batch in batches(5))
    assert np.array_equal(codes, fingerprint_parts(batches(5)))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_gradients_that_say_nothing_are_refused(value):
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(DataError, match="finite gradients"),
    ):
        fingerprint_parts([{"a": np.full(3, value)}] * 4)


def test_no_parts_and_no_batches_are_refused():
    with pytest.raises(DataError, match="allowed: 1 or more"):
        fingerprint_parts(batches(2), 0)
    with pytest.raises(DataError, match="0 parts"):
        fingerprint_parts([])
