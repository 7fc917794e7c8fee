from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import LoraFactors, concatenate, recompress
from atlas_flwr.lora.algebra import INITIAL_ROW_NORM

SIDES = st.integers(3, 24)
RANKS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def factors(m, n, rank, seed, scale=0.5):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, n, generator=generator)
    return LoraFactors(A, torch.randn(m, rank, generator=generator), scale)


def dense(many, weights):
    """The weighted sum in float64, formed as the products themselves."""
    parts = (
        p * f.scale * (f.B.double() @ f.A.double())
        for p, f in zip(weights, many, strict=True)
    )
    return sum(parts)


def close(x, y):
    torch.testing.assert_close(x.double(), y.double(), rtol=1e-4, atol=1e-4)


@given(SIDES, SIDES, RANKS, st.integers(0, 99))
def test_a_concatenation_is_the_weighted_sum_of_the_products(m, n, ranks, seed):
    many = [factors(m, n, r, seed + i, 0.1 + i) for i, r in enumerate(ranks)]
    weights = torch.rand(len(many)).sub(0.3).tolist()
    total = concatenate(many, weights)
    assert total.rank == sum(ranks)
    close(total.delta(), dense(many, weights))


@given(SIDES, SIDES, RANKS, st.integers(0, 99))
def test_a_recompression_is_the_best_of_its_rank(m, n, ranks, seed):
    many = [factors(m, n, r, seed + i) for i, r in enumerate(ranks)]
    total = concatenate(many, [1.0] * len(many))
    U, S, V = torch.linalg.svd(dense(many, [1.0] * len(many)))
    for rank in range(1, min(m, n) + 1):
        kept = min(rank, len(S))
        best = U[:, :kept] * S[:kept] @ V[:kept]
        for balanced in (False, True):
            got = recompress(total, rank, scale=0.7, balanced=balanced)
            assert (got.rank, got.scale) == (rank, 0.7)
            error = torch.linalg.norm(got.delta().double() - best)
            gap = float(S[kept - 1] - S[kept]) if kept < len(S) else 1.0
            if gap > 1e-3:
                assert error < 1e-3 * max(1.0, float(S[0]))


@given(SIDES, SIDES, st.integers(1, 3), st.integers(0, 99))
def test_nothing_is_lost_at_the_full_rank_or_above(m, n, rank, seed):
    one = factors(m, n, rank, seed)
    for larger in range(rank, min(m, n) + 1):
        close(recompress(one, larger).delta(), one.delta())


def test_spare_directions_can_be_trained():
    bigger = recompress(factors(12, 10, 2, 0), 6)
    norms = bigger.A.norm(dim=1)
    torch.testing.assert_close(norms, torch.full((6,), INITIAL_ROW_NORM))
    assert bigger.B[:, 2:].abs().max() < 1e-6
    assert torch.linalg.matrix_rank(bigger.A) == 6


def test_recompression_does_not_depend_on_how_the_product_was_written():
    one = factors(9, 8, 3, 1)
    turn = torch.randn(3, 3) + 3 * torch.eye(3)
    other = LoraFactors(torch.linalg.inv(turn) @ one.A, one.B @ turn, one.scale)
    a, b = recompress(one, 3), recompress(other, 3)
    close(a.A, b.A)
    close(a.B, b.B)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_another_scale_is_the_same_product(before, after):
    one = factors(6, 5, 2, 3, before)
    close(one.with_scale(after).delta(), one.delta())
    assert one.with_scale(after).scale == after


def test_concatenation_agrees_with_pefts_cat():
    model = torch.nn.Sequential(torch.nn.Linear(7, 6, bias=False))
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=["0"]))
    peft.add_adapter("b", LoraConfig(r=3, lora_alpha=3, target_modules=["0"]))
    layer = peft.base_model.model[0]
    for name in ("default", "b"):
        torch.nn.init.normal_(layer.lora_B[name].weight)
    peft.add_weighted_adapter(
        ["default", "b"], [0.25, 0.75], "sum", combination_type="cat"
    )
    many = [
        LoraFactors(layer.lora_A[n].weight, layer.lora_B[n].weight, layer.scaling[n])
        for n in ("default", "b")
    ]
    close(concatenate(many, [0.25, 0.75]).delta(), layer.get_delta_weight("sum"))


def test_the_mean_of_the_factors_is_another_matrix():
    many = [factors(9, 8, 3, i) for i in range(3)]
    exact = concatenate(many, [1 / 3] * 3).delta()
    A = sum(f.A for f in many) / 3
    B = sum(f.B for f in many) / 3
    wrong = 0.5 * B @ A
    assert float((wrong - exact).norm() / exact.norm()) > 0.3


def test_factors_of_two_layers_are_not_added():
    with pytest.raises(AdapterError, match="adapter 1 is of a layer of shape"):
        concatenate([factors(4, 5, 2, 0), factors(5, 5, 2, 0)], [1, 1])


@pytest.mark.parametrize("weights", [[], [1.0]])
def test_every_adapter_needs_a_weight(weights):
    with pytest.raises(AdapterError, match="one weight for each"):
        concatenate([factors(4, 5, 2, 0)] * 2, weights)


@pytest.mark.parametrize("rank", [0, 5])
def test_an_impossible_rank_is_refused(rank):
    with pytest.raises(AdapterError, match="1 to 4"):
        recompress(factors(4, 5, 2, 0), rank)


@pytest.mark.parametrize(
    ("a", "b"), [((2, 5), (4, 1)), ((5,), (4, 1)), ((0, 5), (4, 0))]
)
def test_factors_that_do_not_fit_each_other_are_refused(a, b):
    with pytest.raises(AdapterError, match="same r >= 1"):
        LoraFactors(torch.zeros(a), torch.zeros(b))


@given(SIDES, SIDES, RANKS, st.randoms())
def test_the_order_of_the_adapters_does_not_matter(m, n, ranks, random):
    many = [(factors(m, n, r, i), 0.1 + i) for i, r in enumerate(ranks)]
    shuffled = list(many)
    random.shuffle(shuffled)
    one = concatenate(*zip(*many, strict=True))
    other = concatenate(*zip(*shuffled, strict=True))
    close(one.delta(), other.delta())


@given(SIDES, SIDES, st.integers(1, 6), st.integers(0, 99))
def test_a_balanced_recompression_has_the_smallest_norms(m, n, rank, seed):
    one = factors(m, n, rank, seed)
    rank = min(rank, m, n)
    even = recompress(one, rank, balanced=True)
    close(even.A.norm(dim=1), even.B.norm(dim=0))
    # ||A||^2 + ||B||^2 >= 2 ||B A||_* with equality when they are balanced.
    nuclear = torch.linalg.svdvals(even.delta().double()).sum()
    close(even.A.square().sum() + even.B.square().sum(), 2 * nuclear)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_recompression_keeps_the_dtype(dtype):
    one = factors(9, 8, 3, 1).to(dtype=dtype)
    got = recompress(one, 5)
    assert got.A.dtype == got.B.dtype == dtype
    expected, found = one.to(dtype=torch.float64), got.to(dtype=torch.float64)
    error = (found.delta() - expected.delta()).norm() / expected.delta().norm()
    assert error < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("spread", [1e-12, 1e-4, 1e6])
def test_tiny_and_large_products_are_kept_relatively(spread):
    one = factors(9, 8, 3, 1)
    one = LoraFactors(one.A, spread * one.B, 0.5)
    got = recompress(one, 3)
    error = (got.delta() - one.delta()).norm() / one.delta().norm()
    assert error < 1e-5


def test_a_zero_product_still_has_directions_to_train():
    got = recompress(LoraFactors(torch.zeros(2, 8), torch.zeros(9, 2)), 4)
    assert not got.B.any()
    assert torch.linalg.matrix_rank(got.A) == 4


def test_a_sum_is_cut_off_from_the_graph_of_its_parts():
    one = factors(4, 5, 2, 0)
    trained = LoraFactors(one.A.requires_grad_(), one.B.requires_grad_(), 1.0)
    for got in (concatenate([trained], [1.0]), recompress(trained, 2)):
        assert not got.A.requires_grad
        assert not got.B.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value):
    one = factors(4, 5, 2, 0)
    with pytest.raises(AdapterError, match="adapter 1 has weight"):
        concatenate([one, one], [1.0, value])
    with pytest.raises(AdapterError, match="scale"):
        LoraFactors(one.A, one.B, value)
    bad = LoraFactors(one.A, torch.full_like(one.B, value))
    with pytest.raises(AdapterError, match="NaN or infinity"):
        recompress(bad, 2)
    with pytest.raises(AdapterError, match="'q_proj' has NaN"):
        bad.check_finite("q_proj")


def test_a_scale_of_zero_cannot_carry_an_adapter():
    one = factors(4, 5, 2, 0)
    with pytest.raises(AdapterError, match="scale 0"):
        recompress(one, 2, scale=0.0)
    with pytest.raises(AdapterError, match="scale 0"):
        one.with_scale(0.0)
