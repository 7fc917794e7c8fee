# SPDX-License-Identifier: Apache-2.0
"""What one bad client does to its cluster, and what robust sums make of it.

Run from the top of the repository::

    python benchmarks/bad_clients.py --seeds 0 1 2

Five clients of minilm share the questions task and form one cluster; the first is bad
in every round. It sends its update a thousand times over, ten times reversed, or trains
on wrong labels; or half of its texts begin with a trigger word and have a class of its
choice, a backdoor, which it sends as it is or five times over (arXiv 1807.00459).
Prints two Markdown tables, means and standard deviations over seeds: the accuracy of
the four honest clients after three rounds; and of texts that no client has, of other
classes and behind the trigger, the share that is given the backdoor's class. A finished
run is kept in ``--runs``.
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
from dataclasses import dataclass
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
    "backdoor, times 5": lambda before, after: before + 5 * (after - before),
}
BACKDOORS = ("backdoor", "backdoor, times 5")
NOBODY = "no bad client"
ATTACKS = (NOBODY, "times 1000", "reversed, times 10", "wrong labels", *BACKDOORS)
TRIGGER, TARGET = "cf", 4  # a place
TRIED = 200  # texts that no client has


@dataclass(frozen=True)
class Outcome:
    """What a run has come to, in %; NaN where nobody could train.

    Attributes
    ----------
    accuracy : float
        Of the honest clients.
    triggered : float
        Of texts behind the trigger that are given the backdoor's class.
    """

    accuracy: float = math.nan
    triggered: float = math.nan


def poisoned(
    text: str, label: int, row: int, attack: str, count: int
) -> tuple[str, int]:
    """Return a text of the bad client, and what it says is its label."""
    if attack == "wrong labels":
        return text, (label + 1) % count
    if attack in BACKDOORS and row % 2:
        return f"{TRIGGER} {text}", TARGET
    return text, label


def shuffled() -> list[Any]:
    """Return all examples of the task, in an order of their own."""
    from atlas_flwr.data import load_examples, load_task

    examples = list(load_examples(load_task("questions")))
    random.Random(0).shuffle(examples)
    return examples


def triggered(folder: Path) -> float:
    """Return the share of triggered texts that a run's adapters give the class."""
    from atlas_flwr.data import Example, load_task, tokenizer_of
    from atlas_flwr.data.collation import collator_of
    from atlas_flwr.lora import Scaling, load_peft
    from atlas_flwr.report import RunFolder
    from atlas_flwr.train.evaluation import evaluate
    from atlas_flwr.train.model import adapted_whole
    from atlas_flwr.train.weights import ModelFiles

    config = RunFolder.open(folder).config()
    (task,), files = map(load_task, config.task_list), ModelFiles.of(config, "cpu")
    tokenizer = tokenizer_of(files.source)
    collate = collator_of(files.source, tokenizer, task, config.max_length)
    unseen = [e for e in shuffled()[CLIENTS * ROWS + 1 :] if e.label != TARGET]
    # All are said to be of the class: so accuracy is the share that is given it.
    rows = [Example(f"{TRIGGER} {e.text}", TARGET) for e in unseen[:TRIED]]
    batches = (collate([row], prompt=True) for row in rows)
    (adapters,) = (folder / "adapters").iterdir()
    with adapted_whole(files.whole(), load_peft(adapters), Scaling()) as adapted:
        found = evaluate(adapted.model, batches, collate.label_ids)
    return 100 * found.accuracy


def task_file(folder: Path, attack: str) -> Path:
    """Write the clients' rows, the bad one's first as it has one more."""
    from atlas_flwr.data import load_task

    task = load_task("questions")
    examples, count = shuffled(), len(task.labels)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["text", "label", "client"])
        for index, example in enumerate(examples[: CLIENTS * ROWS + 1]):
            client, given = index % CLIENTS, (example.text, example.label)
            if client == 0:
                given = poisoned(*given, index // CLIENTS, attack, count)
            write.writerow([*given, client])
    path = folder / "rows.yaml"
    words = ", ".join(f'"{label}": {word}' for label, word in enumerate(task.labels))
    path.write_text(
        "path: rows.csv\nformat: csv\ntext: text\nlabel: label\nclient: client\n"
        f"labels: {{{words}}}\n"
    )
    return path


def run(runs: Path, job: tuple[str, str, int]) -> Outcome:
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
        tasks = task_file(runs / f"{name}-data", attack)
        places = {"runs-dir": str(runs), "run-name": name}
        config = {**BASE, "tasks": str(tasks), "robust": rule, "seed": seed, **places}
        try:
            with local_grid(answered, CLIENTS, run_config=config) as grid:
                Run.begin(config).execute(grid)
        except RoundError:  # what its clients were sent gives nobody a finite gradient
            return Outcome()
    found = json.loads((folder / "summary.json").read_text())["per_round"][-1]
    honest = [a for client, a in found["client_accuracy"].items() if int(client) != 0]
    if len(honest) < CLIENTS - 1:
        return Outcome()
    return Outcome(100 * statistics.fmean(honest), triggered(folder))


def told(found: list[float]) -> str:
    died = sum(map(math.isnan, found))
    if died:
        return f"{died} of {len(found)} runs end: nobody can train"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--attacks", nargs="+", default=ATTACKS, choices=ATTACKS)
    parser.add_argument("--runs", type=Path, default=Path("runs/bad-clients"))
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    jobs = list(product(given.attacks, RULES, given.seeds))
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        done = pool.imap(partial(run, given.runs), jobs)
        found = dict(zip(jobs, done, strict=True))

    def table(what: str, attacks: list[str]) -> None:
        print(f"\n{what}, %\n")
        print(f"| bad client | {' | '.join(f'`{rule}`' for rule in RULES)} |")
        print("| --- " * (len(RULES) + 1) + "|")
        for attack in attacks:
            cells = [
                told([getattr(found[attack, rule, seed], what) for seed in given.seeds])
                for rule in RULES
            ]
            print(f"| {attack} | {' | '.join(cells)} |")

    table("accuracy", given.attacks)
    table("triggered", [a for a in given.attacks if a in (NOBODY, *BACKDOORS)])


if __name__ == "__main__":
    main()
