# SPDX-License-Identifier: Apache-2.0
"""What share of a client's step it is to make the step's batch.

Run from the top of the repository::

    python benchmarks/collating.py --models tiny smollm2

Processor seconds, one thread, of a round's batches, when the client has not cut its
texts into tokens before and when it has; and of its own part of the steps, head and
tail, with a trunk that answers at once. A batch that is fetched ahead could hide no
more than the former. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from atlas_flwr.client_apps.batches import ClientBatches
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import load_config
from atlas_flwr.lora import Scaling
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.echo import Echo
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.types import OptimizerSpec

PLAN, RANK, CLIENTS = SplitPlan(2, 1), 8, 4
T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return processor seconds, and what was made."""
    begun = time.process_time()
    made = work()
    return time.process_time() - begun, made


def row(model: str, task: str) -> str:
    """Measure a model and a task."""
    config = load_config({"model": model, "tasks": task})
    files, me = ModelFiles.of(config), Identity(0, CLIENTS, None)
    shapes, _ = files.outline().shapes_by_side(config.target_list, PLAN)
    scaling = Scaling(config.lora_alpha)
    state = initial_state(shapes, rank=RANK, scaling=scaling, seed=0)
    parts = files.parts(PLAN)
    ClientBatches(config, me, files.source, 1).shard()  # texts are read once a process
    with adapted_split(parts.head, parts.tail, Echo(), state, scaling) as adapted:
        split = adapted.model
        rounds = [ClientBatches(config, me, files.source, n) for n in (1, 1, 2)]
        (cold, made), (warm, _), _ = (
            timed(lambda one=one: one.to_train(split)) for one in rounds
        )
        train(split, made[0][:1], OptimizerSpec())
        steps, _ = timed(lambda: train(split, made[0], OptimizerSpec()))
    count = len(made[0])
    cold, warm, steps = (1000 * seconds / count for seconds in (cold, warm, steps))
    return (
        f"| {model} | {task} | {cold:.1f} | {warm:.1f} | {steps:.0f} | "
        f"{100 * warm / (warm + steps):.1f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny", "smollm2"])
    parser.add_argument("--tasks", nargs="+", default=["spam", "dialog"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | task | first batches, ms a step | later | a step | share, % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in given.models:
        for task in given.tasks:
            print(row(model, task), flush=True)


if __name__ == "__main__":
    main()
