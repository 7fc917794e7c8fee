"""Telling members: areas as others count them, and members that a run really had."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from atlas_flwr.cli.command import run_words
from atlas_flwr.cli.members import trained_and_not
from atlas_flwr.cli.recorded import recordings
from atlas_flwr.config import load_config
from atlas_flwr.privacy.auc import auc
from atlas_flwr.report import RunFolder
from tests.privacy.test_attack import recorded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    longer = {"local-steps": 20, "learning-rate": 0.02}
    return recorded(tmp_path_factory.mktemp("runs"), **longer)


def test_the_area_is_the_one_that_scikit_learn_counts():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 40) + 1.0, rng.integers(0, 9, 30) + 0.0
    area, (low, high) = auc([(members, others)], 0)
    truth = [1] * 40 + [0] * 30
    assert area == pytest.approx(roc_auc_score(truth, [*members, *others]))
    assert low < area < high


def test_clients_of_unlike_tasks_are_not_compared():
    easy, hard = np.array([9.0, 8.0]), np.array([1.0, 0.0])
    assert auc([(easy, easy), (hard, hard)], 0)[0] == 0.5


def test_an_interval_of_scores_that_say_nothing_covers_a_half():
    rng = np.random.default_rng(1)
    _, (low, high) = auc([(rng.normal(size=50), rng.normal(size=50))], 0)
    assert low < 0.5 < high


def test_members_are_the_texts_that_crossed(folder):
    for recording in recordings(folder):
        batches, members, others = trained_and_not(folder, int(recording.client), 2)
        collate = batches.collator(batches.shard().task)
        crossed = {tuple(t.ids.tolist()) for t in recording.truths}
        rows = {tuple(collate([example]).input_ids[0].tolist()) for example in members}
        assert rows == crossed
        assert not set(members) & set(others)


def test_what_a_round_without_the_client_would_have_drawn_is_no_member(
    folder, tmp_path
):
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(folder.path, copy.path)
    few = replace(folder.config(), local_steps=1)  # a round draws some of all
    copy.rewrite(few)
    _, expected, _ = trained_and_not(copy, 0, 2)
    assert 0 < len(expected) <= few.batch_size
    copy.rewrite(replace(few, num_rounds=3))  # it was drawn in the first alone
    assert trained_and_not(copy, 0, 2)[1] == expected


def test_who_has_learned_by_heart_tells_its_members(folder):
    names = "membership-loss,membership-reference"
    words = ["attack", str(folder.path), "--attacks", names]
    assert run_words(words) == 0
    found = json.loads((folder.path / "privacy.json").read_text())
    for one in found:
        assert one["target"] == "member"
        assert one["adversary"] == "outsider; knows weights, adapters"
        assert one["baseline"] == 0.5
        assert one["interval"][0] <= one["token_accuracy"] <= one["interval"][1]
    assert max(one["token_accuracy"] for one in found) > 0.6
    assert "members (AUC)" in folder.report_path.read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "tiny-bert"}, "model='tiny-bert' writes no text"),
        ({"adapter": "ia3"}, "adapter='ia3': they read LoRA's adapters alone"),
        ({"summary-positions": 2}, "summary-positions=2: they write no text"),
        ({}, "it has exported no adapters"),
    ],
)
def test_a_run_without_members_to_tell_is_refused_before_any_other_attack(
    changes, said, tmp_path, capsys
):
    given = {"model": "tiny", "runs-dir": str(tmp_path), **changes}
    made = RunFolder.create(load_config(given))
    words = ["attack", str(made.path), "--attacks", "inverter,membership-loss"]
    assert run_words(words) == 1
    assert said in capsys.readouterr().err
