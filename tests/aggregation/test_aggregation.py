"""Rules of aggregation against dense matrices in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation import AGGREGATIONS, Contribution, Start
from atlas_flwr.aggregation.contribution import dense_means
from atlas_flwr.aggregation.products import summed_in_parts
from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState, LoraFactors, Scaling, concatenate

M, N, NAME = 7, 6, "layers.0.q"
SCALING = Scaling(4.0)
INITIAL = AdapterState(
    {NAME: LoraFactors(torch.randn(5, N), torch.zeros(M, 5), SCALING(5))},
    {"bias": np.zeros(3, np.float32)},
)


def start(rule, held, rank, number):
    at = Start(INITIAL, {NAME: rank}, SCALING, seed=1, round=number)
    return at.nested(INITIAL) if held is None else rule.start(held, at)


def trained(state, seed):
    """Move a client's factors somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: LoraFactors(
            f.A + 0.3 * torch.randn(f.A.shape, generator=generator),
            f.B + 0.3 * torch.randn(f.B.shape, generator=generator),
            f.scale,
        )
        for name, f in state.factors.items()
    }
    return AdapterState(factors, {"bias": np.full(3, seed, np.float32)})


def dense(factors):
    return factors.scale * (factors.B.double() @ factors.A.double())


def total(state):
    parts = [group[NAME] for group in (state.factors, state.folded) if NAME in group]
    return sum(dense(part) for part in parts)


def played(name, rounds):
    """Play rounds of (rank, weight) by client; yield what is held, and densely."""
    rule, held, oracle = AGGREGATIONS[name](), None, torch.zeros(M, N).double()
    for number, clients in enumerate(rounds, start=1):
        parts, wanted = [], torch.zeros(M, N).double()
        weights = sum(weight for _, weight in clients)
        for client, (rank, weight) in enumerate(clients):
            sent = start(rule, held, rank, number)
            after = trained(sent, seed=10 * number + client)
            parts.append(Contribution(str(client), weight, after))
            moved = total(after) - total(AdapterState(sent.factors))
            wanted += weight / weights * moved
            if name == "truncate":
                wanted += weight / weights * total(AdapterState(sent.factors))
        oracle = wanted if name == "truncate" else oracle + wanted
        held = rule.combine(held, parts)
        yield rule, held, oracle


rounds = st.lists(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", ["both", "fold", "truncate"])
@pytest.mark.parametrize("flat", [True, False])
@given(weights=st.lists(st.integers(1, 9), min_size=3, max_size=4))
@settings(max_examples=10, deadline=None)
def test_a_sum_of_members_is_combined_as_they_are_one_by_one(name, flat, weights):
    """All that a group with secure sums has is the mean of what members sent back."""
    rule, rank = AGGREGATIONS[name](flat=flat), 2
    held = [None, None]
    for number in (1, 2, 3):
        for way in (0, 1):
            sent = start(rule, held[way], rank, number)
            parts = [
                Contribution(str(c), w, trained(sent, seed=10 * number + c))
                for c, w in enumerate(weights)
            ]
            if way:
                stack = [part.state.factors[NAME] for part in parts]
                mean = np.average([p.state.dense["bias"] for p in parts], 0, weights)
                shares = [w / sum(weights) for w in weights]
                factors = {NAME: concatenate(stack, shares)}
                state, all_ = AdapterState(factors, {"bias": mean}), sum(weights)
                clients = [part.client for part in parts]
                parts = [Contribution("0", all_, state, sent, members=clients)]
                assert parts[0].weights == dict.fromkeys(clients, all_ / len(clients))
            held[way] = rule.combine(held[way], parts)
        one, other = held
        assert one.factors[NAME].rank == other.factors[NAME].rank
        found, wanted = total(other), total(one)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert one.rest.keys() == other.rest.keys()
        for key, rest in one.rest.items():
            torch.testing.assert_close(other.rest[key], rest, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(other.dense["bias"], one.dense["bias"], rtol=1e-6)


@pytest.mark.parametrize("name", ["both", "fold", "truncate"])
@given(rounds=rounds)
@settings(max_examples=25)
def test_what_is_learned_adds_up_exactly_over_rounds_and_ranks(name, rounds):
    for _, held, oracle in played(name, rounds):
        torch.testing.assert_close(
            dense(held.factors[NAME]), oracle, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", ["both", "fold"])
@given(rounds=rounds, rank=st.integers(0, 5))
@settings(max_examples=25)
def test_a_member_a_newcomer_and_an_absentee_all_start_from_the_whole(
    name, rounds, rank
):
    *_, (rule, held, oracle) = played(name, rounds)
    sent = start(rule, held, rank, 9)
    torch.testing.assert_close(total(sent).double(), oracle, atol=1e-4, rtol=1e-4)
    assert (NAME in sent.factors) == (rank > 0)


def test_truncate_sends_the_best_approximation_and_folds_nothing():
    *_, (rule, held, oracle) = played("truncate", [[(4, 1), (2, 3)]])
    U, S, Vt = torch.linalg.svd(oracle)
    sent = start(rule, held, 2, 2)
    best = (U[:, :2] * S[:2]) @ Vt[:2]
    torch.testing.assert_close(total(sent), best, atol=1e-5, rtol=1e-5)
    assert not sent.folded


def test_both_trains_the_strongest_directions_and_fold_trains_new_ones():
    *_, (both, held, oracle) = played("both", [[(4, 1)]])
    _, S, _ = torch.linalg.svd(oracle)
    live = start(both, held, 2, 2).factors[NAME]
    found = torch.linalg.svdvals(dense(live))
    torch.testing.assert_close(found[:2], S[:2], atol=1e-5, rtol=1e-5)
    *_, (fold, held, _) = played("fold", [[(4, 1)]])
    one, other = (start(fold, held, 2, number).factors[NAME] for number in (2, 3))
    assert not one.delta().any()
    assert not torch.equal(one.A, other.A)


def test_dense_arrays_are_averaged_by_weight():
    *_, (_, held, _) = played("both", [[(2, 1), (2, 3)]])
    np.testing.assert_allclose(held.dense["bias"], np.full(3, 0.25 * 10 + 0.75 * 11))


def test_a_layer_of_some_clients_alone_is_shared_among_these():
    factors = LoraFactors(torch.ones(1, N), torch.ones(M, 1))
    parts = [
        Contribution("a", 1.0, AdapterState({NAME: factors})),
        Contribution("b", 9.0, AdapterState({})),
    ]
    held = AGGREGATIONS["both"]().combine(None, parts)
    torch.testing.assert_close(held.factors[NAME].delta(), torch.ones(M, N))


def test_clients_of_unlike_scales_are_added_by_their_products():
    parts = []
    for client, scaling in enumerate((Scaling(2.0), Scaling(16.0, True))):
        f = LoraFactors(torch.randn(3, N), torch.randn(M, 3), scaling(3))
        parts.append(Contribution(str(client), 1.0, AdapterState({NAME: f})))
    held = AGGREGATIONS["truncate"]().combine(None, parts)
    wanted = sum(dense(p.state.factors[NAME]) for p in parts) / 2
    torch.testing.assert_close(dense(held.factors[NAME]), wanted, atol=1e-5, rtol=1e-5)


def test_the_mean_of_factors_is_another_matrix():
    parts = []
    for client in range(2):
        f = LoraFactors(torch.randn(3, N), torch.randn(M, 3))
        parts.append(Contribution(str(client), 1.0, AdapterState({NAME: f})))
    A = sum(p.state.factors[NAME].A for p in parts) / 2
    B = sum(p.state.factors[NAME].B for p in parts) / 2
    held = AGGREGATIONS["mean"]().combine(None, parts)
    torch.testing.assert_close(held.factors[NAME].delta(), B @ A)
    exact = AGGREGATIONS["both"]().combine(None, parts).factors[NAME].delta()
    assert (exact - B @ A).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("name", ["mean", "sparsity-mean", "truncate", "both"])
@given(rounds=rounds, rank=st.integers(1, 5))
@settings(max_examples=25)
def test_no_direction_that_a_client_is_sent_is_dead(name, rounds, rank):
    *_, (rule, held, _) = played(name, rounds)
    sent = start(rule, held, rank, 9).factors[NAME]
    assert sent.rank == rank
    dead = (sent.A == 0).all(1) & (sent.B == 0).all(0)
    assert not dead.any()


@pytest.mark.parametrize("name", ["mean", "sparsity-mean"])
def test_directions_beyond_those_of_a_round_begin_anew(name):
    *_, (rule, held, _) = played(name, [[(2, 1), (1, 2)]])
    sent = start(rule, held, 4, 2).factors[NAME]
    torch.testing.assert_close(dense(sent), dense(held.factors[NAME]))
    assert torch.equal(sent.A[2:], INITIAL.factors[NAME].A[2:4])
    assert not sent.B[:, 2:].any()


def test_a_cut_at_max_rank_is_told_with_its_loss(caplog):
    stack = [LoraFactors(torch.randn(4, N), torch.randn(M, 4))]
    cut, _ = summed_in_parts(NAME, stack, [1.0], max_rank=2)
    assert cut.rank == 2
    assert "is cut to 2, which loses" in caplog.text


def test_a_wrong_sum_is_never_passed_on(monkeypatch):
    from atlas_flwr.aggregation import products

    real = products.concatenate
    monkeypatch.setattr(
        products, "concatenate", lambda f, p: real(f, [1.1 * x for x in p])
    )
    with pytest.raises(AdapterError, match=r"the aggregate is off by"):
        summed_in_parts(
            NAME, [LoraFactors(torch.randn(2, N), torch.randn(M, 2))], [1.0]
        )


def test_no_weight_at_all_is_refused():
    with pytest.raises(AdapterError, match="at least one client with examples"):
        AGGREGATIONS["both"]().combine(None, [Contribution("a", 0.0, INITIAL)])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_arrays_that_are_alike_are_their_own_mean_at_any_precision(dtype):
    value = np.random.default_rng(0).normal(size=500).astype(dtype)
    parts = [
        Contribution(str(k), weight, AdapterState({}, {"bias": value}))
        for k, weight in enumerate((3.0, 7.0, 11.0))
    ]
    found = dense_means(parts)["bias"]
    assert found.dtype == dtype
    assert np.array_equal(found, value)
