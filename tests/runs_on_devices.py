"""Runs of all that a client and a trunk can do, to be compared between devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atlas_flwr.client_apps.app import app
from atlas_flwr.server_apps.run import Run
from atlas_flwr.testing import local_grid
from tests.read_keys import read_by

BASE = {
    "model": "tiny",
    "trunk": "local",
    "tasks": "questions,movies",
    "num-rounds": 1,
    "local-steps": 2,
    "batch-size": 4,
    "max-length": 16,
    "train-examples": 8,
    "test-examples": 4,
    "fingerprint-batches": 2,
    "fingerprint-parts": 2,
    "learning-rate": 0.01,
}
ATLAS = {"num-clusters": 1}
# What is compared with what it does on a CPU; by name, so that a failure tells it.
RUNS: dict[str, dict[str, Any]] = {
    "u-shaped": ATLAS,
    "vanilla": {**ATLAS, "split": "vanilla"},
    "encoder": {**ATLAS, "model": "tiny-bert"},
    "encoder-vanilla": {**ATLAS, "model": "tiny-bert", "split": "vanilla"},
    "unsplit": {**ATLAS, "split": "none", "aggregation": "truncate"},
    "two-rounds-fold": {**ATLAS, "num-rounds": 2, "aggregation": "fold"},
    "two-rounds-both": {**ATLAS, "num-rounds": 2},
    "fedavg": {"strategy": "fedavg"},
    "fedprox": {"strategy": "fedprox", "proximal-mu": 0.5},
    "hetlora": {"strategy": "hetlora", "rank-decay": 0.5, "rank-penalty": 0.1},
    "splitlora-merged": {
        "strategy": "splitlora",
        "ranks": "uniform",
        "cut": "2/1",
        "server-adapters": "shared",
        "trunk-merge": 2,
    },
    "mira": {"strategy": "mira", "mixing": 0.5},
    "centralized": {"strategy": "centralized"},
    "ia3": {**ATLAS, "adapter": "ia3"},
    "prompt": {**ATLAS, "adapter": "prompt", "prompt-tokens": 3},
    "summary": {**ATLAS, "summary-positions": 2},
    "summary-vanilla": {**ATLAS, "summary-positions": 2, "split": "vanilla"},
    "two-rounds-flat": {**ATLAS, "num-rounds": 2, "flat-rounds": True},
    "generation": {**ATLAS, "tasks": "dialog", "score-examples": 2},
    "generation-vanilla": {
        **ATLAS,
        "tasks": "dialog",
        "split": "vanilla",
        "score-examples": 0,
    },
    "int8": {**ATLAS, "codec": "int8"},
    "int4": {**ATLAS, "codec": "int4"},
    "fp16-codec": {**ATLAS, "codec": "fp16"},
    "align": {**ATLAS, "align": 0.3},
    "auxiliary": {**ATLAS, "auxiliary-steps": 1},
    "prune-data": {**ATLAS, "num-rounds": 2, "prune-data": 0.5},
    "align-auxiliary": {**ATLAS, "align": 0.3, "auxiliary-steps": 1},
    "align-fedprox": {"strategy": "fedprox", "proximal-mu": 0.5, "align": 0.3},
    "prune-data-local": {
        "strategy": "local",
        "num-rounds": 2,
        "prune-data": 0.5,
    },
    "skip-gradients": {**ATLAS, "skip-gradients": 0.9, "local-steps": 6},
    "skip-gradients-align": {**ATLAS, "skip-gradients": 0.9, "align": 0.2},
    "ema": {**ATLAS, "num-rounds": 2, "ema": 0.3},
    "personal": {**ATLAS, "num-rounds": 2, "personal": "both"},
    "personal-vanilla": {
        **ATLAS,
        "num-rounds": 2,
        "personal": "head",
        "split": "vanilla",
    },
    "recompute": {**ATLAS, "trunk-recompute": True},
    "secure": {"strategy": "fedavg", "secure-aggregation": True},
}


def losses(folder: Path, **changes: Any) -> list[float]:
    """Run in this process; return the means of each round, for training and tests."""
    given = {key.replace("_", "-"): value for key, value in changes.items()}
    base = read_by(given.get("strategy", "atlas"), BASE)
    config = {**base, "runs-dir": str(folder), **given}
    with local_grid(app, 2, run_config=config) as grid:
        begun = Run.begin(config)
        begun.execute(grid)
    lines = begun.folder.metrics_path.read_text().splitlines()
    events = [json.loads(line) for line in lines]
    found = [e[key] for e in events for key in ("train_loss", "loss") if key in e]
    assert len(found) > 2
    return found
