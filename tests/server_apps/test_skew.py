"""Clients of unlike classes, some tested on one class only, get the right numbers."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from atlas_flwr.data import load_task, majority_accuracy, make_shard
from tests.server_apps.test_run import BASE, run, summary

CLIENTS = 8
TASKS = [load_task(name) for name in BASE["tasks"].split(",")]
SKEW = {"label_skew": 0.1, "test_skew": True}


@pytest.fixture(scope="module")
def skewed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return run(folder, model="tiny-bert", nodes=CLIENTS, num_rounds=1, **SKEW)


def shard_of(client):
    return make_shard(
        client, CLIENTS, TASKS, train_examples=16, test_examples=8, seed=0,
        alpha=0.1, skew_tests=True,
    )  # fmt: skip


def last_evaluations(folder):
    found = {}
    for record in folder.records():
        if record["event"] == "client-evaluated":
            found[int(record["client"])] = record
    return found


def test_a_client_is_scored_on_its_own_classes(skewed):
    sizes = set()
    for client, told in last_evaluations(skewed).items():
        shard = shard_of(client)
        classes = len(shard.task.labels)
        counts = np.array(told["confusion"]).reshape(classes, classes)
        expected = Counter(e.label for e in shard.test)
        assert counts.sum(1).tolist() == [expected[i] for i in range(classes)]
        assert told["accuracy"] == counts.trace() / len(shard.test)
        sizes.add((classes, len(expected)))
    assert {classes for classes, _ in sizes} == {2, 6}
    assert 1 in {seen for _, seen in sizes}  # a test of one class only


def test_a_tasks_scores_are_of_all_its_clients_tests_together(skewed):
    pairs = defaultdict(list)
    for told in last_evaluations(skewed).values():
        classes = len(load_task(told["task"]).labels)
        counts = np.array(told["confusion"]).reshape(classes, classes)
        for (right, said), count in np.ndenumerate(counts):
            pairs[told["task"]] += [(right, said)] * int(count)
    final = summary(skewed)["final"]
    for task, answers in pairs.items():
        right, said = np.array(answers).T
        assert final["accuracy"][task] == pytest.approx(np.mean(right == said))
        expected = balanced_accuracy_score(right, said)
        assert final["balanced_accuracy"][task] == pytest.approx(expected)


def test_the_majority_is_each_clients_own(skewed):
    told = summary(skewed)["majority"]
    for turn, task in enumerate(TASKS):
        shards = [shard_of(client) for client in range(turn, CLIENTS, len(TASKS))]
        weights = [len(shard.test) for shard in shards]
        values = [majority_accuracy(shard.train, shard.test) for shard in shards]
        assert told[task.name] == pytest.approx(np.average(values, weights=weights))
