# SPDX-License-Identifier: Apache-2.0
"""What one bad client does to its cluster, and what robust sums make of it.

Run from the top of the repository::

    python benchmarks/bad_clients.py --seeds 0 1 2

Five clients of minilm share the questions task and form one cluster; the first is bad
in every round. It sends its update a thousand times over, ten times reversed, or trains
on wrong labels. Prints a Markdown table: the accuracy of the four honest clients after
three rounds, mean and standard deviation over seeds. A finished run is kept in
``--runs``.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import multiprocessing
import random
import statistics
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from finished import is_finished

CLIENTS = 5
ROWS = 100  # of each client, for training and tests
BASE = {
    "model": "minilm",
    "trunk": "local",
    "local-steps": 12,
    "train-examples": 72,
    "test-examples": 28,
    "clustering": "none",
}
RULES = ("none", "norm-bound", "trimmed", "geometric-median")
CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "times 1000": lambda before, after: before + 1000 * (after - before),
    "reversed, times 10": lambda before, after: before - 10 * (after - before),
}
ATTACKS = ("no bad client", *CHANGES, "wrong labels")


def task_file(folder: Path, wrong: bool) -> Path:
    """Write the clients' rows, the bad one's first as it has one more."""
    from atlas_flwr.data.tasks import load_examples, load_task

    task = load_task("questions")
    examples, count = list(load_examples(task)), len(task.labels)
    random.Random(0).shuffle(examples)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["text", "label", "client"])
        for index, example in enumerate(examples[: CLIENTS * ROWS + 1]):
            client = index % CLIENTS
            label = (example.label + int(wrong and client == 0)) % count
            write.writerow([example.text, label, client])
    path = folder / "rows.yaml"
    words = ", ".join(f'"{label}": {word}' for label, word in enumerate(task.labels))
    path.write_text(
        "path: rows.csv\nformat: csv\ntext: text\nlabel: label\nclient: client\n"
        f"labels: {{{words}}}\n"
    )
    return path


def run(runs: Path, job: tuple[str, str, int]) -> float:
    import torch
    from flwr.app import Array, ArrayRecord, MessageType

    from atlas_flwr.client_apps.app import app
    from atlas_flwr.errors import RoundError
    from atlas_flwr.server_apps.run import Run
    from atlas_flwr.testing import local_grid

    attack, rule, seed = job
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    name = f"{attack}-{rule}-{seed}".replace(",", "").replace(" ", "-")
    folder = runs / name

    def answered(message: Any, context: Any) -> Any:
        reply = app(message, context)
        bad = context.node_config["partition-id"] == 0
        if (
            attack in CHANGES
            and bad
            and message.metadata.message_type == MessageType.TRAIN
        ):
            before = message.content["arrays"]
            arrays = reply.content["arrays"]
            reply.content["arrays"] = ArrayRecord(
                {
                    key: Array(CHANGES[attack](before[key].numpy(), array.numpy()))
                    for key, array in arrays.items()
                }
            )
        return reply

    if not is_finished(folder):
        tasks = task_file(runs / f"{name}-data", attack == "wrong labels")
        places = {"runs-dir": str(runs), "run-name": name}
        config = {**BASE, "tasks": str(tasks), "robust": rule, "seed": seed, **places}
        try:
            with local_grid(answered, CLIENTS, run_config=config) as grid:
                Run.begin(config).execute(grid)
        except RoundError:  # what its clients were sent gives nobody a finite gradient
            return math.nan
    found = json.loads((folder / "summary.json").read_text())["per_round"][-1]
    honest = [a for client, a in found["client_accuracy"].items() if int(client) != 0]
    return 100 * statistics.fmean(honest) if len(honest) == CLIENTS - 1 else math.nan


def told(found: list[float]) -> str:
    died = sum(map(math.isnan, found))
    if died:
        return f"{died} of {len(found)} runs end: nobody can train"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/bad-clients"))
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    jobs = list(product(ATTACKS, RULES, given.seeds))
    print(f"| bad client | {' | '.join(f'`{rule}`' for rule in RULES)} |")
    print("| --- " * (len(RULES) + 1) + "|", flush=True)
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        done = pool.imap(partial(run, given.runs), jobs)
        for attack in ATTACKS:
            cells = []
            for _ in RULES:
                found = [next(done) for _ in given.seeds]
                cells.append(told(found))
            print(f"| {attack} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
