"""A client that is left out has left nothing: its run is one in which it never was."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from atlas_flwr.client_apps.app import app
from atlas_flwr.errors import ConfigError
from atlas_flwr.protocol import keys
from atlas_flwr.server_apps import minima
from atlas_flwr.server_apps.checkpoint import load_checkpoint
from atlas_flwr.server_apps.run import Run
from atlas_flwr.testing import local_grid
from tests.server_apps.test_run import BASE, run, summary

NAMES = ("unlearned", "never")


def test_a_run_without_a_client_has_the_bits_of_one_in_which_it_never_was(tmp_path):
    """Few are drawn at first, so that clusters are made anew once all are known."""
    few = {"fraction_train": 0.5, "without_clients": "1"}
    unlearned = run(tmp_path, **few, run_name="unlearned")
    drawn = {"num-clusters": 2, "fraction-train": 0.5}
    config = {**BASE, **drawn, "runs-dir": str(tmp_path), "run-name": "never"}
    places = [{"partition-id": at, "num-partitions": 4} for at in (0, 2, 3)]
    with local_grid(app, 3, run_config=config, node_configs=places) as grid:
        Run.begin(config).execute(grid)
    assert summary(unlearned)["clusters"].keys() == {"0", "2", "3"}
    one, other = (load_checkpoint(tmp_path / n / "checkpoint") for n in NAMES)
    assert one.state.keys() == other.state.keys()
    for key, value in one.state.items():
        np.testing.assert_array_equal(value, other.state[key])


def test_a_name_that_nobody_has_is_refused_where_all_are_known(tmp_path):
    with pytest.raises(ConfigError, match="names nobody, and there is no such client"):
        run(tmp_path, nodes=2, without_clients="nobody", num_rounds=1, local_steps=1)


def test_a_name_that_nobody_has_is_told_where_clients_may_still_come(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(minima, "may_come_later", lambda grid: True)
    with caplog.at_level(logging.WARNING):
        run(tmp_path, nodes=2, without_clients="nobody", num_rounds=1, local_steps=1)
    assert "without-clients: nobody here is nobody" in caplog.text


def test_centralized_cannot_do_without_one(tmp_path):
    with pytest.raises(ConfigError, match="without-clients"):
        run(tmp_path, strategy="centralized", without_clients="1")


@pytest.mark.parametrize("nodes", [1, 4])
def test_no_run_waits_for_clients_that_cannot_come(tmp_path, caplog, nodes):
    left_out = ",".join(map(str, range(1, nodes)))
    with caplog.at_level(logging.WARNING):
        folder = run(tmp_path, nodes=nodes, without_clients=left_out, num_rounds=1)
    assert summary(folder)["clusters"].keys() == {"0"}
    assert "min-available-nodes is lowered from 2 to 1" in caplog.text


def test_nor_for_one_that_cannot_say_who_it_is(tmp_path, caplog):
    def mute(message):
        asked = message.metadata.message_type == keys.DESCRIBE
        last = message.metadata.dst_node_id == 1_000 + 7
        return "no texts" if asked and last else "deliver"

    given = {"strategy": "fedavg", "num_rounds": 1, "nodes": 2}
    with caplog.at_level(logging.WARNING):
        folder = run(tmp_path, mute, **given)
    assert summary(folder)["final"]["client_accuracy"].keys() == {"0"}
    assert "min-available-nodes is lowered from 2 to 1" in caplog.text
    with pytest.raises(ConfigError, match="with 2 clients, of whom 1 take part"):
        run(tmp_path, mute, **given, min_available_nodes=2)
    # Whom the run leaves out by name, too, is not counted twice.
    run(tmp_path, mute, **given, without_clients="1", min_available_nodes=1)


def test_nor_for_more_than_were_asked_for_by_name(tmp_path):
    told = "min-train-nodes=3 with 4 clients, of whom 2 take part.*lower it to 2"
    with pytest.raises(ConfigError, match=told):
        run(tmp_path, without_clients="1,2", min_train_nodes=3)
    with pytest.raises(ConfigError, match="leaves none of the 4 clients"):
        run(tmp_path, without_clients="0,1,2,3")


@pytest.mark.parametrize(("nodes", "more"), [(1, {}), (3, {"without_clients": "1,2"})])
def test_clusters_larger_than_all_clients_are_refused(tmp_path, nodes, more):
    """Though the minima that nobody asked for are lowered."""
    told = f"min-cluster-size=2 with {nodes} clients.*lower it to 1 at most, or have"
    with pytest.raises(ConfigError, match=told):
        run(tmp_path, nodes=nodes, num_clusters=0, min_cluster_size=2, **more)
