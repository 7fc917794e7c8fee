# SPDX-License-Identifier: Apache-2.0
"""SplitLoRA where not all clients have all layers, take part, or are in time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from atlas_flwr.aggregation import Contribution
from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.lora import AdapterState
from atlas_flwr.split import SplitPlan
from atlas_flwr.strategies import Atlas, SplitLora
from atlas_flwr.types import OptimizerSpec
from tests.aggregation.test_late import moved

M, N, RANK = 6, 5, 2
LAYERS = ("model.q", "model.v")


def begun(strategy):
    rng = np.random.default_rng(0)
    arrays = {}
    for layer in LAYERS:
        A, B = rng.normal(size=(RANK, N)), np.zeros((M, RANK))
        arrays[f"{layer}.lora_A.weight"] = Array(A.astype(np.float32))
        arrays[f"{layer}.lora_B.weight"] = Array(B.astype(np.float32))
    strategy.adapters.begin(ArrayRecord(arrays))
    return strategy


def start(strategy, client, layers=LAYERS):
    group = strategy._group(client)
    return strategy.adapters.start(group, dict.fromkeys(layers, RANK), 1)


def trained(sent, client, seed, **more):
    return Contribution(client, 1.0, moved(sent, seed), sent, **more)


def products(state):
    return {name: f.delta() for name, f in state.factors.items()}


def plain():
    """The mean of factors, in each round."""
    return Atlas(clustering="none", aggregation="mean", fingerprints="gradients")


@pytest.mark.parametrize("make", [plain, SplitLora])
def test_a_layer_that_nobody_trains_in_a_round_stays_as_it_was_learned(make):
    strategy = begun(make())
    strategy._combine(1, [trained(start(strategy, "0"), "0", 1)])
    learned = products(start(strategy, "0"))["model.v"]
    strategy._combine(2, [trained(start(strategy, "1", ["model.q"]), "1", 2)])
    torch.testing.assert_close(products(start(strategy, "0"))["model.v"], learned)


@pytest.mark.parametrize("make", [plain, SplitLora])
def test_who_is_late_and_has_learned_nothing_pulls_nobody_back(make):
    strategy = begun(make())
    strategy._combine(1, [trained(start(strategy, "0"), "0", 1)])
    old = start(strategy, "1")
    strategy._combine(2, [trained(start(strategy, "0"), "0", 2)])
    sent = start(strategy, "0")
    still = Contribution("0", 1.0, AdapterState(sent.factors), sent)
    late = Contribution("1", 5.0, AdapterState(old.factors), old, late=True)
    strategy._combine(3, [still, late])
    torch.testing.assert_close(products(start(strategy, "0")), products(sent))


def test_who_goes_on_alone_keeps_what_all_had_however_late_it_is():
    strategy = begun(SplitLora(interval=3))
    for number in (1, 2, 3):
        strategy._combine(number, [trained(start(strategy, "0"), "0", number)])
    old, both = start(strategy, "1"), products(start(strategy, "1"))
    assert any(found.any() for found in both.values())
    still = Contribution("1", 1.0, AdapterState(old.factors), old, late=True)
    strategy._combine(4, [still])
    torch.testing.assert_close(products(start(strategy, "1")), both)


def test_who_has_gone_on_alone_brings_all_of_it_however_late_it_is():
    found = []
    for late in (False, True):
        strategy = begun(SplitLora(interval=4))
        for number in (1, 2):
            strategy._combine(number, [trained(start(strategy, "1"), "1", number)])
        own = start(strategy, "1")
        strategy._combine(3, [trained(start(strategy, "0"), "0", 3)])
        parts = [
            trained(start(strategy, "0"), "0", 4),
            trained(own, "1", 5, late=late),
        ]
        strategy._combine(4, parts)
        found.append(products(start(strategy, "0")))
    torch.testing.assert_close(*found)


def test_fewer_than_a_sum_needs_are_not_added():
    strategy = begun(SplitLora(min_cluster_size=2))
    strategy._combine(1, [trained(start(strategy, c), c, 1) for c in "01"])
    before = products(start(strategy, "0"))
    strategy._combine(2, [trained(start(strategy, "0"), "0", 2)])
    torch.testing.assert_close(products(start(strategy, "0")), before)


class Opening:
    """A trunk that opens sessions."""

    def open(self, spec):
        return "token"

    def close(self, token):
        pass


@pytest.mark.parametrize("interval", [1, 3, 9])
def test_what_all_train_on_the_trunk_goes_on_whoever_comes_next(interval):
    """One was not there, and opens the next round's first session; all join that."""
    blocks = {"model.q": 0, "model.v": 1}
    given = Opening(), "", OptimizerSpec(), blocks.get, 3
    sessions = TrunkSessions(*given, shared=True)
    strategy = begun(SplitLora(interval=interval, sessions=sessions))
    common = torch.zeros(M, N)
    for number, client in enumerate("1021", start=1):
        sent = start(strategy, client)
        torch.testing.assert_close(products(sent)["model.v"], common)
        sessions.open(client, SplitPlan(1, 1), sent)
        part = trained(sent, client, number)
        common = products(part.state)["model.v"]
        strategy._combine(number, [part])
    for state in strategy.cluster_states().values():
        assert state.factors.keys() == set(LAYERS)
    one, other = (products(start(strategy, c))["model.q"] for c in "01")
    assert torch.equal(one, other) == (interval == 1)


def test_who_is_not_in_an_aggregations_round_brings_what_it_learned_alone():
    strategy = begun(SplitLora(interval=3))
    parts = {}
    for number, clients in enumerate(("01", "0", "2"), start=1):
        for client in clients:
            part = trained(start(strategy, client), client, 10 * number + int(client))
            parts[client] = replace(part, weight=1.0 + number)
        strategy._combine(number, [parts[client] for client in clients])
    total = sum(part.weight for part in parts.values())
    for name, found in start(strategy, "9").factors.items():
        own = [
            (part.weight / total, part.state.factors[name]) for part in parts.values()
        ]
        torch.testing.assert_close(found.A, sum(p * f.A for p, f in own))
        torch.testing.assert_close(found.B, sum(p * f.B for p, f in own))
