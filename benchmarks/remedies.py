# SPDX-License-Identifier: Apache-2.0
"""What each remedy does to accuracy, loss and bytes, over seeds.

Run from the top of the repository::

    python benchmarks/remedies.py --seeds 0 1 2

Eight clients of minilm without memory budgets; clients, data, start, steps and learning
rate are the same for all rows. Runs are in this process's children, without Ray, with
one thread each, ``--jobs`` at once. A finished run is kept in ``--runs`` and not
repeated. Prints a Markdown table: mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import re
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from finished import is_finished

CLIENTS = 8
BASE = {"model": "minilm", "trunk": "local", "local-steps": 12}
SHARED = {
    "strategy": "splitlora",
    "server-adapters": "shared",
    "cut": "1/1",
    "ranks": "uniform",
}
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "trunk-learning-rate=0.003": {"trunk-learning-rate": 0.003},
    "learning-rate=0.003": {"learning-rate": 0.003},  # the same on both sides
    "personal='tail'": {"personal": "tail"},
    "ema=0.3": {"ema": 0.3},
    "align=0.3": {"align": 0.3},
    "auxiliary-steps=1": {"auxiliary-steps": 1},
    "skip-gradients=0.8": {"skip-gradients": 0.8},
    "prune-data=0.3": {"prune-data": 0.3},
    "one adapter on the trunk": SHARED,
    "one adapter on the trunk, trunk-merge=4": {**SHARED, "trunk-merge": 4},
}


def run(runs: Path, job: tuple[str, int]) -> dict[str, Any]:
    import torch

    from atlas_flwr.client_apps.app import app
    from atlas_flwr.server_apps.run import Run
    from atlas_flwr.testing import local_grid

    name, seed = job
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    folder = runs / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-')}-{seed}"
    if not is_finished(folder):
        places = {"runs-dir": str(runs), "run-name": folder.name}
        config = {**BASE, **REMEDIES[name], "seed": seed, **places}
        with local_grid(app, CLIENTS, run_config=config) as grid:
            Run.begin(config).execute(grid)
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def row(name: str, found: list[dict[str, Any]]) -> str:
    def over_seeds(values: list[float], digits: int = 1) -> str:
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.{digits}f}{spread}"

    last = [one["per_round"][-1] for one in found]
    cells = [
        over_seeds([100 * r["mean_accuracy"] for r in last]),
        over_seeds([100 * min(r["client_accuracy"].values()) for r in last]),
        over_seeds([r["mean_loss"] for r in last], 3),
        over_seeds([one["bytes_up"] / 2**20 for one in found], 0),
        over_seeds([one["bytes_down"] / 2**20 for one in found], 0),
    ]
    return f"| `{name}` | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], help="names that start so")
    parser.add_argument("--runs", type=Path, default=Path("runs/remedies"))
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    names = [n for n in REMEDIES if not given.only or n.startswith(tuple(given.only))]
    print("| remedy | accuracy, % | worst client, % | loss | up, MiB | down, MiB |")
    print("| --- " * 6 + "|", flush=True)
    jobs = [(name, seed) for name in names for seed in given.seeds]
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        done = pool.imap(partial(run, given.runs), jobs)
        for name in names:
            print(row(name, [next(done) for _ in given.seeds]), flush=True)


if __name__ == "__main__":
    main()
