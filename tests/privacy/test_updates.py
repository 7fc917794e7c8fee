"""What a client's update tells of its task and labels: by made-up clients like it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.cli import properties, updates
from atlas_flwr.cli.command import run_words
from atlas_flwr.cli.properties import Properties
from atlas_flwr.cli.recorded import recordings
from atlas_flwr.cli.updates import MadeUp, changed, check_updates
from atlas_flwr.client_apps.batches import ClientBatches
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import RunConfig
from atlas_flwr.data import resolve_model
from atlas_flwr.errors import DataError
from atlas_flwr.lora import AdapterState
from atlas_flwr.privacy import Recording
from atlas_flwr.report import RunFolder
from atlas_flwr.seeds import derive_seed
from atlas_flwr.split import SplitPlan
from tests.runs_on_devices import losses

KEYS = {"clustering": "none", "record-wire": True, "run-name": "run"}


def test_a_made_up_client_with_a_clients_own_texts_changes_what_that_client_did(
    tmp_path,
):
    losses(tmp_path, **KEYS, model="tiny-bert", defence="nopeek:1")
    folder = RunFolder.open(tmp_path / "run")
    config, source = folder.config(), resolve_model("tiny-bert")
    for start in recordings(folder):
        me = Identity(int(start.client), 2, None)
        batches = ClientBatches(config, me, source, 1)
        task = batches.shard().task
        examples = batches.collator(task).prepared(batches.shard().train)
        seed = derive_seed(config.seed, "train", 1, me.index)
        nobodys = Properties([], {}, {}, frozenset())
        found = MadeUp(config, start, nobodys, 0).update(task, examples, seed)
        sent = changed(start, start.update)
        assert np.abs(sent).max() > 1e-3
        assert found == pytest.approx(sent, abs=1e-6)


def test_texts_are_drawn_in_any_balance_and_are_nobodys():
    from atlas_flwr.data import load_task

    task = load_task("spam")
    first, second = properties.public_halves(task, frozenset(), 0)
    told = frozenset(e.text for e in first[:5])
    without = properties.public_halves(task, told, 0)
    assert told.isdisjoint(e.text for half in without for e in half)
    assert {e.text for e in first}.isdisjoint(e.text for e in second)
    rng = np.random.default_rng(0)
    drawn = [properties.in_some_balance(task, first, 40, rng) for _ in range(40)]
    shares = np.array([properties.shares_of(task, one)[0] for one in drawn])
    assert {len(one) for one in drawn} == {40}
    assert min(shares) < 0.2 < 0.8 < max(shares)


@pytest.mark.parametrize(
    ("keys", "number", "why"),
    [
        ({"adapter": "ia3"}, 1, "LoRA's adapters alone"),
        ({"split": "vanilla"}, 1, "sends the labels"),
        ({"summary_positions": 2}, 1, "makes up none"),
        ({}, 2, "no update of round 1"),
    ],
)
def test_what_cannot_be_made_up_is_refused(keys, number, why):
    kept = Recording("0", number, SplitPlan(1, 1), AdapterState(), [], [])
    kept = replace(kept, update=AdapterState())
    with pytest.raises(DataError, match=why):
        check_updates(RunConfig(**keys), [kept])


@pytest.mark.slow
def test_a_run_is_attacked_by_the_updates_that_it_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(properties, "PUBLIC", ("spam",))
    monkeypatch.setattr(updates, "SHADOWS", 8)
    losses(tmp_path, **KEYS, **{"train-examples": 32, "local-steps": 4})
    words = ["attack", str(tmp_path / "run"), "--attacks", "update"]
    assert run_words(words) == 0
    task, balance = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert (task["target"], balance["target"]) == ("task", "balance")
    assert task["baseline"] == pytest.approx(1 / 3)
    assert task["token_accuracy"] == 1
    assert 0 < balance["baseline"] <= 1
