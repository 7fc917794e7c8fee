"""Runs that record their wire, and the verb that reads their texts from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from atlas_flwr.cli.attack import usual_attacks
from atlas_flwr.cli.command import run_words
from atlas_flwr.cli.recorded import cases, recordings
from atlas_flwr.cli.undefended import without_defence
from atlas_flwr.config import RunConfig
from atlas_flwr.data import load_task, make_shard, resolve_model, tokenizer_of
from atlas_flwr.privacy import ATTACKS
from atlas_flwr.privacy.attacks.reader import LinearReader
from atlas_flwr.report import RunFolder
from tests.runs_on_devices import ATLAS, losses

FIELDS = {
    "attack",
    "adversary",
    "defence",
    "cut",
    "tokens",
    "token_accuracy",
    "exact_texts",
    "baseline",
    "interval",
}


def recorded(root, **changes) -> RunFolder:
    longer = {"max-length": 40, "learning-rate": 0.001}
    given = {**ATLAS, **longer, "run-name": "run", "record-wire": True, **changes}
    losses(root, **given)
    return RunFolder.open(root / "run")


def told(folder):
    """Return all that its events tell of losses and of bytes."""
    keys = ("train_loss", "loss", "bytes_up", "accuracy")
    return [[event.get(key) for key in keys] for event in folder.records()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("runs"), **{"record-wire": False})


def test_recording_changes_no_number_of_a_run(folder, plain):
    assert told(folder) == told(plain)


def test_what_is_recorded_are_the_clients_texts(folder):
    tokenizer = tokenizer_of(resolve_model("tiny"))
    tasks = [load_task(name) for name in ("questions", "movies")]
    found = recordings(folder)
    assert [r.client for r in found] == ["0", "1"]
    for recording in found:
        assert len(recording.truths) == 2 * 4  # steps and rows
        client = int(recording.client)
        shard = make_shard(client, 2, tasks, train_examples=8, test_examples=4)
        own = [tokenizer(example.text)["input_ids"] for example in shard.train]
        for truth, seen in zip(recording.truths, recording.observations, strict=True):
            assert any(truth.ids[:12].tolist() == known[:12] for known in own)
            assert len(seen.hidden) == len(truth.ids) == len(seen.gradient)


def test_nothing_of_it_stays_in_the_cache(folder):
    from atlas_flwr.data.cache import clients_folder

    assert not list(clients_folder(folder.run_id()).glob("*/wire-*"))


def test_the_report_and_the_log_say_that_text_lies_there(folder):
    assert "record-wire=true: the clients&#39; texts" in folder.report_path.read_text()


def attacked(folder, *words):
    assert run_words(["attack", str(folder.path), "--texts", "6", *words]) == 0
    return json.loads((folder.path / "privacy.json").read_text())


def test_an_attack_reads_the_texts_and_writes_what_it_read(folder, capsys):
    found = attacked(folder, "--attacks", "linear,verified,label-gradient")
    assert [one["attack"] for one in found] == ["linear", "verified", "label-gradient"]
    for one in found:
        assert one.keys() >= FIELDS
        assert one["adversary"].startswith("passive server")
        assert one["token_accuracy"] > 0.95 > one["baseline"]
        assert one["upper_bound"] == 1
        assert one["interval"][0] <= one["token_accuracy"] <= one["interval"][1]
    assert found[1]["exact_texts"] == found[1]["texts"] == 6
    said = capsys.readouterr().out
    assert "what attacks tell, beside a guess and the most there was" in said
    assert "What attacks told of this run" in folder.report_path.read_text()
    again = attacked(folder, "--attacks", "linear")
    assert again == found[:1]


def test_what_a_defence_hid_is_made_anew_as_it_was(folder, monkeypatch):
    monkeypatch.setattr("atlas_flwr.cli.recorded.TEXTS_KNOWN", 6)
    (case,) = cases(folder.config(), recordings(folder), 16, 0)
    hidden = [replace(o, hidden=torch.zeros_like(o.hidden)) for o in case.seen]
    found = without_defence(replace(case, seen=hidden), lambda: case.knowledge)
    first = min(o.step for o in case.seen)
    pairs = [p for p in zip(case.seen, found.seen, strict=True) if p[0].step == first]
    assert len(pairs) == 2 * 4  # clients and rows: none has stepped yet
    for seen, made in pairs:
        assert torch.allclose(made.hidden, seen.hidden, atol=1e-5)


@pytest.mark.slow
def test_an_encoders_texts_are_read_too(tmp_path, capsys):
    found = attacked(
        recorded(tmp_path, model="tiny-bert"), "--attacks", "linear,verified"
    )
    assert [one["attack"] for one in found] == ["linear"]
    assert found[0]["token_accuracy"] > 0.8
    assert "verified at cut 2/1: left out, it is for causal models" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_a_run_of_unlike_tasks_is_read_for_what_each_has(tmp_path):
    changes = {"tasks": "questions,dialog", "defence": "gaussian:0.3"}
    words = "gradient-matching,label-completion,linear"
    folder = recorded(tmp_path, **changes)
    found = attacked(folder, "--attacks", words)
    assert [one["target"] for one in found] == ["response", "label", "text"]
    assert found[0]["token_accuracy"] > 0.9
    assert [one["texts"] for one in found] == [3, 3, 6]
    assert [one["upper_bound"] for one in found] == [1, 1, 1]
    (case,) = cases(folder.config(), recordings(folder), 6, 0)
    clean = case.undefended().attacked(ATTACKS["gradient-matching"], 0)
    assert clean.token_accuracy == 1
    assert found[2]["rouge_l"] > found[2]["rouge_l_of_another"]


@pytest.mark.slow
def test_a_vanilla_split_hides_no_more(tmp_path):
    (found,) = attacked(
        recorded(tmp_path, split="vanilla"), "--attacks", "verified,label-gradient"
    )
    assert found["attack"] == "verified"
    assert found["token_accuracy"] > 0.95


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--attacks", "linear,telepathy"), "'telepathy' is no attack; there are"),
        (("--attacks", ""), "'' is no attack"),
        (("--attacks", "linear,linear"), "names linear more than once"),
        (("--texts", "0"), "texts=0: at least 1"),
        (("--known", ""), "name different tasks"),
        (("--known", "spam,spam"), "name different tasks"),
        (("--known", "spam", "--attacks", "traffic"), "is read by linear, verified"),
    ],
)
def test_what_is_wrong_is_said(folder, capsys, words, said):
    assert run_words(["attack", str(folder.path), *words]) == 1
    assert said in capsys.readouterr().err


def test_a_run_without_a_record_says_how_to_make_one(plain, capsys):
    assert run_words(["attack", str(plain.path)]) == 1
    assert "Run it anew with record-wire=true" in capsys.readouterr().err


def test_a_run_whose_model_moved_is_attacked_where_it_lies(folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(folder.path, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("model: tiny", "model: /no/such"))
    was = config.read_text()
    words = ["attack", str(copy), "--attacks", "verified", "--texts", "2"]
    assert run_words(words) == 1
    said = capsys.readouterr().err
    assert "/no/such" in said
    assert "say where with --model" in said
    assert run_words([*words, "--model", "/nowhere"]) == 1
    said = capsys.readouterr().err
    assert "/nowhere" in said
    assert "say where with --model" not in said
    assert run_words([*words, "--model", str(resolve_model("tiny").path)]) == 0
    assert config.read_text() == was
    assert run_words([*words, "--model", "tiny", "--tasks", "movies"]) == 1
    assert "the run's tasks are questions, movies" in capsys.readouterr().err


def test_what_takes_long_is_tried_where_nothing_else_can_read():
    assert set(ATTACKS) - set(usual_attacks(RunConfig())) == {"writer"}
    assert set(usual_attacks(RunConfig(summary_positions=2))) == set(ATTACKS)


def test_a_linear_reader_finds_the_map_that_made_its_texts():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 8, generator=generator)
    turned = torch.randn(8, 12, generator=generator)

    def text():
        ids = torch.randint(50, (20,), generator=generator)
        return SimpleNamespace(ids=ids, hidden=table[ids] @ turned)

    reader = LinearReader([text() for _ in range(10)], table, first=False)
    new = text()
    assert torch.equal(reader.scores(new.hidden).argmax(1), new.ids)


def test_every_attack_says_what_it_does_and_who_can():
    for name, attack in ATTACKS.items():
        assert attack.name == name
        assert len(attack.about.split()) > 5
        assert attack.adversary.who in str(attack.adversary)
