# SPDX-License-Identifier: Apache-2.0
"""What fingerprints, updates, or sizes on the wire tell of clients' tasks and labels.

Run from the top of the repository::

    python benchmarks/properties.py --clients 8 --skews 0 0.5 --epsilons 0 400 100

Clients of four tasks, in turns, send their fingerprints and train one step. A row is a
run: its skew of labels and noise; of the clients how many tasks were told, and how far
guessed and true shares of classes overlap, each beside a guess without information;
then how well clusters were the tasks (ARI), and how many there were.

    python benchmarks/properties.py --attack update --steps 4 --skews 0.5

attacks, instead, the adapters that each sends back after so many steps by itself;
``--round 3`` those of that round, of as many; and ``--attack traffic`` how much crosses
in each step of each of them, of which the tasks alone are told.
"""

from __future__ import annotations

import argparse
import json
import logging
from contextlib import redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import torch
from finished import is_finished

from atlas_flwr.cli.attack import main as attack
from atlas_flwr.client_apps.app import app
from atlas_flwr.server_apps.run import Run
from atlas_flwr.testing import local_grid

TASKS = "questions,spam,movies,news"
BASE = {
    "trunk": "local",
    "tasks": TASKS,
    "cut": "1/1",
    "test-examples": 4,
}
ALONE = {
    "clustering": "none",
    "aggregation": "none",
    "ranks": "uniform",
    "record-wire": True,
}


def row(options: argparse.Namespace, skew: float, epsilon: float, seed: int) -> str:
    told = options.model, options.clients, f"{skew:g}", f"{epsilon:g}", seed
    name = "-".join(map(str, (options.attack, options.steps, options.round, *told)))
    folder = options.runs / name
    if not is_finished(folder):
        asked = {"label-skew": skew, "local-steps": options.steps, "seed": seed}
        asked["num-rounds"] = options.round
        if options.attack != "fingerprint":
            asked |= ALONE
        else:
            asked["fingerprint-epsilon"] = epsilon
        places = {"runs-dir": str(options.runs), "run-name": name}
        config = {**BASE, "model": options.model, **asked, **places}
        with local_grid(app, options.clients, run_config=config) as grid:
            Run.begin(config).execute(grid)
    with redirect_stdout(StringIO()):
        which = [f"--round={options.round}"] if options.attack == "update" else []
        attack([str(folder), f"--attacks={options.attack}", *which])
    summary = json.loads((folder / "summary.json").read_text())
    found = json.loads((folder / "privacy.json").read_text())
    cells = [f"{skew:g}", f"{epsilon:g}" if epsilon else "none"]
    for score in found:
        low, high = score["interval"]
        cells.append(
            f"{_percent(score['token_accuracy'])} ({_percent(low)}–{_percent(high)})"
        )
        cells.append(_percent(score["baseline"]))
    quality = summary["clustering"]
    cells += ["—"] * (8 - len(cells))
    if options.attack == "fingerprint":
        cells[-2:] = f"{quality['ari']:.2f}", str(quality["k"])
    return f"| {' | '.join(cells)} |"


def _percent(share: Any) -> str:
    return f"{100 * share:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm")
    parser.add_argument(
        "--attack",
        default="fingerprint",
        choices=["fingerprint", "traffic", "update"],
    )
    parser.add_argument("--steps", type=int, default=1, help="of a client's round")
    parser.add_argument("--round", type=int, default=1, help="whose updates; the last")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--skews", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.0, 400, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/properties"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print("| skew | epsilon | task, % | guess | balance, % | guess | ARI | clusters |")
    print("| --- " * 8 + "|", flush=True)
    for skew, epsilon, seed in product(options.skews, options.epsilons, options.seeds):
        print(row(options, skew, epsilon, seed), flush=True)


if __name__ == "__main__":
    main()
