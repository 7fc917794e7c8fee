"""No sum of fewer updates than was asked for is ever made, nor handed out."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.aggregation import Contribution
from atlas_flwr.cohort.discovery import Discovery
from atlas_flwr.cohort.grouping import check_least, grouped
from atlas_flwr.lora import AdapterState
from atlas_flwr.strategies import Atlas, Mira
from atlas_flwr.testing import local_grid
from tests.cohort.test_discovery import discovery, parts

TASKS = {"1": 0, "2": 0, "3": 0, "4": 0, "5": 1, "6": 1, "7": 2}


def counts(found):
    return sorted(np.unique([*found.labels().values()], return_counts=True)[1])


def test_groups_of_which_too_few_came_back_are_named_and_left_out(caplog):
    round_ = [Contribution(client, 1.0, AdapterState()) for client in "abcdef"]
    groups = {"a": "0", "b": "0", "c": "0", "d": "1", "e": "1"}
    with caplog.at_level(logging.WARNING):
        found = grouped(round_, groups.get, 3)
    assert {g: [p.client for p in ps] for g, ps in found.items()} == {"0": [*"abc"]}
    assert "group 1: 2 updates, fewer than min-cluster-size=3" in caplog.text
    assert grouped(round_, groups.get, 1).keys() == {"0", "1"}


def test_clusters_stay_large_when_clients_come_and_all_is_clustered_anew():
    assert counts(discovery(TASKS)) == [1, 2, 4]
    found = discovery(TASKS, least=3)
    assert counts(found) == [3, 4]
    found.add("8", parts(2, 8))
    assert min(counts(found)) >= 3
    found.add("9", parts(2, 9))
    found.fit()
    assert min(counts(found)) >= 3
    again = Discovery(least=3)
    again.restore(found.state(), found.fitted_on, found.numbers, found.next_number)
    assert again.labels() == found.labels()


def test_fewer_clients_than_a_cluster_needs_are_in_one():
    assert counts(discovery({"1": 0, "2": 1, "3": 2}, least=5)) == [3]


def app(lost):
    """Clients add their number to B; one of them is lost in the second round."""
    made = ClientApp()

    @made.train()
    def train(message, context):
        number = int(context.node_config["partition-id"])
        if number in lost and message.content["config"]["server-round"] == 2:
            raise RuntimeError("lost")
        sent = {k: a.numpy() for k, a in message.content["arrays"].items()}
        sent["q.lora_B.weight"] = sent["q.lora_B.weight"] + number + 1
        record = ArrayRecord({k: Array(v) for k, v in sent.items()})
        content = {"arrays": record, "m": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    return made


def learned(rounds, lost=()):
    strategy = Atlas(
        clustering="none",
        fraction_evaluate=0.0,
        min_available_nodes=3,
        min_cluster_size=3,
    )
    start = {
        "q.lora_A.weight": np.ones((1, 3), np.float32),
        "q.lora_B.weight": np.zeros((4, 1), np.float32),
    }
    record = ArrayRecord({k: Array(v) for k, v in start.items()})
    with local_grid(app(lost), 3) as grid:
        result = strategy.start(grid, record, num_rounds=rounds)
    a, b = (result.arrays[key].numpy() for key in start)
    return b @ a


def test_a_sum_of_two_is_not_handed_out_where_the_third_is_lost():
    one = learned(1)
    assert np.allclose(one, 2.0)
    assert learned(2).min() > 2.1
    assert np.allclose(learned(2, lost=(1,)), one)


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(ValueError, match="raise that to 3 or more"):
        Atlas(min_cluster_size=3)
    with pytest.raises(ValueError, match="raise min_train_nodes to 3 or more"):
        Atlas(0.5, min_train_nodes=1, min_available_nodes=4, min_cluster_size=3)
    Atlas(fraction_train=0.0, min_train_nodes=0)  # which trains nobody, as FedAvg's may
    with pytest.raises(ValueError, match="no updates are added up"):
        check_least(2, 2, 2, "none")
    with pytest.raises(ValueError, match="allowed is 1 and more"):
        Atlas(min_cluster_size=2, balanced=True)
    with pytest.raises(ValueError, match="allowed is 1 and more"):
        Atlas(min_cluster_size=0)
    with pytest.raises(TypeError, match="leave the argument out"):
        Mira(min_cluster_size=2)
