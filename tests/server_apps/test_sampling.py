"""Runs in which few clients take part in a round, and are known one after the other."""

from __future__ import annotations

import json
import random

from tests.server_apps.test_run import run, summary

CLIENTS = 8


def test_clusters_from_gradients_are_made_anew_as_more_clients_are_known(tmp_path):
    folder = run(
        tmp_path,
        nodes=CLIENTS,
        num_rounds=8,
        local_steps=1,
        fraction_train=0.25,
        fraction_evaluate=0.25,
    )
    lines = map(json.loads, (folder.path / "metrics.jsonl").read_text().splitlines())
    told = [event for event in lines if event["event"] == "clustered"]
    known = [len(event["clusters"]) for event in told]
    assert known[0] == 2
    assert known == sorted(known)
    assert known[-1] == CLIENTS
    clusters, tasks = summary(folder)["clusters"], summary(folder)["true_tasks"]
    assert clusters == told[-1]["clusters"]
    assert len(tasks) == CLIENTS
    pairs = {(clusters[client], tasks[client]) for client in clusters}
    assert len(pairs) == len(set(clusters.values())) == 2


def test_who_is_tested_before_training_is_drawn_from_the_seed(tmp_path):
    """Flower's strategies draw from Python's generator, whatever state it is in."""
    few = {"fraction_evaluate": 0.25, "min_evaluate_nodes": 1, "num_rounds": 1}
    tested = []
    for state in range(2):
        random.seed(state)
        name = f"after-{state}"
        folder = run(tmp_path, nodes=CLIENTS, strategy="fedavg", run_name=name, **few)
        rounds = summary(folder)["per_round"]
        tested.append([sorted(r["client_accuracy"]) for r in rounds])
    assert tested[0] == tested[1]
