"""Sums in two parts against dense matrices in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.lora import (
    AdapterState,
    LoraFactors,
    canonical,
    concatenate,
    divided,
    share_of_rest,
)

ONE_ULP = 2.0**-24


def drawn(m, n, rank, seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, n, generator=generator)
    return LoraFactors(A, size * torch.randn(m, rank, generator=generator), 0.5)


def dense(factors, rest=None):
    product = factors.scale * (factors.B.double() @ factors.A.double())
    return product if rest is None else product + rest.double()


def grown(m, n, rank, terms):
    """Add terms one after the other; yield factors, rest and the dense sum."""
    factors, rest, wanted = LoraFactors(torch.zeros(1, n), torch.zeros(m, 1)), None, 0
    for term in terms:
        wanted = wanted + dense(term)
        factors, rest = divided(concatenate([factors, term], [1.0, 1.0]), rest, rank)
        yield factors, rest, wanted


@given(
    shape=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    rank=st.integers(1, 6),
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=20),
    size=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_both_parts_add_up_to_the_dense_sum_to_float32(shape, rank, ranks, size, seed):
    terms = [drawn(*shape, r, 100 * seed + i, size) for i, r in enumerate(ranks)]
    largest = 0.0
    for factors, rest, wanted in grown(*shape, rank, terms):
        largest = max(largest, float(wanted.norm()))
        assert factors.rank <= rank
        assert (dense(factors, rest) - wanted).norm() <= 16 * ONE_ULP * largest


def test_after_fifty_rounds_the_sum_is_still_exact_to_float32():
    terms = [drawn(96, 64, 4, seed) for seed in range(50)]
    *_, (factors, rest, wanted) = grown(96, 64, 8, terms)
    assert (dense(factors, rest) - wanted).norm() <= 8 * ONE_ULP * wanted.norm()
    assert (dense(factors) - wanted).norm() > 0.1 * wanted.norm()  # a rest there is


@given(seed=st.integers(0, 999), noise=st.sampled_from([0.01, 0.1]))
@settings(max_examples=20, deadline=None)
def test_the_factors_are_nearly_the_best_of_their_rank(seed, noise):
    """A few directions that all rounds share, and noise of their own."""
    shared, terms = drawn(48, 40, 6, seed), []
    for index in range(12):
        moved = drawn(48, 40, 2, 1000 * (seed + 1) + index, noise)
        terms.append(concatenate([shared, moved], [1 / 12, 1.0]))
    for factors, _, wanted in grown(48, 40, 10, terms):
        best = torch.linalg.svdvals(wanted)[10:].norm()
        error = (wanted - dense(factors)).norm()
        assert error <= 1.25 * best + 1e-6 * wanted.norm()


def test_a_sum_that_fits_is_not_divided_and_has_the_bits_of_before():
    product = concatenate([drawn(20, 16, 3, 1), drawn(20, 16, 2, 2)], [0.5, 0.5])
    factors, rest = divided(product, None, 5)
    whole = canonical(product)
    assert rest is None
    assert torch.equal(factors.A, whole.A)
    assert torch.equal(factors.B, whole.B)


def test_what_was_held_back_is_handed_out_once_it_is_strong():
    axes = torch.eye(24)
    strong = LoraFactors(axes[:2], 10 * torch.eye(32)[:, :2])
    faint = LoraFactors(axes[2:3], torch.eye(32)[:, 2:3])
    factors, rest = divided(concatenate([strong, faint], [1.0, 1.0]), None, 2)
    assert dense(factors)[2, 2].abs() < 1e-6
    for _ in range(12):
        factors, rest = divided(concatenate([factors, faint], [1.0, 1.0]), rest, 2)
    assert dense(factors)[2, 2] == pytest.approx(13, rel=1e-3)
    assert (
        dense(factors, rest)
        - torch.eye(32, 24).double()
        @ torch.diag(torch.tensor([10.0, 10.0, 13.0] + 21 * [0.0])).double()
    ).norm() < 1e-5


def test_a_rest_that_float32_cannot_tell_from_nothing_is_none():
    product = concatenate([drawn(20, 16, 2, 1), drawn(20, 16, 1, 2, 1e-9)], [1.0, 1.0])
    assert divided(product, None, 2)[1] is None
    seen = concatenate([drawn(20, 16, 2, 1), drawn(20, 16, 1, 2, 1e-5)], [1.0, 1.0])
    assert divided(seen, None, 2)[1] is not None


def test_the_share_of_the_rest_is_that_of_the_dense_matrices():
    terms = [drawn(30, 20, 3, seed) for seed in range(5)]
    *_, (factors, rest, wanted) = grown(30, 20, 6, terms)
    other = canonical(drawn(30, 20, 2, 9))
    state = AdapterState({"a": factors, "b": other}, rest={"a": rest})
    whole = (wanted.norm() ** 2 + dense(other).norm() ** 2) ** 0.5
    assert share_of_rest(state) == pytest.approx(float(rest.norm() / whole), rel=0.02)
    assert share_of_rest(AdapterState({"b": other})) == 0
