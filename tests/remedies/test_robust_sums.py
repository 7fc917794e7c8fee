"""Bad clients among honest ones, through the strategy: where their cluster goes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.remedies.robust_sums import BoundedUpdates
from atlas_flwr.robust import ROBUST, robust_rule
from atlas_flwr.strategies import Atlas
from atlas_flwr.testing import local_grid
from tests.matrix_clients import initial, trained

ATTACKS = {
    "honest": lambda before, after: after,
    "scaled": lambda before, after: before + 1000 * (after - before),
    "reversed": lambda before, after: before - 10 * (after - before),
    "noise": lambda before, after: (
        1e6 * np.random.default_rng(1).normal(size=after.shape)
    ),
    "largest": lambda before, after: np.full_like(after, 1e38),
}


def app(attack):
    """Make clients of one task, of which the last is bad."""
    made = ClientApp()

    @made.train()
    def train(message, context):
        client = int(context.node_config["partition-id"])
        before = message.content["arrays"]
        after = trained(before, client, 0)
        if client == context.node_config["num-partitions"] - 1:
            after = ArrayRecord(
                {
                    key: Array(
                        ATTACKS[attack](before[key].numpy(), array.numpy()).astype("f4")
                    )
                    for key, array in after.items()
                }
            )
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": after, "metrics": metrics})
        return Message(content, reply_to=message)

    return made


def moved(attack, rule, nodes, rounds=3):
    hooks = {"hooks": BoundedUpdates(robust_rule(rule, 2.0, 0.25))} if rule else {}
    strategy = Atlas(
        clustering="none", fraction_evaluate=0.0, aggregation="truncate", **hooks
    )
    with local_grid(app(attack), nodes) as grid:
        result = strategy.start(grid, initial(), num_rounds=rounds)
    arrays = [array.numpy() for array in result.arrays.values()]
    A, B, head = arrays
    return np.concatenate([(B @ A).reshape(-1), head])


@pytest.mark.parametrize("nodes", [4, 9])
@pytest.mark.parametrize("attack", ["scaled", "reversed", "noise"])
@pytest.mark.parametrize("rule", ROBUST)
def test_one_bad_client_does_not_carry_its_cluster_away(rule, attack, nodes):
    honest = moved("honest", None, nodes)
    size = np.linalg.norm(honest)
    off = np.linalg.norm(moved(attack, rule, nodes) - honest)
    undefended = np.linalg.norm(moved(attack, None, nodes) - honest)
    assert undefended > 1.5 * size
    assert off < undefended / 2
    assert off < 2 * size


@pytest.mark.parametrize("rule", ROBUST)
def test_numbers_at_the_end_of_float32_do_not_end_the_run(rule):
    honest = moved("honest", None, 4)
    off = np.linalg.norm(moved("largest", rule, 4) - honest)
    assert off < np.linalg.norm(honest)


@pytest.mark.parametrize("rule", ROBUST)
def test_honest_clients_learn_nearly_what_they_do_without(rule):
    honest = moved("honest", None, 5)
    assert np.linalg.norm(moved("honest", rule, 5) - honest) < 0.1 * np.linalg.norm(
        honest
    )


def test_who_is_bounded_is_named(caplog):
    with caplog.at_level(logging.WARNING):
        moved("scaled", "norm-bound", 4, rounds=1)
    told = [r.getMessage() for r in caplog.records if "robust" in r.getMessage()]
    assert len(told) == 1
    assert "client 1021" in told[0]
