from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas_flwr.aggregation import AGGREGATIONS, Contribution
from atlas_flwr.aggregation.mixing import Mixing, averaged, mixed
from atlas_flwr.errors import DataError
from atlas_flwr.lora import AdapterState, LoraFactors, canonical

M, N = 6, 5
SKETCHES = {"a": np.array([1.0, 0]), "b": np.array([0.9, 0.1]), "c": np.array([0.0, 1])}


def state(seed, rank, layers=("q", "k")):
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: canonical(
            LoraFactors(
                torch.randn(rank, N, generator=generator),
                torch.randn(M, rank, generator=generator),
            )
        )
        for name in layers
    }
    return AdapterState(factors, {"bias": np.full(2, seed, np.float32)})


GROUPS = {"a": state(1, 1), "b": state(2, 3), "c": state(3, 4)}


def test_groups_of_unlike_ranks_are_mixed_as_dense_matrices_are():
    _, matrix = Mixing(0.7).matrix([*SKETCHES], SKETCHES)
    found = mixed(GROUPS, matrix)
    for k, name in enumerate(GROUPS):
        for layer in ("q", "k"):
            wanted = sum(
                c * s.factors[layer].delta()
                for c, s in zip(matrix[k], GROUPS.values(), strict=True)
            )
            torch.testing.assert_close(
                found[name].factors[layer].delta(), wanted.float(), atol=1e-5, rtol=1e-4
            )
        np.testing.assert_allclose(
            found[name].dense["bias"], matrix[k] @ [1.0, 2, 3] * np.ones(2), rtol=1e-5
        )


def test_the_identity_is_local_training():
    _, matrix = Mixing(0.0).matrix([*SKETCHES], SKETCHES)
    found = mixed(GROUPS, matrix)
    assert all(found[name] is GROUPS[name] for name in GROUPS)


def test_rows_of_cluster_weights_are_cluster_averaging():
    weights = [1.0, 2.0, 5.0]
    rows = np.tile(np.array(weights) / 8, (3, 1))
    found = mixed(GROUPS, rows)
    parts = [
        Contribution(name, w, s)
        for w, (name, s) in zip(weights, GROUPS.items(), strict=True)
    ]
    average = AGGREGATIONS["truncate"]().combine(None, parts)
    for group in found.values():
        for layer, factors in group.factors.items():
            torch.testing.assert_close(
                factors.delta(), average.factors[layer].delta(), atol=1e-5, rtol=1e-4
            )


def test_a_layer_of_some_groups_is_mixed_among_these():
    groups = {"a": GROUPS["a"], "b": state(2, 3, layers=("q",))}
    found = mixed(groups, np.full((2, 2), 0.5))
    torch.testing.assert_close(
        found["a"].factors["k"].delta(), GROUPS["a"].factors["k"].delta()
    )
    assert set(found["b"].factors) == {"q"}


def test_similar_tasks_give_more_to_each_other_and_a_given_graph_is_obeyed():
    _, matrix = Mixing(0.5).matrix([*SKETCHES], SKETCHES)
    assert matrix[0, 1] > 2 * matrix[0, 2]
    graph = {("a", "b"): 0.0, ("a", "c"): 1.0, ("c", "b"): 0.0}
    _, matrix = Mixing(0.5, graph=graph).matrix([*SKETCHES], SKETCHES)
    np.testing.assert_allclose(matrix, [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])


def test_a_graph_without_a_pair_is_refused_by_name():
    with pytest.raises(DataError, match="groups 'a' and 'c'"):
        Mixing(0.5, graph={("a", "b"): 1.0}).matrix([*SKETCHES], SKETCHES)


@pytest.mark.parametrize(("decay", "left"), [(0.0, 1.0), (0.5, 0.25), (1.0, 0.0)])
def test_the_strength_decays_from_round_to_round(decay, left):
    decaying = Mixing(0.6, decay=decay)
    _, first = decaying.matrix([*SKETCHES], SKETCHES, 1)
    _, third = decaying.matrix([*SKETCHES], SKETCHES, 3)
    np.testing.assert_allclose(first, Mixing(0.6).matrix([*SKETCHES], SKETCHES)[1])
    still = np.eye(len(first))
    np.testing.assert_allclose(third - still, left * (first - still), atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_moving_average_is_that_of_the_products(share):
    former, now = GROUPS["a"], GROUPS["b"]
    found = averaged(former, now, share)
    for name in now.factors:
        dense = [s.factors[name].delta().double() for s in (former, now)]
        wanted = share * dense[0] + (1 - share) * dense[1]
        np.testing.assert_allclose(found.factors[name].delta(), wanted, atol=1e-5)
    wanted = share * former.dense["bias"] + (1 - share) * now.dense["bias"]
    np.testing.assert_allclose(found.dense["bias"], wanted, rtol=1e-6)


@pytest.mark.parametrize("graph", [None, {("a", "b"): 1.0}])
def test_where_nobody_has_trained_nothing_is_mixed(graph):
    """As in a first round in which too few of each group came back."""
    names, matrix = Mixing(0.5, graph=graph).matrix([], {})
    assert names == []
    assert mixed({}, matrix) == {}
