from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from atlas_flwr.clustering import masked, unmasked_sum
from atlas_flwr.errors import DataError


def key(one, other, seed=0):
    text = "/".join([*sorted([one, other]), str(seed)])
    return hashlib.sha256(text.encode()).digest()


def keys_of(client, clients, seed=0):
    return {other: key(client, other, seed) for other in clients if other != client}


def group(sketches, seed=0):
    names = [f"client-{i}" for i in range(len(sketches))]
    return [
        masked(sketch, name, keys_of(name, names, seed), purpose="mean")
        for name, sketch in zip(names, sketches, strict=True)
    ]


@given(st.integers(2, 7), st.integers(0, 99))
def test_the_sum_of_a_group_is_that_of_its_sketches_as_rounded(count, seed):
    sketches = np.random.default_rng(seed).uniform(-1, 1, (count, 4, 5))
    sketches[:, 0, 0] = 1.0
    sketches[:, 0, 1] = -1.0
    found = unmasked_sum(group(sketches))
    assert np.array_equal(found, np.rint(sketches * 2**20).sum(0) / 2**20)
    np.testing.assert_allclose(found, sketches.sum(0), atol=count * 2**-21)


def test_two_thousand_sketches_are_within_range():
    shares = [np.full(3, 2**20, np.uint32)] * 2047
    assert unmasked_sum(shares).tolist() == [2047.0] * 3
    with pytest.raises(DataError, match="1 to 2047"):
        unmasked_sum([*shares, shares[0]])


@pytest.mark.parametrize("missing", [[0], [0, 1], [0, 1, 2]])
def test_what_the_server_sees_of_all_but_some_is_uniform_whatever_was_sent(missing):
    """Of single shares, and of the sum of all but one: the masks that are left."""
    sketches = np.zeros((4, 20_000))
    seen = [share for i, share in enumerate(group(sketches)) if i not in missing]
    total = np.sum(seen, axis=0, dtype=np.uint32)
    assert kstest(total / 2**32, "uniform").pvalue > 0.01
    moved = group(sketches + 0.5)
    again = [share for i, share in enumerate(moved) if i not in missing]
    shift = np.uint32(2**19 * len(seen))  # masks aside, the sketches are there
    assert np.array_equal(np.sum(again, axis=0, dtype=np.uint32), total + shift)


def test_masks_differ_with_purpose_and_key():
    def share(purpose="mean", seed=0):
        return masked(np.zeros(50), "a", keys_of("a", "ab", seed), purpose=purpose)

    assert np.array_equal(share(), share())
    assert (share() != share("centroid 1")).sum() > 45
    assert (share() != share(seed=1)).sum() > 45


def test_clients_per_cluster_give_its_centroid():
    rng = np.random.default_rng(0)
    sketches = rng.uniform(-1, 1, (6, 8))
    mean = unmasked_sum(group(sketches)) / 6
    centroid = unmasked_sum(group(sketches[:3], seed=1)) / 3
    np.testing.assert_allclose(mean, sketches.mean(0), atol=1e-6)
    np.testing.assert_allclose(centroid, sketches[:3].mean(0), atol=1e-6)


@pytest.mark.parametrize("value", [1.01, -2.0, float("nan")])
def test_entries_that_could_wrap_around_are_refused(value):
    with pytest.raises(DataError, match="unit norm"):
        masked(np.array([0.0, value]), "a", keys_of("a", "ab"), purpose="x")


@pytest.mark.parametrize(
    "keys", [{}, {"a": b"0" * 16, "b": b"0" * 16}, {"b": b"short"}]
)
def test_keys_that_would_hide_nothing_are_refused(keys):
    with pytest.raises(DataError, match=r"needed|16 random bytes"):
        masked(np.zeros(3), "a", keys, purpose="x")


def test_sums_of_nothing_and_of_unlike_shapes_are_refused():
    with pytest.raises(DataError, match="0 masked"):
        unmasked_sum([])
    with pytest.raises(DataError, match="one shape"):
        unmasked_sum([np.zeros(2, np.uint32), np.zeros(3, np.uint32)])
