"""Whole runs on a local Grid: a tiny model, the real apps, and a trunk in process."""

from __future__ import annotations

import json
import math
import shutil
from importlib import resources
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from flwr.app import MessageType
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from atlas_flwr.budget import client_memory
from atlas_flwr.client_apps.app import app
from atlas_flwr.client_apps.batches import ClientBatches
from atlas_flwr.config import load_config
from atlas_flwr.data import (
    CausalCollator,
    ClassifierCollator,
    in_order,
    load_task,
    make_shard,
    resolve_model,
    tokenizer_of,
)
from atlas_flwr.errors import AtlasError, ConfigError, ResumeError
from atlas_flwr.report import RunFolder
from atlas_flwr.server_apps.checkpoint import load_checkpoint
from atlas_flwr.server_apps.run import Run
from atlas_flwr.testing import local_grid
from atlas_flwr.train.evaluation import evaluate
from atlas_flwr.train.weights import ModelFiles
from tests.read_keys import read_by

NODES = 4
BASE = {
    "model": "tiny",
    "trunk": "local",
    "tasks": "questions,movies",
    "num-rounds": 2,
    "local-steps": 2,
    "train-examples": 16,
    "test-examples": 8,
    "fingerprint-batches": 4,
    "learning-rate": 0.01,
}


class Killed(BaseException):
    """What ends a process: no ClientApp or strategy catches it."""


def run(folder, intercept=None, nodes=NODES, node_configs=None, **changes) -> RunFolder:
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    clusters = {"num-clusters": 2} if "strategy" not in changes else {}
    base = read_by(given.get("strategy", "atlas"), BASE)
    config = {**base, **clusters, "runs-dir": str(folder), **given}
    with local_grid(app, nodes, config, node_configs, intercept) as grid:
        begun = Run.begin(config, given)
        begun.execute(grid)
    return begun.folder


def summary(folder: RunFolder):
    return json.loads(folder.summary_path.read_text())


def accuracies(folder: RunFolder):
    rounds = summary(folder)["per_round"]
    return [(r["round"], r["client_accuracy"], r["mean_loss"]) for r in rounds]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs"), num_rounds=3)


def test_a_run_says_what_it_held_back_and_with_flat_rounds_false_holds_nothing(
    unbroken, tmp_path
):
    told = [r["held_back"] for r in summary(unbroken)["per_round"]]
    assert told[:2] == [0, 0]
    assert 0 < told[-1] < 0.2
    all_sent = summary(run(tmp_path, num_rounds=3, flat_rounds=False))
    assert not any(r["held_back"] for r in all_sent["per_round"])
    down = [s["per_round"][-1]["bytes_down"] for s in (summary(unbroken), all_sent)]
    assert down[0] < down[1]


def test_a_run_leaves_its_folder(unbroken):
    found = {path.name for path in unbroken.path.iterdir()}
    expected = {"config.yaml", "metrics.jsonl", "summary.json", "report.html"}
    assert found >= expected | {"adapters", "checkpoint"}
    told = summary(unbroken)
    assert told["clusters"].keys() == {"0", "1", "2", "3"}
    assert told["true_tasks"]["1"] == "movies"
    assert told["bytes_up"] > 0
    assert told["plans"]["0"] == "4/1"
    assert told["ranks"]["0"] == 8
    assert set(told["codecs"].values()) == {"raw"}  # of auto, in one process
    for client, cluster in told["clusters"].items():
        shares = told["memberships"][client]
        assert max(shares, key=shares.get) == str(cluster)
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_training_lowers_the_loss(unbroken):
    losses = [r["mean_loss"] for r in summary(unbroken)["per_round"]]
    assert losses[-1] < losses[0] - 0.1


def arrays(folder: RunFolder):
    found = load_checkpoint(folder.checkpoint_dir)
    return {key: torch.from_numpy(value) for key, value in found.state.items()}


@pytest.mark.parametrize(
    "moment",
    [MessageType.TRAIN, pytest.param(MessageType.EVALUATE, marks=pytest.mark.slow)],
)
def test_a_killed_run_continues_to_the_numbers_of_an_unbroken_one(
    unbroken, tmp_path, moment
):
    def kill(message):
        config = next(iter(message.content.config_records.values()))
        third = config.get("server-round") == 3
        late = third and message.metadata.dst_node_id > 1_010
        if late and message.metadata.message_type == moment:
            raise Killed
        return "deliver"

    with pytest.raises(Killed):
        run(tmp_path, kill, num_rounds=3, run_name="broken")
    folder = tmp_path / "broken"
    assert not (folder / "adapters").exists()
    continued = run(tmp_path, resume=str(folder), num_rounds=3)
    assert continued.path == folder
    assert accuracies(continued) == accuracies(unbroken)
    expected, got = arrays(unbroken), arrays(continued)
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


@pytest.mark.parametrize(
    "strategy",
    ["fedavg", "local", pytest.param("centralized", marks=pytest.mark.slow)],
)
def test_baselines_resume_too(tmp_path, strategy):
    whole = run(tmp_path, strategy=strategy, run_name="whole")
    run(tmp_path, strategy=strategy, run_name="part", num_rounds=1)
    part = tmp_path / "part"
    continued = run(tmp_path, strategy=strategy, resume=str(part), num_rounds=2)
    assert accuracies(continued) == accuracies(whole)


def test_centralized_pools_the_texts_of_those_who_are_drawn(tmp_path, monkeypatch):
    """Else a fraction of 1/2 would be a bound that has never seen half of the texts."""
    pooled, read, own = [], [], ClientBatches.shard

    def seen(self, owner=None):
        if owner is not None:
            read.append(str(owner))
        return own(self, owner)

    def intercept(message):
        if message.metadata.message_type == MessageType.TRAIN:
            pooled.append(message.content["config"]["pooled-clients"])
        return "deliver"

    monkeypatch.setattr(ClientBatches, "shard", seen)
    given = {"fraction_train": 0.5, "min_train_nodes": 2, "num_rounds": 4}
    run(tmp_path, intercept, strategy="centralized", **given)
    assert [len(clients) for clients in pooled] == [2] * 4
    assert len(set().union(*pooled)) > 2
    assert read == [client for clients in pooled for client in clients]


@pytest.mark.parametrize(
    "strategy", ["fedavg", pytest.param("fedprox", marks=pytest.mark.slow)]
)
def test_a_secure_run_learns_what_a_plain_one_does_and_tells_less(tmp_path, strategy):
    given = {"strategy": strategy, "num_rounds": 2}
    plain = summary(run(tmp_path, **given, run_name="plain"))
    folder = run(tmp_path, **given, secure_aggregation=True, run_name="secure")
    secure = summary(folder)
    for before, after in zip(plain["per_round"], secure["per_round"], strict=True):
        assert after["mean_loss"] == pytest.approx(before["mean_loss"], rel=1e-5)
        assert after["failures"] == 0
    assert {r["event"] for r in folder.records()}.isdisjoint({"client-trained"})
    assert plain["bytes_up"] < secure["bytes_up"] < 2.2 * plain["bytes_up"]
    assert (folder.path / "report.html").exists()


def test_a_secure_run_resumes_to_the_same_numbers(tmp_path):
    given = {"strategy": "fedavg", "secure_aggregation": True}
    whole = run(tmp_path, **given, run_name="whole")
    run(tmp_path, **given, run_name="part", num_rounds=1)
    part = str(tmp_path / "part")
    continued = run(tmp_path, strategy="fedavg", resume=part, num_rounds=2)
    assert accuracies(continued) == accuracies(whole)


def test_what_a_limit_cuts_is_told_once_and_by_the_run(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        "atlas_flwr.data.lengths.log", lambda _, *told: said.append(told)
    )
    rows = [{"q": "why " * n, "a": "so"} for n in range(1, 40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = "kind: generation\nformat: jsonl\npath: rows.jsonl\n"
    (tmp_path / "own.yaml").write_text(text + 'prompt: "{q}"\nresponse: "{a}"\n')

    class Ended:
        def get_node_ids(self):
            raise InterruptedError

    tasks = {"tasks": str(tmp_path / "own.yaml"), "max-length": 16, "model": "tiny"}
    begun = Run.begin({**tasks, "runs-dir": str(tmp_path)})
    assert said == []  # the command has checked the same, and told nothing
    with pytest.raises(InterruptedError):
        begun.execute(Ended())
    assert len(said) == 1


def test_a_resumed_run_with_other_settings_is_refused(unbroken, tmp_path):
    with pytest.raises(ResumeError, match="learning-rate"):
        run(tmp_path, resume=str(unbroken.path), learning_rate=0.5)


def test_a_key_that_is_named_must_agree_even_at_its_default(unbroken, tmp_path):
    rate = load_config({}).learning_rate
    with pytest.raises(ResumeError, match="learning-rate: given 0"):
        run(tmp_path, resume=str(unbroken.path), learning_rate=rate)


def test_a_finished_run_resumed_without_a_number_of_rounds_trains_no_more(tmp_path):
    folder = run(tmp_path, strategy="fedavg", num_rounds=1)
    config = {"model": "tiny", "strategy": "fedavg", "resume": str(folder.path)}
    assert load_config(config).num_rounds > 1
    with local_grid(app, NODES, run_config=config) as grid:
        Run.begin(config, config.keys()).execute(grid)
    rounds = [r["round"] for r in folder.records() if r["event"] == "round-ended"]
    assert rounds == [0, 1]
    assert summary(folder)["finished"]


def test_a_run_that_is_given_more_rounds_knows_how_many(tmp_path):
    folder = run(tmp_path, strategy="fedavg", num_rounds=1)
    run(tmp_path, strategy="fedavg", num_rounds=3, resume=str(folder.path))
    assert folder.config().num_rounds == 3
    assert len(accuracies(folder)) == 4
    with pytest.raises(ResumeError, match="num-rounds=2: the run has done 3 rounds"):
        run(tmp_path, strategy="fedavg", num_rounds=2, resume=str(folder.path))


def test_a_finished_run_goes_on_from_its_end_however_far_apart_checkpoints_are(
    tmp_path,
):
    """Its clients know of that checkpoint, and keep what goes with it."""
    known = []

    def watch(message):
        (entries,) = message.content.config_records.values()
        if message.metadata.message_type == MessageType.TRAIN:
            known.append((entries["server-round"], [*entries["saved-rounds"]]))
        return "deliver"

    given = {"strategy": "fedavg", "checkpoint_every": 4}
    folder = run(tmp_path, watch, num_rounds=1, **given)
    run(tmp_path, watch, num_rounds=2, resume=str(folder.path), **given)
    events = [e for e in folder.records() if e["event"] in ("run-started", "run-ended")]
    assert [event["round"] for event in events] == [0, 1, 1, 2]
    assert load_checkpoint(folder.checkpoint_dir).round == 2
    assert known == [(1, [0])] * NODES + [(2, [0, 1])] * NODES
    whole = run(tmp_path, num_rounds=2, **given)
    assert accuracies(folder) == accuracies(whole)


def test_a_run_that_goes_on_leaves_no_adapters_of_clusters_that_are_no_more(tmp_path):
    done = run(tmp_path, num_rounds=1)
    former = done.path / "adapters" / "7"
    shutil.copytree(done.path / "adapters" / "0", former)
    run(tmp_path, resume=str(done.path), num_rounds=2)
    now = {path.name for path in (done.path / "adapters").iterdir()}
    assert now == set(map(str, summary(done)["clusters"].values()))


def test_a_run_does_not_go_on_with_another_number_of_clients(tmp_path):
    folder = run(tmp_path, strategy="fedavg", num_rounds=1)
    with pytest.raises(ResumeError, match="dealt to 4 clients, and now it is 6"):
        run(tmp_path, nodes=6, strategy="fedavg", num_rounds=2, resume=str(folder.path))


def check_exported(folder, model, batch=16):
    """By PEFT alone, on the whole model, adapters score as in the run's last round."""
    source, told = resolve_model(model), summary(folder)
    tasks = [load_task(name) for name in ("questions", "movies")]
    for client in range(NODES):
        if source.kind == "causal":
            whole = AutoModelForCausalLM.from_pretrained(source.path)
        else:
            whole = AutoModelForSequenceClassification.from_pretrained(
                source.path, num_labels=6
            )
        path = folder.adapter_dir(told["clusters"][str(client)])
        loaded = PeftModel.from_pretrained(whole, str(path))
        shard = make_shard(
            client, NODES, tasks, train_examples=16, test_examples=8, seed=0
        )
        made = CausalCollator if source.kind == "causal" else ClassifierCollator
        collate = made(tokenizer_of(source), shard.task, 48)
        found = evaluate(
            loaded, in_order(shard.test, collate, batch), collate.label_ids
        )
        last = [
            record
            for record in folder.records()
            if record["event"] == "client-evaluated" and record["client"] == str(client)
        ][-1]
        assert found.accuracy == last["accuracy"]
        assert found.loss == pytest.approx(last["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("model", "split", "aggregation"),
    [
        ("tiny", "u-shaped", "both"),
        pytest.param("tiny", "u-shaped", "fold", marks=pytest.mark.slow),
        ("tiny", "vanilla", "truncate"),
        ("tiny-bert", "u-shaped", "fold"),
        ("tiny-bert", "vanilla", "both"),
    ],
)
def test_exported_adapters_on_the_whole_model_score_as_the_split_run_did(
    tmp_path, model, split, aggregation
):
    given = {"model": model, "split": split, "aggregation": aggregation}
    check_exported(run(tmp_path, **given, local_steps=4), model)


def sizes_of(*choices):
    """Budgets that just hold the given (head, rank)."""
    config = load_config(BASE)
    architecture = ModelFiles.of(config).outline().architecture(config.target_list)
    return [
        client_memory(
            architecture, head=head, tail=1, rank=rank, batch=8, length=48
        ).total
        for head, rank in choices
    ]


def test_devices_get_the_ranks_and_cuts_that_they_hold(tmp_path):
    choices = (1, 2), (1, 4), (1, 8), (3, 8)
    devices = ",".join(f"{size}B" for size in sizes_of(*choices))
    given = {"devices": devices, "device_order": "cycle", "ranks": "device"}
    folder = run(tmp_path, **given, num_rounds=1)
    told = summary(folder)
    for client, (head, rank) in enumerate(choices):
        assert told["plans"][str(client)] == f"{head}/1"
        assert told["ranks"][str(client)] == rank
    assert math.isfinite(told["per_round"][-1]["mean_loss"])


def test_devices_get_the_cuts_that_they_are_to_have(tmp_path):
    sizes = sizes_of((4, 8), (4, 8))
    devices = ",".join(f"{size}B" for size in sizes)
    given = {"devices": devices, "cut": "1/1,4/1", "device_order": "cycle"}
    told = summary(run(tmp_path, **given, num_rounds=1))
    assert [told["plans"][str(c)] for c in range(4)] == ["1/1", "4/1"] * 2


def test_small_devices_adapt_their_most_important_layers_and_learn(tmp_path):
    small, large = sizes_of((1, 1), (4, 8))
    devices = f"{small}B,{large}B"
    folder = run(tmp_path, devices=devices, device_order="cycle", local_steps=4)
    told = summary(folder)
    assert {told["plans"][c] for c in ("0", "2")} == {"1/1"}
    assert {told["plans"][c] for c in ("1", "3")} == {"4/1"}
    loss = [r["mean_loss"] for r in told["per_round"]]
    assert loss[-1] < loss[0] - 0.1


@pytest.mark.parametrize(("ranks", "rank"), [("budget", 0), ("device", 2)])
def test_a_device_that_holds_nothing_is_told_what_would_do(tmp_path, ranks, rank):
    def intercept(message):
        pytest.fail("a client was asked before the devices were looked at")

    least = sizes_of((1, rank))[0] / 2**20
    with pytest.raises(AtlasError, match=f"takes {least:.1f} MiB"):
        run(tmp_path, intercept, devices="100KiB", ranks=ranks)


def test_a_run_in_which_nobody_can_work_ends_at_once(tmp_path):
    with pytest.raises(AtlasError, match="out of memory"):
        run(tmp_path, lambda message: "out of memory")


def test_every_problem_of_a_configuration_is_told_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, num_rounds=0, modle="x", codec="zip", aggregation="median")
    assert len(caught.value.problems) == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategy", ["atlas", "fedavg", "local", "centralized"])
def test_one_client_alone_makes_a_run(tmp_path, strategy):
    alone = dict.fromkeys(
        ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 1
    )
    given = {"strategy": strategy, "num_rounds": 1, "num_clusters": 0}
    told = summary(run(tmp_path, nodes=1, **given, **alone))
    assert told["finished"]
    assert told["per_round"][-1]["mean_loss"] < told["per_round"][0]["mean_loss"]


def test_a_task_given_by_path_is_called_by_its_name(tmp_path):
    text = resources.files("atlas_flwr.data") / "tasks" / "questions.yaml"
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.read_text())
    folder = run(tmp_path, strategy="fedavg", num_rounds=1, tasks=f"{mine},movies")
    told = summary(folder)
    assert set(told["true_tasks"].values()) == {"mine", "movies"}
    assert set(told["per_round"][-1]["accuracy"]) == {"mine", "movies"}
    assert folder.report_path.read_text().count(str(mine)) == 1  # in the configuration


def test_two_tasks_of_one_name_are_refused(tmp_path):
    (tmp_path / "movies.yaml").write_text(
        (resources.files("atlas_flwr.data") / "tasks" / "movies.yaml").read_text()
    )
    with pytest.raises(ConfigError, match="both called movies"):
        run(tmp_path, tasks=f"movies,{tmp_path / 'movies.yaml'}")


def test_problems_of_files_texts_and_model_are_told_with_those_of_keys(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        run(
            tmp_path / "file" / "runs",
            num_rounds=0,
            codec="zip",
            tasks="questions,nosuch,/nonexist.yaml",
            model=str(tmp_path),
        )
    told = "\n".join(caught.value.problems)
    for word in ("num-rounds=0", "'zip'", "'nosuch'", "'/nonexist.yaml'", "runs-dir"):
        assert word in told
    assert f"model {str(tmp_path)!r}" in told
    assert len(caught.value.problems) == 6


def test_a_task_that_is_missing_hides_nothing_that_is_wrong_with_the_model(tmp_path):
    with pytest.raises(ConfigError) as caught:
        run(
            tmp_path,
            tasks="questions,nosuch",
            cut="9/9",
            lora_targets="nonesuch",
            max_length=4_000,
        )
    told = "\n".join(caught.value.problems)
    for word in ("'nosuch'", "max-length=4000", "lora-targets nonesuch", "9"):
        assert word in told
    assert len(caught.value.problems) == 4


def test_a_cut_and_devices_are_tried_on_the_model_though_other_keys_are_wrong(tmp_path):
    def problems(**changes):
        with pytest.raises(ConfigError) as caught:
            run(tmp_path, **changes)
        return caught.value.problems

    (rounds, cut) = problems(num_rounds=0, cut="9/9")
    assert "num-rounds" in rounds
    assert "6" in cut
    assert "9" in cut
    small = problems(devices="1KiB,1GiB,2KiB")
    assert [problem.split(":")[0] for problem in small] == [
        "devices='1KiB,1GiB,2KiB'"
    ] * 2
    assert not list(tmp_path.iterdir())


def test_one_client_failing_in_the_middle_of_a_step_leaves_a_run_that_ends(tmp_path):
    def intercept(message):
        train = message.metadata.message_type == MessageType.TRAIN
        return "died" if train and message.metadata.dst_node_id == 1_000 else "deliver"

    told = summary(run(tmp_path, intercept))
    assert [r["failures"] for r in told["per_round"]] == [0, 1, 1]
    assert told["finished"]


@pytest.mark.parametrize(
    "strategy",
    ["flexlora", "flora", "hetlora", "hsplitlora", "mira", "oracle", "splitlora"],
)
def test_every_published_method_runs_and_learns(tmp_path, strategy):
    folder = run(tmp_path, **published(strategy), nodes=2)
    loss = [r["mean_loss"] for r in summary(folder)["per_round"]]
    assert loss[-1] < loss[0]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mira", "splitlora"])
def test_published_methods_resume_too(tmp_path, strategy):
    given = published(strategy)
    whole = run(tmp_path, **given, run_name="whole")
    run(tmp_path, **given, run_name="part", num_rounds=1)
    continued = run(tmp_path, **given, resume=str(tmp_path / "part"), num_rounds=2)
    assert accuracies(continued) == accuracies(whole)


def published(strategy):
    devices = ",".join(f"{size}B" for size in sizes_of((1, 2), (4, 8)))
    more = {"mixing": 0.3} if strategy == "mira" else {}
    return {"strategy": strategy, "devices": devices, "local_steps": 4, **more}


@pytest.mark.parametrize("strategy", ["atlas", "flora"])
def test_whole_models_take_part_at_the_ranks_of_their_devices(tmp_path, strategy):
    folder = run(
        tmp_path,
        strategy=strategy,
        split="none",
        devices="1GiB,2GiB,4GiB,8GiB",
        device_order="cycle",
        local_steps=4,
    )
    told = summary(folder)
    assert told["ranks"] == {"0": 2, "1": 2, "2": 4, "3": 8}
    assert told["per_round"][-1]["mean_loss"] < told["per_round"][0]["mean_loss"]


def test_hetloras_clients_prune_their_own_layers_and_resume_so(tmp_path):
    given = {
        "strategy": "hetlora",
        "rank_decay": 0.5,
        "rank_penalty": 1.0,
        "local_steps": 4,
        "cut": "1/1",
        "ranks": "uniform",
        "nodes": 2,
    }
    whole = run(tmp_path, **given, run_name="whole", num_rounds=3)
    part = run(tmp_path, **given, run_name="part", num_rounds=2)
    limits = load_checkpoint(part.checkpoint_dir).values["rank-limits"]
    ranks = {
        side: {r for found in limits.values() for n, r in found.items() if part_of(n)}
        for side, part_of in (
            ("client", lambda name: ".0." in name or ".5." in name),
            ("trunk", lambda name: ".0." not in name and ".5." not in name),
        )
    }
    assert ranks["trunk"] == {8}
    assert 4 in ranks["client"] <= {4, 8}
    continued = run(tmp_path, **given, resume=str(tmp_path / "part"), num_rounds=3)
    assert accuracies(continued) == accuracies(whole)
    told = load_checkpoint(continued.checkpoint_dir).values["rank-limits"]
    assert told == load_checkpoint(whole.checkpoint_dir).values["rank-limits"]
    assert summary(whole)["per_round"][-1]["failures"] == 0


def test_splitloras_clients_can_train_one_adapter_on_the_server(tmp_path):
    given = {"ranks": "uniform", "lora_rank": 4, "cut": "1/1", "local_steps": 4}
    loss = {}
    for way, merge in (("own", 1), ("shared", 1), ("merged", 2)):
        folder = run(
            tmp_path,
            strategy="splitlora",
            server_adapters="own" if way == "own" else "shared",
            trunk_merge=merge,
            run_name=way,
            nodes=2,
            **given,
        )
        rounds = summary(folder)["per_round"]
        loss[way] = [r["mean_loss"] for r in rounds]
        assert loss[way][-1] < loss[way][0]
        assert rounds[-1]["failures"] == 0
    assert loss["own"][1:] != loss["shared"][1:] != loss["merged"][1:]


def test_skipped_gradients_are_counted_and_save_bytes(tmp_path):
    told = {}
    for threshold in (0.0, 1.0):
        folder = run(
            tmp_path,
            run_name=f"skip-{threshold}",
            nodes=2,
            num_rounds=1,
            num_clusters=1,
            local_steps=5,
            skip_gradients=threshold,
        )
        told[threshold] = summary(folder)["per_round"][-1]
    assert told[0.0]["skipped"] == 0 < told[1.0]["skipped"] <= 2 * 3
    assert told[1.0]["bytes_up"] < told[0.0]["bytes_up"]
    assert told[1.0]["bytes_down"] < told[0.0]["bytes_down"]
    assert told[1.0]["failures"] == 0


def test_the_trunks_learning_rate_is_its_own(tmp_path):
    def trained(name, rate):
        given = {"num_rounds": 1, "num_clusters": 1, "trunk_learning_rate": rate}
        folder = run(tmp_path, run_name=name, nodes=2, **given)
        state = arrays(folder)
        return {k: v for k, v in state.items() if k.startswith("group/0/B/")}

    same, faster = trained("same", 0.01), trained("faster", 0.05)
    middle = next(k for k in same if ".4." in k)
    assert (faster[middle] - same[middle]).norm() > 0.5 * same[middle].norm()


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """A cache folder of the test's own for what clients keep; the rest is shared."""
    from atlas_flwr.client_apps import store

    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(
        store, "clients_folder", lambda run_id: folder / "clients" / run_id
    )
    return folder


def test_personal_layers_are_never_sent_and_survive_a_killed_run(tmp_path, own_cache):
    seen = set()

    def watch(message):
        for sent in message.content.array_records.values():
            seen.update(sent.keys())
        return "deliver"

    def kill(message):
        config = next(iter(message.content.config_records.values()))
        late = message.metadata.dst_node_id > 1_010
        if late and (message.metadata.message_type, config.get("server-round")) == (
            MessageType.TRAIN,
            2,
        ):
            raise Killed
        return "deliver"

    personal = {"cut": "2/1", "personal": "tail"}
    whole = run(tmp_path, watch, run_name="whole", **personal)
    assert any(".0." in key for key in seen)
    assert not any(".5." in key for key in seen)  # the last of tiny's blocks
    with pytest.raises(Killed):
        run(tmp_path, kill, run_name="broken", **personal)
    continued = run(tmp_path, resume=str(tmp_path / "broken"))
    assert accuracies(continued) == accuracies(whole)
    assert len(list(own_cache.glob("clients/*/*/personal-2.npz"))) == 2 * NODES


def crossed(told):
    return told["bytes_up"]


@pytest.mark.parametrize(
    "given", [{"strategy": "flexlora"}, {"strategy": "atlas", "num_clusters": 2}]
)
def test_who_evaluates_has_its_personal_layers_as_who_trains(tmp_path, given):
    """Whatever the server holds of them, which is nothing."""
    named: dict[str, list[str]] = {"train": [], "evaluate": []}

    def watch(message):
        entries = next(iter(message.content.config_records.values()))
        number = int(entries.get("server-round", 0))
        kind = message.metadata.message_type
        if number == 2 and kind in named:
            named[kind].append(sorted(json.loads(entries["personal"])["ranks"]))
        return "deliver"

    run(tmp_path, watch, cut="2/1", personal="tail", **given)
    assert len(named["train"]) == len(named["evaluate"]) == NODES
    assert all(named["train"])
    assert named["evaluate"] == named["train"]


def test_personal_heads_and_classifiers_are_trained_on_from_round_to_round(
    tmp_path, own_cache
):
    run(tmp_path, model="tiny-bert", cut="2/1", personal="both")
    for client in range(NODES):
        kept = [
            np.load(path)
            for round_ in (1, 2)
            for path in own_cache.glob(f"clients/*/{client}/personal-{round_}.npz")
        ]
        first, second = kept
        assert set(first.files) == set(second.files)
        for key in ("personal/dense/classifier.weight", "personal/B/"):
            names = [name for name in first.files if name.startswith(key)]
            assert names
            assert all((first[n] != second[n]).any() for n in names)


REMEDIES = {"align": 0.5, "auxiliary_steps": 1, "prune_data": 0.5, "ema": 0.3}


# tests/golden has the losses of every remedy alone; two of them here, all when asked.
@pytest.mark.parametrize(
    "remedy",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name in ("ema", "prune_data") else ()
        )
        for name in REMEDIES
    ],
)
def test_each_remedy_changes_the_run_and_learns(unbroken, tmp_path, own_cache, remedy):
    found = summary(run(tmp_path, num_rounds=3, **{remedy: REMEDIES[remedy]}))
    plain = summary(unbroken)
    (first, *_, last), (begun, *_, ended) = found["per_round"], plain["per_round"]
    assert first["mean_loss"] == begun["mean_loss"]
    assert last["mean_loss"] != ended["mean_loss"]
    assert last["mean_loss"] < first["mean_loss"]
    if remedy == "auxiliary_steps":
        # Of two steps one crosses; fingerprints and evaluations do as ever.
        assert 0.5 * crossed(plain) < crossed(found) < 0.9 * crossed(plain)


@pytest.mark.slow
def test_a_client_prunes_once_and_a_resumed_run_prunes_alike(tmp_path, own_cache):
    whole = run(tmp_path, num_rounds=3, prune_data=0.5, run_name="whole")
    kept = [path.name for path in own_cache.glob("clients/*/*/kept-examples-*.npz")]
    assert kept == ["kept-examples-2.npz"] * NODES
    run(tmp_path, num_rounds=2, prune_data=0.5, run_name="part")
    continued = run(tmp_path, num_rounds=3, resume=str(tmp_path / "part"))
    assert accuracies(continued) == accuracies(whole)


def test_a_run_tells_of_a_key_that_was_given_in_vain(tmp_path, caplog, monkeypatch):
    given = {"lora-rank": 4}
    begun = Run.begin({**BASE, **given, "runs-dir": str(tmp_path)}, given)
    monkeypatch.setattr(ModelFiles, "of", Mock(side_effect=Killed))  # goes no further
    with pytest.raises(Killed):
        begun.execute(Mock())
    assert "lora-rank has no effect: ranks='budget'" in caplog.text
