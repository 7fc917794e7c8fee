# SPDX-License-Identifier: Apache-2.0
"""What ragged batches cost with their padding and without: bytes, and trunk time.

Run from the top of the repository::

    python benchmarks/padding.py

SmolLM2's trunk behind frames in this process, one client, rank 8, batches of 16 texts
whose lengths are drawn with a mean of 59 tokens and whose longest has 128, or 512. A
step is a forward and a backward pass; both ways take turns, and medians are told.
``--shape 1.1B --device cuda`` takes random weights of that shape on a GPU, in bfloat16,
and measures the way to packed rows beside.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from trunk import SHAPES, adapters, built

from atlas_flwr.config import load_config
from atlas_flwr.lora import AdapterState, Scaling
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import Limits, SessionSpec, TrunkEngine, connect, serve_local
from atlas_flwr.types import TrunkCall

PLAN = SplitPlan(2, 1)
TEXTS, MEAN = 16, 59
WAYS = {"with padding": False, "without": True}


def masks(longest: int, seed: int) -> torch.Tensor:
    """Draw texts' lengths, the mean of which is 59, one of them the longest."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(TEXTS, generator=generator) + 0.2
    drawn[0] = longest
    drawn[1:] *= (TEXTS * MEAN - longest) / drawn[1:].sum()
    lengths = drawn.round().clamp(4, longest).long()
    return (torch.arange(longest).flip(0) < lengths[:, None]).long()


def engine_of(given: argparse.Namespace) -> tuple[TrunkEngine, AdapterState]:
    """Make the trunk, and adapters of rank 8 for its layers."""
    limits = Limits(sessions_per_pass=1)
    if given.shape:
        model = built(given.shape, given.device)
        blocks = PLAN.trunk_range(model.config.num_hidden_layers)
        trunk = partition(model, PLAN).trunk
        return TrunkEngine(trunk, limits=limits), adapters(model, blocks)
    files = ModelFiles.of(load_config({"model": given.model, "device": given.device}))
    _, shapes = files.outline().shapes_by_side(("all-linear",), PLAN)
    state = initial_state(shapes, rank=8, scaling=Scaling(16.0), seed=0)
    return files.trunk(PLAN, limits=limits).engine(), state


def step(trunk: Any, hidden: torch.Tensor, mask: torch.Tensor, number: int) -> float:
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    grad = torch.randn_like(hidden) * mask[..., None]
    begun = time.perf_counter()
    trunk.forward(TrunkCall(hidden, mask, positions, number))
    trunk.backward(number, grad)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--shape", choices=SHAPES, help="random weights, not a model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--longest", type=int, nargs="+", default=[128, 512])
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trunk, state = engine_of(given)
    print("| longest | real positions, % | way | MiB a step | s a step | of padded |")
    print("| --- " * 6 + "|")
    with serve_local("bench", trunk) as address:
        for longest in given.longest:
            mask = masks(longest, seed=0)
            hidden = torch.randn(*mask.shape, trunk.base.width)
            ends = {
                way: connect(
                    address,
                    token=trunk.open(SessionSpec(PLAN, state)),
                    spares_padding=spares,
                )
                for way, spares in WAYS.items()
            }
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for number in range(given.steps + 1):
                for way, end in ends.items():
                    seconds = step(end, hidden, mask, number)
                    if number:  # the first one tries how texts pack
                        times[way].append(seconds)
            whole = statistics.median(times["with padding"])
            for way, end in ends.items():
                meter: Any = end.meter  # type: ignore[attr-defined]
                size = (meter.total_up + meter.total_down) / 2**20 / (given.steps + 1)
                median = statistics.median(times[way])
                share = 100 * float(mask.float().mean())
                print(
                    f"| {longest} | {share:.0f} | {way} | {size:.1f} | {median:.2f} "
                    f"| {median / whole:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
