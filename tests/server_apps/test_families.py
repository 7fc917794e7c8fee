"""Runs of models given as a folder, of families that need something of their own."""

from __future__ import annotations

import json

import pytest

from atlas_flwr.config import load_config
from atlas_flwr.data import resolve_model, tokenizer_of
from atlas_flwr.server_apps.checks import find_problems
from tests.families import FAMILIES
from tests.server_apps.test_run import BASE, run


@pytest.fixture
def folder(tmp_path):
    def made(family):
        tokenizer = tokenizer_of(resolve_model("tiny", progress=False))
        model_class, config = FAMILIES[family]
        config = type(config).from_dict(
            {**config.to_dict(), "vocab_size": len(tokenizer)}
        )
        model_class(config).save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
        return str(tmp_path / family)

    return made


REMEDIED = {"auxiliary_steps": 1, "align": 0.1}
MEASURED = {"devices": "15MiB,18MiB"}


@pytest.mark.parametrize(
    ("family", "more"),
    [
        pytest.param("bloom", MEASURED, marks=pytest.mark.slow),
        ("mpt", REMEDIED),
        pytest.param("mixtral", MEASURED, marks=pytest.mark.slow),
        pytest.param("qwen3-moe", REMEDIED, marks=pytest.mark.slow),
    ],
)
def test_a_run_of_a_folder_learns(family, more, folder, tmp_path):
    done = run(tmp_path / "runs", model=folder(family), max_length=40, **more)
    told = json.loads(done.summary_path.read_text())
    assert told["finished"]
    losses = [r["mean_loss"] for r in told["per_round"]]
    assert losses[-1] < losses[0]
    assert max(told["ranks"].values()) > 0


@pytest.mark.parametrize(
    "family", ["mixtral", pytest.param("mpt", marks=pytest.mark.slow)]
)
def test_a_folder_is_found_good_before_a_run(family, folder):
    config = load_config({**BASE, "model": folder(family), "devices": "64MiB"})
    assert list(find_problems(config, clients=4)) == []
