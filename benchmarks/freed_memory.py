# SPDX-License-Identifier: Apache-2.0
"""What giving freed memory back costs: processor time of a step, with and without.

Run from the top of the repository::

    python benchmarks/freed_memory.py

A client's step (with a trunk that answers with its question) and a trunk's step, each
in processes of their own, one thread; prints a Markdown table.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

from atlas_flwr.budget import return_freed_memory
from atlas_flwr.config import load_config
from atlas_flwr.data import Batch
from atlas_flwr.lora import Scaling
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.echo import Echo
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import EngineTrunk, SessionSpec
from atlas_flwr.types import OptimizerSpec, TrunkCall

PLAN, SCALING, RANK, ROWS, TOKENS = SplitPlan(1, 1), Scaling(16.0), 8, 8, 32
WARM, TIMED = 2, 8


def seconds(model: str, side: str) -> float:
    files = ModelFiles.of(load_config({"model": model}))
    near, far = files.outline().shapes_by_side(("all-linear",), PLAN)
    shapes = far if side == "trunk" else near
    state = initial_state(shapes, rank=RANK, scaling=SCALING, seed=0)
    ids = torch.randint(5, 900, (ROWS, TOKENS))
    mask = torch.ones_like(ids)
    if side == "client":
        parts = files.parts(PLAN)
        causal = files.source.kind == "causal"
        labels = ids if causal else ids[:, 0] % 2
        batch = Batch(ids, mask, labels, labels, logits_to_keep=2 if causal else 0)
        with adapted_split(parts.head, parts.tail, Echo(), state, SCALING) as adapted:
            train(adapted.model, [batch] * WARM, OptimizerSpec())
            begun = time.process_time()
            train(adapted.model, [batch] * TIMED, OptimizerSpec())
            return (time.process_time() - begun) / TIMED
    engine = files.trunk(PLAN).engine()
    trunk = EngineTrunk(engine, engine.open(SessionSpec(PLAN, state)))
    hidden = torch.randn(ROWS, TOKENS, engine.base.reference_tensor.shape[-1])
    for step in range(WARM + TIMED):
        if step == WARM:
            begun = time.process_time()
        answer = trunk.forward(TrunkCall(hidden, mask, step=step))
        trunk.backward(step, torch.randn_like(answer))
    return (time.process_time() - begun) / TIMED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "SIDE", "MODE"))
    given = parser.parse_args()
    if given.one:
        model, side, mode = given.one
        torch.set_num_threads(1)
        if mode == "gives back":
            return_freed_memory()
        print(seconds(model, side))
        return
    print("| model | side | keeps, s a step | gives back, s a step | more |")
    print("| --- | --- | --- | --- | --- |")
    for model in ("minilm", "smollm2"):
        for side in ("client", "trunk"):
            found = [
                float(
                    subprocess.run(
                        [sys.executable, __file__, "--one", model, side, mode],
                        check=True,
                        capture_output=True,
                        text=True,
                    ).stdout
                )
                for mode in ("keeps", "gives back")
            ]
            more = 100 * (found[1] / found[0] - 1)
            print(
                f"| {model} | {side} | {found[0]:.3f} | "
                f"{found[1]:.3f} | {more:+.0f} % |"
            )


if __name__ == "__main__":
    main()
