"""A client's own layers, between the server's word and the client's disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas_flwr.client_apps.store import ClientStore
from atlas_flwr.lora import AdapterState, LoraFactors, Scaling, initial_factors
from atlas_flwr.remedies.personal_layers import PersonalLayers, keep, own_state
from atlas_flwr.remedies.personal_sides import SidesKept
from atlas_flwr.split import SplitPlan
from atlas_flwr.types import Side

SHAPES = {f"layers.{i}.q": (6, 5) for i in range(5)}
SCALING = Scaling(16.0)
DENSE = {"classifier.weight": np.ones((3, 6), np.float32)}


class Blocks:
    num_layers = 5

    def block_of(self, name):
        return int(name.split(".")[1]) if name.startswith("layers.") else None


def begun(kept, dense):
    factors = {
        name: initial_factors(name, SHAPES[name], rank, scaling=SCALING, seed=1)
        for name, rank in kept.ranks.items()
    }
    return AdapterState(factors, {key: dense[key] for key in kept.dense})


def state(rank=2):
    torch.manual_seed(0)
    factors = {
        name: LoraFactors(torch.randn(rank, n), torch.randn(m, rank), SCALING(rank))
        for name, (m, n) in SHAPES.items()
    }
    return AdapterState(factors, dict(DENSE))


@pytest.mark.parametrize(
    ("sides", "layers", "dense"),
    [
        ({Side.HEAD}, {"layers.0.q", "layers.1.q"}, False),
        ({Side.TAIL}, {"layers.4.q"}, True),
        ({Side.HEAD, Side.TAIL}, {"layers.0.q", "layers.1.q", "layers.4.q"}, True),
    ],
)
def test_sides_say_which_layers_stay(sides, layers, dense):
    personal = SidesKept(frozenset(sides), Blocks())
    whole = state()
    kept = PersonalLayers.from_json(personal.personal(SplitPlan(2, 1), whole).to_json())
    assert kept.ranks == dict.fromkeys(layers, 2)
    mine, others = kept.part_of(whole), kept.rest_of(whole)
    assert set(mine.factors) == layers
    assert bool(mine.dense) == dense
    assert set(mine.factors) | set(others.factors) == set(whole.factors)
    assert not set(mine.factors) & set(others.factors)
    assert set(mine.dense) | set(others.dense) == set(whole.dense)
    assert not set(mine.dense) & set(others.dense)


@pytest.fixture
def store(tmp_path):
    return ClientStore(tmp_path)


def started(rank=2):
    kept = PersonalLayers({"layers.0.q": rank}, ("classifier.weight",))
    return kept, begun(kept, DENSE)


def test_all_clients_own_layers_begin_alike_and_as_nothing(store):
    kept, start = started()
    found = own_state(store, start, SCALING, before=1)
    assert found == start
    assert not found.factors["layers.0.q"].delta().any()
    assert found.factors["layers.0.q"].rank == kept.ranks["layers.0.q"]


def test_what_was_kept_comes_back_as_it_was(store):
    kept, start = started()
    trained = kept.part_of(state())
    keep(store, trained, 1)
    found = own_state(store, start, SCALING, before=2)
    factors = found.factors["layers.0.q"], trained.factors["layers.0.q"]
    assert torch.equal(factors[0].A, factors[1].A)
    assert torch.equal(factors[0].B, factors[1].B)
    assert np.array_equal(found.dense["classifier.weight"], DENSE["classifier.weight"])
    assert own_state(store, start, SCALING, before=1) == start


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_at_another_rank_it_is_the_best_approximation(store, rank):
    kept, _ = started(3)
    trained = kept.part_of(state(3))
    keep(store, trained, 1)
    found = own_state(store, started(rank)[1], SCALING, before=2).factors["layers.0.q"]
    U, S, V = torch.linalg.svd(trained.factors["layers.0.q"].delta())
    best = U[:, :rank] @ torch.diag(S[:rank]) @ V[:rank]
    assert (found.rank, found.scale) == (rank, SCALING(rank))
    torch.testing.assert_close(found.delta(), best, atol=1e-4, rtol=1e-4)


def test_a_layer_that_rests_for_a_round_is_remembered(store):
    whole = state()
    keep(store, PersonalLayers({"layers.0.q": 2, "layers.1.q": 2}).part_of(whole), 1)
    keep(store, PersonalLayers({"layers.0.q": 2}).part_of(whole), 2)
    kept = PersonalLayers({"layers.1.q": 2})
    start = begun(kept, {})
    found = own_state(store, start, SCALING, before=3).factors["layers.1.q"]
    assert torch.equal(found.B, whole.factors["layers.1.q"].B)
