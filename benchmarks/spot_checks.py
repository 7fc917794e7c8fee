# SPDX-License-Identifier: Apache-2.0
"""What a guest's spot check sees of hosts, sound ones and others, and what it costs.

Run from the top of the repository::

    python benchmarks/spot_checks.py

A guest trains a round with each host in this process, and repeats all of its steps. How
far the host's answers and gradients are off is told of the worst step, in norm, of what
the trunk changes, and its adapters, of what they have learned. A host that computes in
float64 differs from the guest as another sound machine would, by rounding.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atlas_flwr.config import load_config
from atlas_flwr.data import load_task, make_shard, tokenizer_of
from atlas_flwr.data.collation import collator_of
from atlas_flwr.lora import AdapterState, Scaling
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.memory import PeakMeter
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import EngineTrunk, SessionSpec
from atlas_flwr.trunk.hosts.checking import CheckedTrunk
from atlas_flwr.trunk.hosts.own_trunk import OwnTrunk
from atlas_flwr.trunk.passing import PassingTrunk
from atlas_flwr.types import OptimizerSpec, TrunkCall

PLAN, SCALING, ADAMW = SplitPlan(1, 1), Scaling(16.0), OptimizerSpec(1e-3)
HOSTS = {
    "the same machine": ("float32", ADAMW),
    "in float64": ("float64", ADAMW),
    "in bfloat16": ("bfloat16", ADAMW),
    "learns nothing": ("float32", replace(ADAMW, lr=0.0)),
}


@dataclass
class Cast(PassingTrunk):
    """A host that answers in float32, whatever it computes in."""

    def forward(self, call: TrunkCall) -> Tensor:
        return self.trunk.forward(call).float()

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        back = self.trunk.backward(step, grad)
        return None if back is None else back.float()


def distance(one: AdapterState, other: AdapterState) -> float:
    """Return the norm of the difference of all factors."""
    pairs = ((f, other.factors[name]) for name, f in one.factors.items())
    both = ((f.A - g.A).norm() ** 2 + (f.B - g.B).norm() ** 2 for f, g in pairs)
    return float(sum(both)) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=48)
    given = parser.parse_args()
    torch.set_num_threads(1)
    files = ModelFiles.of(load_config({"model": given.model, "tasks": "questions"}))
    outline, task = files.outline(), load_task("questions")
    trunk = PLAN.trunk_range(outline.num_layers)
    shapes = outline.shapes(("all-linear",))
    near, far = (
        initial_state(
            {n: s for n, s in shapes.items() if (outline.block_of(n) in trunk) is on},
            rank=8,
            scaling=SCALING,
            seed=0,
            dense={} if on else files.dense(),
        )
        for on in (False, True)
    )
    collate = collator_of(files.source, tokenizer_of(files.source), task, given.length)
    count = given.batch * given.steps
    shard = make_shard(0, 1, [task], train_examples=count, test_examples=8, seed=0)
    texts = collate.prepared(shard.train)
    size = given.batch
    batches = [collate(texts[k * size : (k + 1) * size]) for k in range(given.steps)]
    print(
        "| host | answers | gradients | adapters | CPU s a round | of the check | MB |"
    )
    print("| --- " * 7 + "|")
    for name, (dtype, optimizer) in HOSTS.items():
        engine = replace(files.trunk(PLAN), dtype=dtype).engine()
        spec = SessionSpec(PLAN, far, ADAMW)
        token = engine.open(replace(spec, optimizer=optimizer))
        own = OwnTrunk(files.trunk, spec, outline.num_layers, outline.block_of)
        checked = CheckedTrunk(Cast(EngineTrunk(engine, token)), own, given.steps)
        checked.until = given.steps
        parts, begun = files.parts(PLAN), time.process_time()
        with adapted_split(parts.head, parts.tail, checked, near, SCALING) as adapted:
            train(adapted.model, batches, ADAMW)
        trained = time.process_time()
        with PeakMeter() as meter:
            found = list(checked.departures())
        done = time.process_time()
        learned = distance(engine.adapters(token), own.state())
        learned /= distance(far, own.state())
        worst = [
            max((d.off, d.what) for d in found if d.what.startswith(kind))
            for kind in ("answer", "gradient")
        ]
        first = next((d.what for d in found if d.off > d.allowed), "")
        told = " | ".join(f"{off:.2g}" for off in (*(off for off, _ in worst), learned))
        print(
            f"| {name}{f' (found at: {first})' if first else ''} | {told} "
            f"| {trained - begun:.1f} | {done - trained:.1f} "
            f"| {meter.peak_bytes / 1e6:.0f} |",
            flush=True,
        )
        print(*(f"{d.what}: {d.off:.2g}" for d in found), sep="; ", flush=True)


if __name__ == "__main__":
    main()
