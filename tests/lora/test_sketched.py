"""Sums rebuilt from sketches, against the dense float64 sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import LoraFactors
from atlas_flwr.lora.sketched import Probes, sketch_shapes

SIDES = st.integers(8, 60)
SEEDS = st.integers(0, 999)
WEIGHTS = st.lists(st.floats(0.5, 300), min_size=3, max_size=6)


def factors(m, n, rank, seed, scale=2.0) -> LoraFactors:
    g = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, n, generator=g), torch.randn(m, rank, generator=g)
    return LoraFactors(A, B, scale)


def dense(found: LoraFactors) -> torch.Tensor:
    return found.scale * torch.einsum("mr,rn->mn", found.B.double(), found.A.double())


def mean(values, weights) -> torch.Tensor:
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def means(sketches, weights, bits=None):
    """Sum as a secure sum does: weighted, in fixed point where bits are given."""
    if bits is not None:
        sketches = [
            {kind: torch.round(w * x * 2**bits) / 2**bits / w for kind, x in s.items()}
            for s, w in zip(sketches, weights, strict=True)
        ]
    return {kind: mean([s[kind] for s in sketches], weights) for kind in sketches[0]}


@settings(max_examples=25, deadline=None)
@given(SIDES, SIDES, st.integers(1, 4), WEIGHTS, SEEDS, st.sampled_from([None, 32]))
def test_a_sum_is_rebuilt_from_sketches_alone(m, n, rank, weights, seed, bits):
    many = [factors(m, n, rank, seed + k) for k in range(len(weights))]
    probes = Probes.drawn("layer", (m, n), rank * len(many), seed)
    rounding = 0.0 if bits is None else len(many) / (2 ** (bits + 1) * sum(weights))
    sums = means([probes.sketched(one) for one in many], weights, bits)
    found = probes.rebuilt(sums, rounding)
    wanted = mean([dense(one) for one in many], weights)
    assert found.rank <= rank * len(many)
    error = float((dense(found) - wanted).norm() / wanted.norm())
    assert error < 5e-7  # float32's own


@settings(max_examples=25, deadline=None)
@given(SIDES, SIDES, WEIGHTS, SEEDS)
def test_sketches_are_those_of_the_dense_product_and_linear(m, n, weights, seed):
    many = [factors(m, n, 1, seed + k) for k in range(len(weights))]
    probes = Probes.drawn("layer", (m, n), len(many), seed)
    found = means([probes.sketched(one) for one in many], weights)
    X = mean([dense(one) for one in many], weights)
    if "product" in found:
        torch.testing.assert_close(found["product"], X)
        return
    torch.testing.assert_close(found["right"], X @ probes.right)
    torch.testing.assert_close(found["left"], probes.left.T @ X)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 400))
def test_what_is_sent_is_never_larger_than_the_product(m, n, rank):
    shapes = sketch_shapes((m, n), rank)
    assert sum(a * b for a, b in shapes.values()) <= m * n
    probes = Probes.drawn("layer", (m, n), rank, 0)
    sketches = probes.sketched(factors(m, n, 1, 0))
    assert {kind: tuple(x.shape) for kind, x in sketches.items()} == shapes


@pytest.mark.parametrize("shape", [(40, 50), (6, 5)])
def test_a_sum_of_nothing_is_nothing(shape):
    probes = Probes.drawn("layer", shape, 6, 0)
    nothing = LoraFactors(torch.ones(2, shape[1]), torch.zeros(shape[0], 2))
    found = probes.rebuilt(probes.sketched(nothing), 1e-12)
    assert found.rank == 1
    assert not dense(found).any()


@pytest.mark.parametrize("exponent", [0, -3, -5])
def test_rounding_is_not_blown_up(exponent):
    """Fixed point is off by 2^-33; what comes out by no more than a few times that."""
    weights = [32.0, 64.0, 48.0]
    many = [factors(60, 80, 4, k, 10.0**exponent) for k in range(3)]
    probes = Probes.drawn("layer", (60, 80), 12, 1)
    sums = means([probes.sketched(one) for one in many], weights, 32)
    off = 3 / (2**33 * sum(weights))
    wanted = mean([dense(one) for one in many], weights)
    error = float((dense(probes.rebuilt(sums, off)) - wanted).norm())
    assert error < 2e-7 * float(wanted.norm()) + off * (60 * 80) ** 0.5


@pytest.mark.parametrize("odd", ["seed", "rank"])
def test_sketches_that_are_not_of_one_sum_are_refused(odd):
    probes = Probes.drawn("layer", (60, 80), 6, 1)
    other = Probes.drawn("layer", (60, 80), 6, 2 if odd == "seed" else 1)
    ranks = (2, 2, 9 if odd == "rank" else 2)
    sketches = [
        (other if k == 2 else probes).sketched(factors(60, 80, rank, k))
        for k, rank in enumerate(ranks)
    ]
    with pytest.raises(AdapterError, match=r"'layer'.*not of one product of rank 6"):
        probes.rebuilt(means(sketches, [1.0, 2.0, 3.0], 32), 1e-10)


def test_what_is_not_finite_is_refused():
    bad = factors(20, 20, 2, 0)
    bad.B[0, 0] = torch.nan
    with pytest.raises(AdapterError, match="'layer' has NaN"):
        Probes.drawn("layer", (20, 20), 2, 0).sketched(bad)
