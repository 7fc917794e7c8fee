"""Runs in which few clients take part in a round, and are known one after the other."""

from __future__ import annotations

import json

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
