"""Runs with tasks to be answered by text, beside tasks with classes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from atlas_flwr.client_apps.app import app
from atlas_flwr.client_apps.round import profile_of
from atlas_flwr.config import load_config
from atlas_flwr.data import load_examples, load_task, resolve_model, tokenizer_of
from atlas_flwr.data.responses import GenerationCollator
from atlas_flwr.errors import ConfigError
from atlas_flwr.protocol.profile import Profile
from atlas_flwr.server_apps.assignment import DeviceRule
from atlas_flwr.server_apps.checks import checked_config
from atlas_flwr.server_apps.run import Run
from atlas_flwr.testing import local_grid
from atlas_flwr.train.weights import ModelFiles
from tests.data.templates import CHATML
from tests.read_keys import read_by

FILE = """
kind: generation
format: jsonl
path: rows.jsonl
prompt: "Count after {start}: "
response: "{start} and one more"
"""
BASE = {
    "model": "tiny",
    "trunk": "local",
    "local-steps": 6,
    "batch-size": 4,
    "max-length": 40,
    "train-examples": 16,
    "test-examples": 4,
    "fingerprint-batches": 2,
    "fingerprint-parts": 2,
    "learning-rate": 0.02,
}
SHARED = {"share-samples": 1}


@pytest.fixture
def task(tmp_path):
    rows = [json.dumps({"start": f"number {n}"}) for n in range(80)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "counting.yaml").write_text(FILE)
    return str(tmp_path / "counting.yaml")


def finished(folder, **changes):
    base = read_by(changes.get("strategy", "atlas"), BASE)
    config = {**base, "runs-dir": str(folder / "runs"), **changes}
    with local_grid(app, 4, run_config=config) as grid:
        begun = Run.begin(config)
        begun.execute(grid)
    return begun.folder


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "atlas"},
        pytest.param({"strategy": "atlas", "split": "vanilla"}, marks=pytest.mark.slow),
        pytest.param({"strategy": "fedavg"}, marks=pytest.mark.slow),
        pytest.param({"strategy": "splitlora"}, marks=pytest.mark.slow),
    ],
    ids=lambda keys: "-".join(keys.values()),
)
def test_writing_and_classifying_are_learned_in_one_run(tmp_path, task, keys):
    folder = finished(tmp_path, tasks=f"{task},spam", **{"num-rounds": 2}, **keys)
    summary = json.loads((folder.path / "summary.json").read_text())
    first, *_, last = summary["per_round"]
    assert summary["finished"]
    now, before = last["loss"]["counting"], first["loss"]["counting"]
    assert now < before - 0.05
    assert last["perplexity"] == pytest.approx({"counting": exp(now)})
    assert 0 < summary["majority"]["counting"] < 0.5
    assert "spam" in last["balanced_accuracy"]
    cards = [json.loads(p.read_text()) for p in folder.path.rglob("tasks.json")]
    told = {t["name"]: t for card in cards for t in card["tasks"]}
    assert told["counting"]["response"] == "{start} and one more"
    assert (folder.path / "report.html").is_file()


def talking(folder):
    """Save the small model with a chat template; return the folder."""
    source = resolve_model("tiny", progress=False)
    path = Path(shutil.copytree(source.path, folder / "talking"))
    tokenizer = tokenizer_of(source)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def talks(tmp_path):
    """Conversations of two speakers."""
    rows = [
        {
            "who": f"speaker {n % 2}",
            "messages": [
                {"role": "user", "content": f"Is it {n}?"},
                {"role": "assistant", "content": "It is."},
                {"role": "user", "content": f"And {n + 1}?"},
                {"role": "assistant", "content": "It is not."},
            ],
        }
        for n in range(60)
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = "kind: generation\nformat: jsonl\npath: talks.jsonl\nmessages: messages\n"
    more = "chat: true\nsystem: Be brief.\nclient: who\n"
    (tmp_path / "talks.yaml").write_text(text + more)
    return str(tmp_path / "talks.yaml")


@pytest.fixture
def texts(tmp_path):
    """A folder of texts, longer than a row."""
    (tmp_path / "texts").mkdir()
    for n in range(24):
        text = f"Chapter {n}.\n" + "The rose is red, and the grass is green. " * 3
        (tmp_path / "texts" / f"{n}.txt").write_text(text)
    text = "kind: completion\nformat: folder\npath: texts\n"
    (tmp_path / "texts.yaml").write_text(text)
    return str(tmp_path / "texts.yaml")


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "atlas"},
        pytest.param(
            {"strategy": "hetlora", "split": "vanilla"}, marks=pytest.mark.slow
        ),
        pytest.param({"strategy": "flora", "split": "none"}, marks=pytest.mark.slow),
    ],
    ids=lambda keys: "-".join(keys.values()),
)
def test_conversations_and_texts_are_learned_in_one_run(tmp_path, talks, texts, keys):
    model = talking(tmp_path)
    both = {"tasks": f"{talks},{texts}", "model": model, "max-length": 48}
    few = {"num-rounds": 1, "test-examples": 3, "local-steps": 5}
    folder = finished(tmp_path, **both, **few, **keys)
    summary = json.loads((folder.path / "summary.json").read_text())
    first, last = summary["per_round"]
    for task in ("talks", "texts"):
        assert last["loss"][task] < first["loss"][task] - 0.05
        assert last["perplexity"][task] == pytest.approx(exp(last["loss"][task]))
    cards = [json.loads(p.read_text()) for p in folder.path.rglob("tasks.json")]
    told = {t["name"]: t for card in cards for t in card["tasks"]}
    assert told["talks"]["messages"] == "messages"
    assert told["texts"]["prompt"] == "{text}"


@pytest.mark.parametrize(
    "keys",
    [
        {"strategy": "atlas"},
        pytest.param({"strategy": "fedavg"}, marks=pytest.mark.slow),
    ],
    ids=lambda keys: keys["strategy"],
)
def test_answers_are_scored_before_the_first_round_and_after_the_last(
    tmp_path, task, keys
):
    Path(task).write_text(FILE + "scores: [rouge_l, exact_match]\n")
    few = {"num-rounds": 2, "score-examples": 2, "score-tokens": 8, "local-steps": 2}
    folder = finished(tmp_path, tasks=f"{task},spam", **few, **keys, **SHARED)
    summary = json.loads((folder.path / "summary.json").read_text())
    first, between, last = summary["per_round"]
    for told in (first, last):
        assert set(told["rouge_l"]) == set(told["exact_match"]) == {"counting"}
        assert len(told["client_scores"]) == 2
    assert between["rouge_l"] == {}
    assert summary["untrained"].keys() == {"counting", "spam"}
    asked = {(one["client"], one["prompt"]) for one in summary["samples"]}
    assert len(asked) == 2
    assert all(one["prompt"].startswith("Count after") for one in summary["samples"])
    assert "Samples" in (folder.path / "report.html").read_text()


def test_no_text_leaves_a_client_unless_it_is_asked_to(tmp_path, task):
    Path(task).write_text(FILE + "scores: rouge_l\n")
    few = {"num-rounds": 1, "score-examples": 1, "score-tokens": 4, "local-steps": 1}
    folder = finished(tmp_path, tasks=f"{task},spam", **few)
    assert "Count after number" not in folder.metrics_path.read_text()
    assert json.loads((folder.path / "summary.json").read_text())["samples"] == []


def test_no_more_is_shown_than_is_written(task):
    with pytest.raises(ConfigError, match="only 2 answers are written"):
        checked_config({**BASE, "tasks": task, "score-examples": 2, "share-samples": 3})


def test_speakers_are_too_few_for_so_many_clients(tmp_path, talks):
    keys = {**BASE, "tasks": talks, "model": talking(tmp_path)}
    with pytest.raises(ConfigError, match="`client: who` has 2 values in 60 examples"):
        checked_config(keys, clients=3)
    with pytest.raises(ConfigError, match="leave label-skew out"):
        checked_config({**keys, "label-skew": 0.5})


@pytest.mark.parametrize(
    "keys",
    [{"prune-data": 0.5}, {"label-skew": 0.5}, {"summary-positions": 2}],
    ids=lambda keys: next(iter(keys)),
)
def test_what_needs_classes_is_refused_at_once(task, keys):
    with pytest.raises(ConfigError, match=f"{next(iter(keys))}: is for tasks with"):
        checked_config({**BASE, "tasks": task, **keys})


def test_the_memory_model_counts_logits_of_the_fullest_step_of_responses(task):
    config = load_config({**BASE, "devices": "1GiB", "cut": "2/1", "tasks": task})
    files = ModelFiles.of(config)
    rule = DeviceRule.of(config, files.outline())
    loaded = load_task(task)
    collate = GenerationCollator(tokenizer_of(files.source), loaded, 40)
    batch = collate(load_examples(loaded))
    counts = (batch.labels != -100).sum(1).float()
    assert counts.mean() <= rule.logits_to_keep - 1 <= counts.max() < 40 - 1


def test_a_client_with_a_limit_tells_its_fullest_step_and_is_given_ranks_by_it(task):
    config = load_config({**BASE, "devices": "1GiB", "tasks": task})
    context = Context(0, 0, {"partition-id": 1, "num-partitions": 4}, RecordDict(), {})
    profile = profile_of(config, context)
    assert Profile.from_record(profile.to_record()) == profile
    rule = DeviceRule.of(config, ModelFiles.of(config).outline())
    # Long answers take from ranks what their logits need.
    least = replace(rule, logits_to_keep=301).peak(1, {}).total
    ranks = [
        sum(rule(replace(profile, memory=least, labels=labels), {}).ranks.values())
        for labels in (0, 1, profile.labels, 300)
    ]
    assert ranks[1] >= ranks[2] > ranks[3]
    assert ranks[1] >= ranks[0] > ranks[3]
    unlimited = profile_of(load_config({**BASE, "tasks": task}), context)
    assert unlimited.labels == 0
