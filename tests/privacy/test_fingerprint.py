"""What fingerprints tell of a client's task and labels, and what noise leaves of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ArrayRecord

from atlas_flwr.cli import sketches
from atlas_flwr.cli.command import run_words
from atlas_flwr.client_apps.batches import ClientBatches
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.clustering import fingerprint_parts, noised
from atlas_flwr.config import RunConfig, load_config
from atlas_flwr.data import resolve_model
from atlas_flwr.errors import DataError
from atlas_flwr.privacy.attacks.base import Shadows
from atlas_flwr.privacy.attacks.registry import OF_SKETCHES
from atlas_flwr.privacy.scores import overlap_score
from atlas_flwr.server_apps.checkpoint import Checkpoint, save_checkpoint
from tests.runs_on_devices import ATLAS, losses

ATTACK = OF_SKETCHES["fingerprint"]
DIM, PARTS, CLASSES, COUNT = 32, 4, 3, 60


def made(task, shares, rng, epsilon=0.0):
    """Sketch clients of a task: all have a part in common, classes another each."""
    fixed = np.random.default_rng(99)
    common, tasks = fixed.standard_normal(DIM), fixed.standard_normal((3, DIM))
    classes = fixed.standard_normal((CLASSES, DIM))
    centres = common + 0.7 * tasks[task] + 0.7 * np.asarray(shares) @ classes
    noise = 0.2 * rng.standard_normal((len(shares), PARTS, DIM))
    found = centres[:, None] + noise
    if epsilon:
        found = np.stack(
            [
                noised(one / np.linalg.norm(one), epsilon, 1e-5, seed=i)
                for i, one in enumerate(found)
            ]
        )
    return found


def shadows(task, rng, epsilon=0.0):
    shares = rng.dirichlet(np.ones(CLASSES), COUNT)
    second, usual = np.arange(COUNT) % 2 == 1, np.full(CLASSES, 1 / CLASSES)
    return Shadows(made(task, shares, rng, epsilon), shares, second, usual)


def read(epsilon=0.0, clients=30):
    """Attack clients of task 1; return the share of tasks told, and the overlaps."""
    rng = np.random.default_rng(0)
    known = {str(task): shadows(task, rng, epsilon) for task in range(3)}
    shares = rng.dirichlet(np.ones(CLASSES), clients)
    sent = made(1, shares, rng, epsilon)
    told = np.mean([ATTACK.task(one, known) == "1" for one in sent])
    guesses = [ATTACK.balance(one, known["1"]) for one in sent]
    assert np.allclose([g.sum() for g in guesses], 1)
    about = dict.fromkeys(("attack", "adversary", "defence", "cut"), "")
    usual = [known["1"].usual] * clients
    return told, overlap_score(guesses, list(shares), usual, seed=0, **about)


def test_task_and_balance_are_told_by_shadows_and_hidden_by_enough_noise():
    told, found = read()
    assert told == 1
    assert found.token_accuracy > 0.9 > found.baseline + 0.15
    told, found = read(epsilon=1)
    assert told < 0.7
    assert found.token_accuracy < found.baseline + 0.05


def test_a_balance_is_ridge_regressions_whether_shadows_or_numbers_are_more():
    from sklearn.linear_model import Ridge

    from atlas_flwr.privacy.attacks.fingerprint import _weights

    rng = np.random.default_rng(0)
    for count, dim in ((30, 8), (8, 30)):
        x, y = rng.standard_normal((count, dim)), rng.standard_normal((count, 3))
        wanted = Ridge(alpha=0.5, fit_intercept=False).fit(x, y).coef_.T
        assert np.allclose(_weights(x, y, 0.5), wanted)


def test_overlaps_are_as_counted_by_hand():
    truths = [np.array([0.5, 0.5]), np.array([1.0, 0.0])]
    guesses = [np.array([0.5, 0.5]), np.array([0.25, 0.75])]
    about = dict.fromkeys(("attack", "adversary", "defence", "cut"), "")
    found = overlap_score(guesses, truths, truths[:1] * 2, seed=0, **about)
    assert (found.token_accuracy, found.baseline) == ((1 + 0.25) / 2, (1 + 0.5) / 2)
    assert (found.exact_texts, found.target) == (1, "balance")
    assert found.interval == (0.25, 1.0)


def test_a_shadow_is_sketched_as_clients_sketch():
    rng = np.random.default_rng(0)
    config = RunConfig(fingerprint_dim=16, seed=3)
    batches = [
        {"a": 5 * rng.standard_normal((4, 6)), "b": rng.standard_normal(9)}
        for _ in range(7)
    ]
    rows = np.stack([sketches._row(batch, config) for batch in batches])
    own = fingerprint_parts(batches, 3, 16, seed=3).astype(float)
    shadow = sketches._dealt(rows, 3)
    assert np.linalg.norm(shadow) == pytest.approx(1)
    assert np.allclose(own / np.linalg.norm(own), shadow, atol=0.01)


@pytest.mark.slow
def test_a_run_is_attacked_by_the_fingerprints_that_it_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sketches, "PUBLIC", ("spam",))
    monkeypatch.setattr(sketches, "BATCHES", 8)
    monkeypatch.setattr(sketches, "TEXTS", 120)
    sizes = {"train-examples": 32, "fingerprint-batches": 4, "run-name": "run"}
    losses(tmp_path, **ATLAS, **sizes)
    words = ["attack", str(tmp_path / "run"), "--attacks", "fingerprint"]
    assert run_words(words) == 0
    task, balance = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert (task["target"], balance["target"]) == ("task", "balance")
    assert task["token_accuracy"] == 1
    assert task["baseline"] == pytest.approx(1 / 3)
    assert 0 < balance["baseline"] <= 1
    assert balance["texts"] == 2


def test_where_none_were_kept_it_is_said(tmp_path):
    save_checkpoint(tmp_path, Checkpoint(1, ArrayRecord(), {}, {}))
    folder = SimpleNamespace(path=tmp_path, checkpoint_dir=tmp_path)
    with pytest.raises(DataError, match="has kept no fingerprints"):
        sketches.check_sketches(folder)


@pytest.mark.parametrize("most", [0, 24, 96, 1000])
def test_batches_that_are_made_up_are_as_large_as_the_clients(most, monkeypatch):
    given = {"model": "tiny", "tasks": "movies", "batch-size": 8}
    config = load_config({**given, "train-examples": most})
    mine = ClientBatches(config, Identity(0, 1, None), resolve_model("tiny"), 1)
    wanted = {len(batch) for batch in mine.to_sketch()}
    made_up = set()

    def drawn(task, half, count, rng):
        made_up.add(count)
        raise StopIteration

    monkeypatch.setattr(sketches, "in_some_balance", drawn)
    own = SimpleNamespace(names=["movies"], told=[])
    monkeypatch.setattr(sketches, "public_halves", lambda *_: [(), ()])
    with pytest.raises(RuntimeError):
        next(sketches._sketched(config, own, np.random.default_rng(0)))
    assert made_up == wanted
