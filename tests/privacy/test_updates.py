"""What a client's update tells of its task and labels: by made-up clients like it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from atlas_flwr.cli import properties, sketches, updates
from atlas_flwr.cli.attack import main
from atlas_flwr.cli.command import run_words
from atlas_flwr.cli.properties import Properties
from atlas_flwr.cli.recorded import recordings
from atlas_flwr.cli.updates import MadeUp, changed, check_updates
from atlas_flwr.client_apps.batches import ClientBatches
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import RunConfig
from atlas_flwr.data import load_task, make_shard, resolve_model
from atlas_flwr.errors import ConfigError, DataError
from atlas_flwr.lora import AdapterState, LoraFactors
from atlas_flwr.privacy import Recording
from atlas_flwr.privacy.starts import keep_start, kept_start
from atlas_flwr.remedies.wire_recording import WIRE
from atlas_flwr.report import RunFolder
from atlas_flwr.seeds import derive_seed
from atlas_flwr.split import SplitPlan
from tests.runs_on_devices import losses

KEYS = {"clustering": "none", "record-wire": True, "run-name": "run"}
FOLDED = {"a": LoraFactors(torch.ones(1, 2), torch.ones(2, 1), 2.0)}


def test_a_made_up_client_with_a_clients_own_texts_changes_what_that_client_did(
    tmp_path,
):
    losses(tmp_path, **KEYS, model="tiny-bert", defence="nopeek:1", **{"num-rounds": 2})
    folder = RunFolder.open(tmp_path / "run")
    config, source = folder.config(), resolve_model("tiny-bert")
    kept = recordings(folder)
    assert sorted((r.client, r.round) for r in kept) == [*product("01", (1, 2))]
    for start in kept:
        me = Identity(int(start.client), 2, None)
        batches = ClientBatches(config, me, source, start.round)
        task = batches.shard().task
        examples = batches.collator(task).prepared(batches.shard().train)
        seed = derive_seed(config.seed, "train", start.round, me.index)
        nobodys = Properties([], {}, {}, frozenset())
        middle = kept_start(folder.path / WIRE, start.client, start.round)
        found = MadeUp(config, start, middle, nobodys, 0).update(task, examples, seed)
        sent = changed(start, start.update)
        assert np.abs(sent).max() > 1e-3
        assert found == pytest.approx(sent, abs=1e-6)


def test_texts_are_drawn_in_any_balance_and_are_nobodys():
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
        ({}, 2, r"no update of round 2 was kept; there are of \[1\]"),
        ({}, None, "not kept what the trunk began round 1 with"),
    ],
)
def test_what_cannot_be_made_up_is_refused(tmp_path, keys, number, why):
    kept = Recording("0", 1, SplitPlan(1, 1), AdapterState(), [], [])
    kept = replace(kept, update=AdapterState())
    with pytest.raises(DataError, match=why):
        check_updates(RunConfig(**keys), [kept], tmp_path, number)


def test_the_starts_of_the_last_four_rounds_of_a_client_are_kept(tmp_path):
    for number in (1, 3, 5, 6, 9, 10):
        for client in ("1", "11", "1-1"):
            value = {"a": np.full(2, number, np.float32)}
            state = AdapterState(dense=value, folded=FOLDED)
            keep_start(tmp_path, client, number, state)
    for client in ("1", "11", "1-1"):
        found = [kept_start(tmp_path, client, n) for n in range(1, 11)]
        assert [i + 1 for i, one in enumerate(found) if one] == [5, 6, 9, 10]
        assert found[8].dense["a"].tolist() == [9, 9]
        assert found[8].folded["a"].delta().tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("left", [b"", b"garbage", 200, -1])
def test_a_file_that_came_damaged_is_named_and_nobody_told_to_unpickle(tmp_path, left):
    keep_start(tmp_path, "1", 3, AdapterState({}, {"a": np.ones(99, np.float32)}))
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(left if isinstance(left, bytes) else path.read_bytes()[:left])
    with pytest.raises(DataError, match=r"1-3\.npz is damaged.*record-wire") as told:
        kept_start(tmp_path, "1", 3)
    assert "pickle" not in str(told.value)


def test_a_server_that_is_killed_leaves_no_half_of_a_start(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(file, **arrays):
        file.write(b"half")
        raise Killed

    monkeypatch.setattr(np, "savez", killed)
    with pytest.raises(Killed):
        keep_start(tmp_path, "1", 3, AdapterState())
    assert kept_start(tmp_path, "1", 3) is None


def test_clients_that_start_alike_are_compared_with_the_same_shadows():
    def start(value, head=1, middle=0.0, folded=None):
        dense = {"a": np.full(2, value, np.float32)}
        state = AdapterState(dense=dense, folded=folded or {})
        kept = Recording("0", 2, SplitPlan(head, 1), state, [], [])
        return updates._start(kept, AdapterState(dense={"b": np.full(1, middle)}))

    assert start(1) == start(1)
    more = [start(2), start(1, head=2), start(1, middle=1.0), start(1, folded=FOLDED)]
    assert len({start(1), *more}) == 5


def test_a_round_without_updates_to_attack_is_refused(tmp_path):
    words = ["attack", str(tmp_path), "--attacks", "linear", "--round", "2"]
    with pytest.raises(ConfigError, match="--round 2: is of update alone"):
        main(words[1:])


@pytest.mark.slow
def test_a_run_is_attacked_by_the_updates_that_it_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(properties, "PUBLIC", ("spam",))
    monkeypatch.setattr(updates, "SHADOWS", 8)
    more = {"train-examples": 32, "local-steps": 4, "num-rounds": 2}
    losses(tmp_path, **KEYS, **more)
    words = ["attack", str(tmp_path / "run"), "--attacks", "update", "--round", "2"]
    assert run_words(words) == 0
    task, balance = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert (task["target"], balance["target"]) == ("task", "balance")
    assert task["baseline"] == pytest.approx(1 / 3)
    assert task["token_accuracy"] == 1
    assert 0 < balance["baseline"] <= 1


@pytest.mark.parametrize(("most", "wanted"), [(10, 10), (0, 8 * 3 * 2)])
def test_clients_of_a_whole_share_are_made_up_with_what_a_round_draws(
    most, wanted, monkeypatch
):
    own = {"tasks": "movies", "train_examples": most, "local_steps": 3, "accumulate": 2}
    config = RunConfig(model="tiny", batch_size=8, **own)
    trained = []
    monkeypatch.setattr(
        MadeUp, "update", lambda _, task, given, seed: trained.append(given) or [0.0]
    )
    known = SimpleNamespace(names=["movies"], told=frozenset())
    shadows = MadeUp(config, None, AdapterState(), known, 0).shadows["movies"]
    assert {len(given) for given in trained} == {wanted}
    assert np.isfinite(shadows.shares).all()


def test_where_clients_have_the_first_texts_others_are_made_up_of_further_ones():
    task = load_task("questions")

    def told(count):
        shards = (make_shard(c, 2, [task], train_examples=count) for c in range(2))
        return frozenset(e.text for shard in shards for e in shard.train)

    first, second = properties.public_halves(task, told(300), 0)
    assert min(len(first), len(second)) > 32
    assert told(300).isdisjoint(e.text for e in (*first, *second))
    with pytest.raises(DataError, match="the clients' own, and none are left"):
        properties.public_halves(task, told(0), 0)


def test_where_clients_have_all_texts_it_is_said_before_longer_work(monkeypatch):
    given = {"tasks": "questions", "train_examples": 0}
    folder = SimpleNamespace(config=lambda: RunConfig(**given), partitions=lambda: 2)
    with pytest.raises(DataError, match="task questions"):
        properties.check_public(folder, "01")
    properties.check_public(folder, "0")  # the other's are not known to be anybody's
    monkeypatch.setattr(sketches, "_sent", lambda _: {"0": None, "1": None})
    with pytest.raises(DataError, match="task questions"):
        sketches.check_sketches(folder)
