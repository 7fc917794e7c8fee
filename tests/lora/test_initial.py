from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.lora import Scaling, initial_factors

WIDTHS = st.integers(1, 40)
RANKS = st.integers(1, 9)


@given(WIDTHS, RANKS, RANKS, st.integers(0, 9))
def test_initial_adapters_are_nested_over_ranks(n, r, s, seed):
    small, big = sorted((r, s))
    one = initial_factors("x", (5, n), small, scaling=Scaling(16), seed=seed)
    other = initial_factors("x", (5, n), big, scaling=Scaling(16), seed=seed)
    assert torch.equal(other.A[:small], one.A)


def test_an_initial_product_is_zero_at_the_scale_of_lora_or_rslora():
    one = initial_factors("x", (5, 7), 4, scaling=Scaling(16), seed=3)
    other = initial_factors(
        "x", (5, 7), 4, scaling=Scaling(16, use_rslora=True), seed=3
    )
    assert not one.B.any()
    assert (one.scale, other.scale) == (4, 8)
    assert torch.equal(one.A, other.A)


def test_initial_adapters_differ_by_layer_and_seed_and_spread_as_kaiming():
    one = initial_factors("x", (5, 400), 8, scaling=Scaling(16), seed=3)
    assert not torch.equal(
        one.A, initial_factors("y", (5, 400), 8, scaling=Scaling(1), seed=3).A
    )
    assert not torch.equal(
        one.A, initial_factors("x", (5, 400), 8, scaling=Scaling(1), seed=4).A
    )
    assert one.A.abs().max() <= 400**-0.5
    assert float(one.A.std()) == pytest.approx((3 * 400) ** -0.5, rel=0.05)


def test_initial_adapters_are_drawn_as_peft_draws_them():
    drawn = torch.empty(64, 400)
    torch.nn.init.kaiming_uniform_(drawn, a=5**0.5)
    ours = initial_factors("x", (5, 400), 64, scaling=Scaling(1), seed=0).A
    levels = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(
        ours.flatten().quantile(levels),
        drawn.flatten().quantile(levels),
        rtol=0.0,
        atol=0.001,
    )
