"""Runs in which something fails: none looks like a success, and none loses anything."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager

import numpy as np
import pytest
from flwr.app import MessageType

from atlas_flwr.client_apps.app import app
from atlas_flwr.errors import RoundError, TrunkLost
from atlas_flwr.protocol import keys
from atlas_flwr.server_apps import run as runs
from atlas_flwr.server_apps.checkpoint import load_checkpoint
from atlas_flwr.server_apps.run import Run
from atlas_flwr.testing import local_grid
from atlas_flwr.trunk.transports import local
from tests.server_apps.test_run import BASE, NODES, accuracies, run, summary


def failing(kind, nodes=range(NODES), since=1, reason="out of paper"):
    def intercept(message):
        config = next(iter(message.content.config_records.values()))
        number = (message.metadata.dst_node_id - 1_000) // 7
        late = int(config.get("server-round", 0)) >= since
        hit = late and message.metadata.message_type == kind and number in nodes
        return reason if hit else "deliver"

    return intercept


def only_run(folder):
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A run that nothing befell; bytes count paths, so others go beside it."""
    return run(tmp_path_factory.mktemp("runs"), run_name="intact")


@pytest.mark.parametrize(
    "strategy",
    [
        "atlas",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("fedprox", "local", "mira", "centralized")
        ),
    ],
)
def test_a_round_in_which_nobody_could_train_ends_the_run(tmp_path, strategy, intact):
    given = {} if strategy == "atlas" else {"strategy": strategy}
    given |= {"mixing": 0.5} if strategy == "mira" else {}
    with pytest.raises(RoundError, match=r"none of \d clients.*out of paper"):
        run(tmp_path, failing(MessageType.TRAIN, since=2), **given)
    left = only_run(tmp_path)
    assert not (left / "adapters").exists()
    continued = run(tmp_path, **given, resume=str(left))
    unbroken = run(tmp_path / "other", **given) if given else intact
    assert accuracies(continued) == accuracies(unbroken)


def test_so_does_one_in_which_nobody_could_be_evaluated(tmp_path):
    with pytest.raises(RoundError, match="evaluate: none of 4 clients"):
        run(tmp_path, failing(MessageType.EVALUATE))


def test_and_one_in_which_nobody_has_a_fingerprint(tmp_path):
    with pytest.raises(RoundError, match="fingerprint: none of 4 clients"):
        run(tmp_path, failing("query.fingerprint"))


def test_who_comes_to_a_resumed_run_and_has_none_takes_nobody_along(tmp_path, caplog):
    kept = {"num_clusters": 1, "min_available_nodes": 3}
    absent = failing(keys.DESCRIBE, nodes=(3,), since=0)
    part = run(tmp_path, absent, **kept, num_rounds=1)
    mute = failing(keys.FINGERPRINT, nodes=(3,))
    with caplog.at_level(logging.WARNING):
        run(tmp_path, mute, **kept, resume=str(part.path), num_rounds=2)
    assert "fingerprint: 1 of 1 clients FAILED: client 3: out of paper" in caplog.text
    assert summary(part)["finished"]


def test_who_failed_is_said_aloud_and_recorded(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        folder = run(tmp_path, failing(MessageType.TRAIN, nodes=(1, 2)))
    named = "client 1: out of paper; client 2: out of paper"
    assert f"train: 2 of 4 clients FAILED: {named}" in caplog.text
    assert summary(folder)["finished"]
    told = [e for e in folder.records() if e["event"] == "client-failed"]
    assert [(e["round"], e["client"]) for e in told] == [
        (n, client) for n in (1, 2) for client in "12"
    ]
    assert {(e["kind"], e["reason"]) for e in told} == {("train", "out of paper")}


@pytest.mark.parametrize(
    ("error", "said", "why"),
    [
        ("ActorDiedError", "The worker is gone", "for want of memory"),
        ("OutOfMemoryError", "The worker is gone", "for want of memory"),
        (
            "ActorDiedError",
            "The actor died unexpectedly.\nIt died because its node has died.",
            "with its machine",
        ),
    ],
)
def test_a_dead_worker_ends_the_run_that_flower_would_go_on_with(
    tmp_path, error, said, why
):
    reason = f"<class 'ray.exceptions.{error}'>:<'{said}'>"
    with pytest.raises(RoundError, match=f"worker of the simulation has died.*{why}"):
        run(tmp_path, failing(MessageType.TRAIN, nodes=(3,), reason=reason))


@pytest.mark.parametrize("strategy", ["atlas", "fedavg"])
def test_a_run_that_moved_no_number_is_not_finished(tmp_path, strategy):
    given = {"num_clusters": 1} if strategy == "atlas" else {"strategy": strategy}
    with pytest.raises(RoundError, match="learned nothing"):
        run(tmp_path, **given, learning_rate=1e-45, num_rounds=1, tasks="movies")
    assert not (only_run(tmp_path) / "adapters").exists()
    events = (only_run(tmp_path) / "metrics.jsonl").read_text().splitlines()
    assert "run-ended" not in {json.loads(line)["event"] for line in events}


class Mortal:
    """A trunk's host that can die, as an actor does."""

    def __init__(self, host):
        self._host = host
        self._is_dead = False

    def __getattr__(self, name):
        if self._is_dead:
            raise TrunkLost("the trunk is gone (killed by a test)")
        return getattr(self._host, name)

    def die(self):
        self._is_dead = True
        local._ADDRESSES.update(dict.fromkeys(local._ADDRESSES, self))


def mortal_runs(monkeypatch, kills, kind=MessageType.TRAIN):
    """Let the trunk die at the given messages of a kind, counted over the run."""
    found, seen = [], []
    trunk_of = runs.trunk_of

    @contextmanager
    def started(setting, grid):
        with trunk_of(setting, grid) as endpoint:
            found.append(Mortal(endpoint.host))
            yield endpoint._replace(host=found[-1])

    def intercept(message):
        if message.metadata.message_type == kind:
            seen.append(message)
            if len(seen) in kills:
                found[-1].die()
        return "deliver"

    monkeypatch.setattr(runs, "trunk_of", started)
    return intercept, found


def adapters(folder):
    return load_checkpoint(folder.checkpoint_dir).state


@pytest.mark.parametrize(
    "kills",
    [(7,), *(pytest.param(kills, marks=pytest.mark.slow) for kills in ((1,), (5, 12)))],
)
def test_a_trunk_that_dies_is_started_again_and_the_numbers_stay(
    monkeypatch, kills, intact
):
    intercept, found = mortal_runs(monkeypatch, kills)
    beside = intact.path.parent
    broken = run(beside, intercept, run_name=f"kill{len(kills)}{kills[0]}")
    assert len(found) == 1 + len(kills)
    assert accuracies(broken) == accuracies(intact)
    expected, got = adapters(intact), adapters(broken)
    assert expected.keys() == got.keys()
    assert all(np.array_equal(got[key], value) for key, value in expected.items())
    # Of a round that was repeated only the try that stands is counted.
    for key in ("bytes_up", "bytes_down", "failures"):
        counted = [[r[key] for r in summary(f)["per_round"]] for f in (broken, intact)]
        assert counted[0] == counted[1], key
    lines = (broken.path / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    told = [event for event in events if event["event"] == "trunk-restarted"]
    assert len(told) == summary(broken)["trunk_restarts"] == len(kills)
    assert all("killed by a test" in event["reason"] for event in told)
    assert summary(intact)["trunk_restarts"] == 0


@pytest.mark.parametrize("kill", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_trunk_that_dies_before_the_first_round_is_started_again(
    tmp_path, monkeypatch, kill
):
    unbroken = run(tmp_path, run_name="intact", num_rounds=1)
    intercept, found = mortal_runs(monkeypatch, (kill,), MessageType.EVALUATE)
    broken = run(tmp_path, intercept, run_name="broken", num_rounds=1)
    assert len(found) == 2
    assert accuracies(broken) == accuracies(unbroken)
    events = [json.loads(line) for line in broken.metrics_path.open()]
    (lost,) = (e for e in events if e["event"] == "trunk-restarted")
    assert lost["round"] == -1  # not even the evaluation before the first was done
    # A run that waits for another trunk goes on: what it did stays told, and its time.
    assert [e["event"] for e in events].count("run-started") == 1
    lasted = events[-1]["time"] - events[0]["time"]
    assert summary(broken)["wall_seconds"] == pytest.approx(lasted)


def test_a_trunk_that_dies_too_often_ends_the_run_with_one_error(tmp_path, monkeypatch):
    intercept, found = mortal_runs(monkeypatch, (1, 2, 3, 4, 5, 6))
    with pytest.raises(TrunkLost, match="the trunk is gone"):
        run(tmp_path, intercept, trunk_restarts=1)
    assert len(found) == 2


def test_clusters_are_told_again_after_a_resumption(tmp_path):
    folder = run(tmp_path, num_rounds=1)
    config = {"resume": str(folder.path), "num-rounds": 2}
    with local_grid(app, NODES) as grid:
        Run.begin(config, given=config).execute(grid)
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    again = len(events) - 1 - events[::-1].index("run-started")
    assert "clustered" in events[again:]


@pytest.mark.parametrize(
    "told", [{"num-examples": float("nan")}, pytest.param({}, marks=pytest.mark.slow)]
)
def test_a_reply_with_senseless_metrics_is_refused_and_the_others_count(
    tmp_path, caplog, told
):
    def answered(message, context):
        reply = app(message, context)
        kind = message.metadata.message_type
        if kind == MessageType.TRAIN and context.node_config["partition-id"] == 2:
            metrics = reply.content["metrics"]
            metrics["num-examples"] = told.get("num-examples", 8.0)
            if not told:
                del metrics["steps"]
        return reply

    config = {**BASE, "num-clusters": 2, "runs-dir": str(tmp_path)}
    with caplog.at_level(logging.WARNING), local_grid(answered, NODES, config) as grid:
        begun = Run.begin(config)
        begun.execute(grid)
    assert "client 2's metrics cannot be recorded" in caplog.text
    assert ("'num-examples' is nan" in caplog.text) == bool(told)
    assert summary(begun.folder)["finished"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accuracy", float("nan")),
        pytest.param("majority", float("inf"), marks=pytest.mark.slow),
        ("confusion", [1, 2, 3]),
    ],
)
def test_an_evaluation_that_no_mean_can_be_taken_with_ends_no_run(
    tmp_path, caplog, key, value
):
    def answered(message, context):
        reply = app(message, context)
        kind = message.metadata.message_type
        if kind == MessageType.EVALUATE and context.node_config["partition-id"] == 2:
            reply.content["metrics"][key] = value
        return reply

    config = {**BASE, "num-clusters": 2, "runs-dir": str(tmp_path)}
    with caplog.at_level(logging.WARNING), local_grid(answered, NODES, config) as grid:
        begun = Run.begin(config)
        begun.execute(grid)
    assert f"client 2's metrics cannot be recorded: ValueError: {key!r}" in caplog.text
    told = summary(begun.folder)
    assert told["finished"]
    assert "2" not in told["final"]["client_accuracy"]


def test_a_trunk_that_dies_as_a_round_ends_costs_nothing_of_its_account(
    monkeypatch, intact
):
    _, found = mortal_runs(monkeypatch, ())
    save = runs.save_checkpoint

    def saved(folder, checkpoint):
        save(folder, checkpoint)
        if checkpoint.round == 1 and len(found) == 1:
            found[-1].die()

    monkeypatch.setattr(runs, "save_checkpoint", saved)
    broken = run(intact.path.parent, run_name="broken")
    assert len(found) == 2
    for key in ("bytes_up", "bytes_down", "failures"):
        counted = [[r[key] for r in summary(f)["per_round"]] for f in (broken, intact)]
        assert counted[0] == counted[1], key
