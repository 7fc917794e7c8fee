# SPDX-License-Identifier: Apache-2.0
"""HetLoRA's pruning of ranks, against its formula in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.lora import LoraFactors, excess, kept_rank, pruned

M, N = 6, 5


def factors(rank, seed=0, tail=1.0, first=None, scale=2.0):
    """Random factors whose directions from ``first`` on have the given size."""
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(rank, N)), rng.normal(size=(M, rank))
    first = rank if first is None else first
    A[first:] *= tail
    B[:, first:] *= tail
    return LoraFactors(torch.from_numpy(A), torch.from_numpy(B), scale)


@given(st.integers(1, 256), st.floats(0.01, 1.0))
def test_a_rank_falls_to_its_share_and_never_to_nothing(rank, decay):
    kept = kept_rank(rank, decay)
    assert 1 <= kept <= rank
    assert kept == 1 or rank * decay - 1 < kept <= rank * decay + 1e-6
    assert kept_rank(rank, 1.0) == rank


def test_a_share_that_floats_round_down_is_whole():
    assert kept_rank(100, 0.57) == 57
    assert kept_rank(8, 0.99) == 7
    assert kept_rank(3, 0.1) == 1


def test_the_penalty_is_the_sum_of_products_of_frobenius_norms():
    layers = [factors(4, seed=1), factors(7, seed=2), factors(1, seed=3)]
    wanted = sum(
        np.sqrt((f.B.numpy()[:, k:] ** 2).sum()) * np.sqrt((f.A.numpy()[k:] ** 2).sum())
        for f, k in zip(layers, (2, 3, 1), strict=True)
    )
    assert float(excess(layers, 0.5)) == pytest.approx(wanted, rel=1e-12)
    assert float(excess([], 0.5)) == float(excess(layers, 1.0)) == 0.0


def test_the_penalty_pulls_only_on_the_directions_beyond():
    A = factors(4).A.requires_grad_()
    B = factors(4).B.requires_grad_()
    excess([LoraFactors(A, B)], 0.5).backward()
    assert not A.grad[:2].any()
    assert not B.grad[:, :2].any()
    tail = B[:, 2:].norm() / A[2:].norm()
    torch.testing.assert_close(A.grad[2:], (tail * A[2:]).detach())


def test_a_fresh_adapter_feels_no_pull_where_b_is_zero():
    A, B = factors(4).A.requires_grad_(), torch.zeros(M, 4, requires_grad=True)
    excess([LoraFactors(A, B.double())], 0.5).backward()
    assert not A.grad.any()
    assert not B.grad.any()


def test_layers_whose_tail_shrank_lose_it_and_keep_the_rest_of_their_product():
    start = {"shrunk": factors(4), "grown": factors(4), "one": factors(1)}
    end = {
        "shrunk": factors(4, tail=0.9, first=2),
        "grown": factors(4, tail=1.1, first=2),
        "one": factors(1),
    }
    kept = pruned(start, end, 0.5)
    assert {name: f.rank for name, f in kept.items()} == {
        "shrunk": 2,
        "grown": 4,
        "one": 1,
    }
    left = end["shrunk"].scale * end["shrunk"].B[:, :2] @ end["shrunk"].A[:2]
    assert torch.equal(kept["shrunk"].delta(), left)
    assert kept["grown"] is end["grown"]


def test_without_decay_nothing_is_pruned():
    start, end = {"x": factors(4)}, {"x": factors(4, tail=0.0, first=1)}
    assert pruned(start, end, 1.0) == end


def test_what_shrinks_while_the_other_factor_grows_as_much_stays():
    end = factors(4)
    end.A[2:] *= 0.5
    end.B[:, 2:] *= 2.0
    assert pruned({"x": factors(4)}, {"x": end}, 0.5)["x"].rank == 4
