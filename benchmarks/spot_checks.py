# SPDX-License-Identifier: Apache-2.0
"""What a guest's spot check sees of hosts, sound ones and others, and what it costs.

Run from the top of the repository::

    python benchmarks/spot_checks.py
    python benchmarks/spot_checks.py --dtype bfloat16 --hosts "with other kernels"

A guest trains a round with each host in this process, and repeats its steps. How far
the host's answers and gradients are off is told of the worst step, in norm, of what the
trunk changes, and its adapters, of what they have learned; and this again as a server
sees it, by the 64 numbers that it is told. Hosts that compute in float64 or with other
kernels differ from the guest as other sound machines do, by rounding.
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
# What each computes in, if not in what its guest does; with which kernels; and how it
# learns.
HOSTS = {
    "the same machine": ("", True, ADAMW),
    "with other kernels": ("", False, ADAMW),
    "in float64": ("float64", True, ADAMW),
    "in bfloat16": ("bfloat16", True, ADAMW),
    "learns nothing": ("", True, replace(ADAMW, lr=0.0)),
}


@dataclass
class Cast(PassingTrunk):
    """A host that answers in its guest's precision, whatever it computes in."""

    onednn: bool

    def forward(self, call: TrunkCall) -> Tensor:
        with torch.backends.mkldnn.flags(enabled=self.onednn):
            return self.trunk.forward(call).to(call.hidden.dtype)

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        with torch.backends.mkldnn.flags(enabled=self.onednn):
            back = self.trunk.backward(step, grad)
        return None if back is None else back.to(grad.dtype)


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
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hosts", nargs="+", default=[*HOSTS], choices=[*HOSTS])
    given = parser.parse_args()
    torch.set_num_threads(1)
    keys = {"model": given.model, "dtype": given.dtype, "aggregation": "truncate"}
    files = ModelFiles.of(load_config({**keys, "tasks": "questions"}))
    outline, task = files.outline(), load_task("questions")
    near, far = (
        initial_state(shapes, rank=8, scaling=SCALING, seed=0)
        for shapes in outline.shapes_by_side(("all-linear",), PLAN)
    )
    near = replace(near, dense=files.dense())
    collate = collator_of(files.source, tokenizer_of(files.source), task, given.length)
    count = given.batch * given.steps
    shard = make_shard(0, 1, [task], train_examples=count, test_examples=8, seed=0)
    texts = collate.prepared(shard.train)
    size = given.batch
    batches = [collate(texts[k * size : (k + 1) * size]) for k in range(given.steps)]
    columns = "host", "answers", "gradients", "adapters", "as told"
    print("|", " | ".join((*columns, "CPU s a round", "of the check", "MB")), "|")
    print("| --- " * 8 + "|")
    for name in given.hosts:
        dtype, onednn, optimizer = HOSTS[name]
        engine = replace(files.trunk(PLAN), dtype=dtype or given.dtype).engine()
        spec = SessionSpec(PLAN, far, ADAMW)
        token = engine.open(replace(spec, optimizer=optimizer))
        own = OwnTrunk(files.trunk, spec, outline.num_layers, outline.block_of)
        checked = CheckedTrunk(Cast(EngineTrunk(engine, token), onednn), own)
        parts, begun = files.parts(PLAN), time.process_time()
        with adapted_split(parts.head, parts.tail, checked, near, SCALING) as adapted:
            train(adapted.model, batches, ADAMW)
        trained = time.process_time()
        with PeakMeter() as meter:
            found = list(checked.departures())
        done = time.process_time()
        handed = engine.adapters(token)
        learned = distance(handed, own.state()) / distance(far, own.state())
        judged = checked.computed().departure(far, handed).off
        worst = [
            max((d.off, d.what) for d in found if d.what.startswith(kind))
            for kind in ("answer", "gradient")
        ]
        first = next((d.what for d in found if d.off > d.allowed), "")
        told = " | ".join(
            f"{off:.2g}" for off in (*(off for off, _ in worst), learned, judged)
        )
        print(
            f"| {name}{f' (found at: {first})' if first else ''} | {told} "
            f"| {trained - begun:.1f} | {done - trained:.1f} "
            f"| {meter.peak_bytes / 1e6:.0f} |",
            flush=True,
        )
        print(*(f"{d.what}: {d.off:.2g}" for d in found), sep="; ", flush=True)


if __name__ == "__main__":
    main()
