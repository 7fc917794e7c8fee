from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import (
    LoraFactors,
    canonical,
    damped,
    leading,
    recompress,
    trailing,
)

sizes = st.integers(1, 9)


def drawn(m, n, r, seed=0, scale=0.7):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(r, n, generator=generator)
    return LoraFactors(A, torch.randn(m, r, generator=generator), scale)


@given(m=sizes, n=sizes, r=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_canonical_form_is_the_same_product_at_its_own_rank(m, n, r, seed):
    factors = drawn(m, n, r, seed)
    found = canonical(factors)
    torch.testing.assert_close(found.delta(), factors.delta(), atol=1e-4, rtol=1e-4)
    assert found.rank <= min(m, n, r)
    assert found.scale == 1


@given(m=sizes, n=sizes, r=st.integers(1, 9), cut=st.integers(1, 9))
def test_what_leads_and_what_trails_add_up_to_the_product(m, n, r, cut):
    factors = canonical(drawn(m, n, r, seed=m + 10 * n))
    cut = min(cut, m, n)
    total = leading(factors, cut, scale=2.5).delta()
    rest = trailing(factors, cut)
    if rest is not None:
        total = total + rest.delta()
    torch.testing.assert_close(total, factors.delta(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_what_leads_is_the_best_approximation_by_a_dense_svd(rank):
    factors = drawn(7, 6, 5)
    U, S, Vt = torch.linalg.svd(factors.delta().double())
    best = (U[:, :rank] * S[:rank]) @ Vt[:rank]
    found = leading(canonical(factors), rank)
    torch.testing.assert_close(found.delta().double(), best, atol=1e-5, rtol=1e-5)


def test_cutting_a_canonical_form_equals_recompressing():
    factors = drawn(7, 6, 4)
    for rank in (2, 4, 6):
        one, other = leading(canonical(factors), rank), recompress(factors, rank)
        torch.testing.assert_close(one.delta(), other.delta(), atol=1e-5, rtol=1e-5)
        norms = one.A.norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, 3**-0.5))


def test_a_product_of_zero_has_one_direction_and_leaves_nothing():
    zero = LoraFactors(torch.randn(3, 5), torch.zeros(4, 3))
    found = canonical(zero)
    assert found.rank == 1
    assert trailing(found, 0) is None
    assert not leading(found, 2).delta().any()
    assert leading(found, 2).A.any()  # or nothing could ever be learned


def test_damping_weighs_each_direction():
    factors = canonical(drawn(5, 6, 3))
    weights = torch.tensor([0.0, 0.5, 2.0])
    wanted = sum(
        w * factors.B[:, j, None] @ factors.A[j, None] for j, w in enumerate(weights)
    )
    torch.testing.assert_close(damped(factors, weights).delta(), wanted)
    assert damped(factors, torch.zeros(3)) is None


@pytest.mark.parametrize("rank", [0, 6])
def test_an_impossible_rank_is_refused_with_the_range(rank):
    with pytest.raises(AdapterError, match=r"allowed: 1 to 5"):
        leading(canonical(drawn(5, 6, 3)), rank)
