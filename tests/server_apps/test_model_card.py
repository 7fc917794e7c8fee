"""An exported folder says all that is needed to use it without this library."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from atlas_flwr.config import load_config
from atlas_flwr.data import load_task, make_shard, resolve_model
from atlas_flwr.data.models import _hub_name
from atlas_flwr.server_apps.model_card import ModelCard
from atlas_flwr.train.weights import ModelFiles
from tests.server_apps.test_run import NODES, run, summary


def loaded(path):
    """Load by what the folder says, with Transformers and PEFT alone."""
    name = PeftConfig.from_pretrained(path).base_model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(name)
    if (path / "config.json").is_file():
        config = AutoConfig.from_pretrained(path)
        base = AutoModelForSequenceClassification.from_pretrained(name, config=config)
    else:
        base = AutoModelForCausalLM.from_pretrained(name)
    return tokenizer, PeftModel.from_pretrained(base, str(path)).eval()


def label_of(text, tokenizer, model, told, max_length):
    """Answer as the card says; return the number of the class."""
    if model.config.architectures and "Causal" in model.config.architectures[0]:
        before, after = told["template"].split("{text}")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ends = [
            tokenizer(p, add_special_tokens=False)["input_ids"] for p in (before, after)
        ]
        room = max_length - len(ends[0]) - len(ends[1])
        row = torch.tensor([[*ends[0], *ids[:room], *ends[1]]])
        words = [tokenizer(f" {w}", add_special_tokens=False) for w in told["labels"]]
        columns = [word["input_ids"][0] for word in words]
        return int(model(input_ids=row).logits[0, -1, columns].argmax())
    made = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
    return int(model(**made).logits[0, : len(told["labels"])].argmax())


@pytest.fixture(scope="module", params=["tiny", "tiny-bert"])
def exported(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("runs")
    return run(folder, model=request.param, local_steps=4, num_rounds=1)


def test_a_folder_alone_gives_the_runs_accuracy(exported):
    tasks = {name: load_task(name) for name in ("questions", "movies")}
    clusters = summary(exported)["clusters"]
    for client in range(NODES):
        path = exported.adapter_dir(str(clusters[str(client)]))
        given = json.loads((path / "tasks.json").read_text())
        shard = make_shard(
            client, NODES, [*tasks.values()], train_examples=16, test_examples=8, seed=0
        )
        told = next(t for t in given["tasks"] if t["name"] == shard.task.name)
        parts = *loaded(path), told, given["max_length"]
        right = [label_of(e.text, *parts) == e.label for e in shard.test]
        last = [
            record["accuracy"]
            for record in exported.records()
            if record["event"] == "client-evaluated" and record["client"] == str(client)
        ][-1]
        assert sum(right) / len(right) == last


def test_a_folder_tells_its_clients_tasks_and_labels_in_their_order(exported):
    clients = [r for r in exported.records() if r["event"] == "client-evaluated"]
    clusters = summary(exported)["clusters"]
    for path in (exported.path / "adapters").iterdir():
        given = json.loads((path / "tasks.json").read_text())
        members = {c for c, found in clusters.items() if str(found) == path.name}
        names = {("questions", "movies")[int(c) % 2] for c in members}
        assert clients
        assert {task["name"] for task in given["tasks"]} == names
        card = (path / "README.md").read_text()
        for name in names:
            labels = [f"{i}. {word}" for i, word in enumerate(load_task(name).labels)]
            assert f"## {name}" in card
            assert "\n".join(labels) in card


def test_a_classifiers_configuration_names_as_many_outputs_as_it_has(tmp_path):
    folder = run(tmp_path, model="tiny-bert", local_steps=2, num_rounds=1, nodes=2)
    for path in (folder.path / "adapters").iterdir():
        config = AutoConfig.from_pretrained(path)
        _, model = loaded(path)
        rows = model.base_model.model.classifier.modules_to_save["default"].weight.shape
        assert config.num_labels == rows[0] == len(config.id2label) == 6
        assert {v: k for k, v in config.id2label.items()} == config.label2id


def test_a_card_loads_a_base_whose_own_classifier_has_other_classes(
    tmp_path, monkeypatch
):
    base = resolve_model("tiny-bert").path
    stored = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    stored.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "base")
    given = {"model": str(tmp_path / "base"), "tasks": "questions"}
    files = ModelFiles.of(load_config(given))
    (tmp_path / "0").mkdir()
    ModelCard(files, [load_task("questions")], 48).write(tmp_path / "0")
    card = (tmp_path / "0" / "README.md").read_text()
    code = card.split("```python")[1].split("model = PeftModel")[0]
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    assert found["base"].classifier.out_features == 6


def test_a_folder_of_the_hubs_cache_is_named_as_on_the_hub(tmp_path):
    cached = tmp_path / "models--org--some-model" / "snapshots" / "0a1b"
    assert _hub_name(cached) == "org/some-model"
    assert _hub_name(tmp_path / "mine") == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"summary_positions": 3, "cut": "2/1"}, "`summary.safetensors` has learned"),
        ({"personal": "tail", "cut": "2/1"}, "adapters of the tail stayed with"),
        ({"cut": "2/1"}, ""),
    ],
)
def test_a_card_says_what_peft_does_not_load(tmp_path, given, said):
    folder = run(tmp_path, num_rounds=1, nodes=2, **given)
    for path in (folder.path / "adapters").iterdir():
        card = (path / "README.md").read_text()
        assert said in card
        assert ("Beside PEFT" in card) == (path / "summary.safetensors").is_file()
        assert ("**Not here:**" in card) == ("personal" in given)
