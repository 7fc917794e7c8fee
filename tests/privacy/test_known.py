"""The texts that an attacker has are none of the clients'."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from atlas_flwr.cli.recorded import cases
from atlas_flwr.cli.strangers import told_of
from atlas_flwr.cli.traffic import _lengths
from atlas_flwr.config import load_config
from atlas_flwr.data import load_task, make_shard, resolve_model, tokenizer_of
from atlas_flwr.data.collation import collator_of
from atlas_flwr.errors import DataError
from atlas_flwr.lora import AdapterState
from atlas_flwr.privacy import ATTACKS, Observation, Recording, Truth
from atlas_flwr.split import SplitPlan
from atlas_flwr.types import NO_LABEL

KINDS = {
    "classification": "labels: {a: 'yes', b: 'no'}",
    "generation": 'prompt: "{text}"\nresponse: " {label}"',
    "completion": "",
}
TEXTS, LONGEST = 48, 40


def task_file(folder, kind):
    """Write a task: prompts have two answers, and completions several pieces."""
    times = 12 if kind == "completion" else 1
    rows = [
        {"text": f"{n:03} wonders, " * times, "label": label}
        for n in range(TEXTS)
        for label in ("ab" if kind == "generation" else "ab"[n % 2])
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)
    path = folder / "wonders.yaml"
    path.write_text(f"kind: {kind}\nformat: jsonl\npath: rows.jsonl\n{KINDS[kind]}\n")
    return str(path)


def recorded(config, shard):
    """Return what a client of these texts sends; of pieces, every second."""
    source = resolve_model("tiny")
    collate = collator_of(source, tokenizer_of(source), shard.task, config.max_length)
    truths, cut = [], int(shard.task.completes)
    for example in collate.prepared(shard.train)[cut :: 1 + cut]:
        batch = collate([example])
        truths.append(Truth(batch.input_ids[0], batch.labels[0] != NO_LABEL, 0))
    seen = [
        Observation("0", 1, n, "1/1", torch.zeros(len(one.ids), 32), None, None)
        for n, one in enumerate(truths)
    ]
    return Recording("0", 1, SplitPlan(1, 1), AdapterState(), seen, truths)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_task_of_the_clients_no_text_of_theirs_is_known(kind, tmp_path):
    name = task_file(tmp_path, kind)
    config = load_config({"model": "tiny", "tasks": name, "max-length": LONGEST})
    shard = make_shard(0, 2, [load_task(name)])
    found = recorded(config, shard)
    (case,) = cases(config, [found], 4, 0, [name])
    words = tokenizer_of(resolve_model("tiny"))
    known = {words.decode(text.ids) for text in case.knowledge.known}
    assert known
    for example in shard.train:
        assert not any(example.text[:8] in text for text in known)
    lengths = _lengths(config, [name], told_of(config, [found]), 0)[name]
    pieces = [text for text in known for _ in range(4 if kind == "completion" else 1)]
    assert len(lengths) == len(pieces)


def test_where_all_texts_are_the_clients_it_is_said(tmp_path):
    name = task_file(tmp_path, "generation")
    config = load_config({"model": "tiny", "tasks": name, "max-length": LONGEST})
    found = recorded(config, make_shard(0, 1, [load_task(name)]))
    with pytest.raises(DataError, match="are the clients' own"):
        list(cases(config, [found], 4, 0, [name]))


@pytest.mark.parametrize("sharers", [1, 2])
def test_a_client_that_has_all_texts_of_its_task_leaves_none_to_be_labelled(
    tmp_path, sharers
):
    name = task_file(tmp_path, "classification")
    config = load_config({"model": "tiny", "tasks": name, "max-length": LONGEST})
    sent = recorded(config, make_shard(0, sharers, [load_task(name)]))
    seen = [replace(one, answer=one.hidden) for one in sent.observations]
    (case,) = cases(config, [replace(sent, observations=seen)], 4, 0, ["spam"])
    told = case.attacked(ATTACKS["label-completion"], 0)
    left_out = "client 0 has the texts of its task, and leaves none of two classes"
    assert (told == left_out) == (sharers == 1)
    assert isinstance(told, str) == (sharers == 1)
