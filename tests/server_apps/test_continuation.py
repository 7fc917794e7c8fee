# SPDX-License-Identifier: Apache-2.0
"""Keys of a resumed run are judged beside what it began with, not beside defaults."""

from __future__ import annotations

import pytest

from atlas_flwr.client_apps.app import app
from atlas_flwr.config import load_config
from atlas_flwr.data import make_shard
from atlas_flwr.data.tasks import read_examples
from atlas_flwr.errors import AtlasError, ConfigError, ResumeError
from atlas_flwr.report import RunFolder
from atlas_flwr.server_apps.checks import checked_config
from atlas_flwr.server_apps.continuation import left_behind
from atlas_flwr.server_apps.run import Run
from atlas_flwr.testing import local_grid
from atlas_flwr.trunk.transports.access import Access

KEYS = {"model": "tiny", "tasks": "spam"}


@pytest.fixture
def access(tmp_path):
    """Write the file of a trunk elsewhere."""
    path = tmp_path / "access.json"
    Access("grpcs://a.example.org:7001", "", "s" * 32).write(path)
    return str(path)


@pytest.fixture
def resumed(tmp_path):
    """Check a resumed run that began with some keys."""

    def check(began, **given):
        keys = {**KEYS, "runs-dir": str(tmp_path), **began}
        folder = RunFolder.create(load_config(keys))
        asked = {key.replace("_", "-"): value for key, value in given.items()}
        asked["resume"] = str(folder.path)
        return checked_config(asked, asked)

    return check


@pytest.mark.parametrize(
    ("began", "given"),
    [
        ({"strategy": "mira", "mixing": 0.5}, {"strategy": "mira"}),
        ({"quorum": 0.5, "staleness-cutoff": 2}, {"staleness_cutoff": 2}),
        ({"accumulate": 4}, {"in_flight": 2}),
        ({"run-name": "mine"}, {"trunk_limit": "1GiB", "trunk_metrics": 9100}),
        ({"trunk": "grpc"}, {"trunk_listen": "127.0.0.1:7001"}),
    ],
)
def test_a_key_that_fits_the_run_is_taken(resumed, began, given):
    found = resumed(began, **given)
    assert {key: getattr(found, key) for key in given} == given
    for key, value in began.items():
        assert getattr(found, key.replace("-", "_")) == value


OWN_TRUNK = {
    "trunk": "ray",
    "trunk-batch": 4,
    "trunk-device": "cpu",
    "trunk-limit": "1GiB",
    "trunk-metrics": 9100,
    "trunk-queue": "fair",
    "trunk-recompute": True,
    "trunk-replicas": 2,
    "trunk-threads": 3,
}


@pytest.mark.parametrize(
    "began",
    [
        OWN_TRUNK,
        {
            "trunk": "grpc",
            "trunk-advertise": "a.example.org",
            "trunk-client-ca": "no longer there.crt",
            "trunk-listen": "0.0.0.0:1",
            "trunk-rate": 9,
        },
    ],
)
def test_a_run_that_goes_on_with_a_trunk_elsewhere_leaves_its_own_trunks_keys(
    resumed, began, access
):
    found = resumed({**began, "local-steps": 3}, trunk_access=access)
    left = {key.replace("-", "_") for key in began} - {"trunk"}
    default = load_config({"tasks": "spam", "model": "tiny"})
    assert {k: getattr(found, k) for k in left} == {
        k: getattr(default, k) for k in left
    }
    assert found.trunk == ("auto" if began["trunk"] == "ray" else "grpc")
    assert (found.local_steps, found.trunk_access) == (3, access)


def test_a_key_of_its_own_trunk_that_is_named_beside_one_elsewhere_is_refused(
    resumed, access
):
    with pytest.raises(ConfigError, match="trunk-batch=2: the trunk of trunk-access"):
        resumed(OWN_TRUNK, trunk_access=access, trunk_batch=2)


def test_what_a_run_leaves_for_a_trunk_elsewhere_is_told(access):
    told = left_behind({"trunk-access": access}, load_config(OWN_TRUNK | KEYS))
    assert told == OWN_TRUNK
    assert left_behind({}, load_config(OWN_TRUNK | KEYS)) == {}


@pytest.mark.parametrize(
    ("began", "given", "said"),
    [
        ({"trunk": "peers", "peer-memory": "1GiB"}, {"trunk_replicas": 2}, "a sim"),
        ({"strategy": "fedavg"}, {"trunk_limit": "1GiB"}, "does not read it"),
        ({"split": "none"}, {"trunk_queue": "fair"}, "there is no trunk"),
        ({"accumulate": 2}, {"in_flight": 4}, "accumulate=2 makes one"),
        ({}, {"trunk_quue": "fair"}, "did you mean trunk-queue"),
    ],
)
def test_a_key_that_the_run_would_not_read_is_refused(resumed, began, given, said):
    with pytest.raises(ConfigError, match=said):
        resumed(began, **given)


def test_minima_of_an_app_are_not_a_runs_that_had_them_lowered(tmp_path):
    began = {**KEYS, "runs-dir": str(tmp_path), "min-train-nodes": 4}
    folder = RunFolder.create(load_config(began))
    asked = {"resume": str(folder.path), "min-train-nodes": 8}
    assert checked_config(asked).min_train_nodes == 4
    with pytest.raises(ResumeError, match="min-train-nodes: given 8, began with 4"):
        checked_config(asked, asked)


def test_a_key_that_does_not_agree_is_named_as_such(resumed):
    with pytest.raises(ResumeError, match="accumulate: given 2, began with 4"):
        resumed({"accumulate": 4}, accumulate=2)


@pytest.mark.slow
def test_a_run_resumed_with_another_file_ends_with_its_name(tmp_path, monkeypatch):
    where = "atlas_flwr.client_apps.store.clients_folder"
    monkeypatch.setattr(where, lambda run_id: tmp_path / "clients" / run_id)
    rows, task = tmp_path / "rows.csv", tmp_path / "mine.yaml"
    head = "kind: generation\nformat: csv\npath: rows.csv\n"
    task.write_text(head + 'prompt: "{q} is "\nresponse: "{a}"\n')

    def trained(answer, **more):
        rows.write_text("q,a\n" + "".join(f"{n},{answer}\n" for n in range(16)))
        read_examples.cache_clear()
        make_shard.__globals__["_made"].cache_clear()
        given = {"model": "tiny", "trunk": "local", "strategy": "fedavg", **more}
        given |= {"tasks": str(task), "runs-dir": str(tmp_path), "local-steps": 1}
        with local_grid(app, 2, given) as grid:
            begun = Run.begin(given, given)
            begun.execute(grid)
        return begun.folder

    path = str(trained("yes", **{"num-rounds": 1}).path)
    again = trained("yes", **{"num-rounds": 2, "resume": path})
    assert "has changed" not in (again.path / "metrics.jsonl").read_text()
    with pytest.raises(AtlasError):
        trained("no", **{"num-rounds": 3, "resume": path})
    assert "rows.csv has changed" in (again.path / "metrics.jsonl").read_text()
