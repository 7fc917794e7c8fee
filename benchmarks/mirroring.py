# SPDX-License-Identifier: Apache-2.0
"""What a mirror of a session would cost a step: bytes, and processor time.

SmolLM2's shape with random weights, cut 2/1, rank 8 of all linear layers, Adam, 4 x 128
tokens. A mirror that is as far as the session after each step needs what the step has
changed: the trunk's adapters and Adam's two moments.

    python benchmarks/mirroring.py
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atlas_flwr.split import partition
from atlas_flwr.trunk import SessionSpec, TrunkEngine
from atlas_flwr.trunk.state_bytes import state_bytes
from atlas_flwr.types import TrunkCall
from benchmarks.trunk import ADAMW, BATCH, PLAN, adapters, built

TOKENS, STEPS = 128, 5


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    model = built("SmolLM2", "cpu")
    blocks = PLAN.trunk_range(model.config.num_hidden_layers)
    state = adapters(model, blocks)
    engine = TrunkEngine(partition(model, PLAN).trunk)
    token = engine.open(SessionSpec(PLAN, state, ADAMW))
    hidden = torch.randn(BATCH, TOKENS, engine.base.width)
    steps, copies, size = [], [], 0
    for step in range(STEPS):
        began = time.process_time()
        out = engine.forward(token, TrunkCall(hidden, step=step))
        engine.backward(token, step, torch.ones_like(out))
        steps.append(time.process_time() - began)
        began = time.process_time()
        for _ in range(3):  # the adapters, and two moments of their size
            size = len(state_bytes(engine.adapters(token)))
        copies.append(time.process_time() - began)
    crossing = 4 * hidden.numel() * hidden.element_size()
    step, copy = statistics.median(steps), statistics.median(copies)
    print("| | a step | its mirror | ratio |\n| --- | --- | --- | --- |")
    print(
        f"| MB | {crossing / 1e6:.1f} | {3 * size / 1e6:.1f} | "
        f"{3 * size / crossing:.1f} |"
    )
    print(
        f"| ms of one core | {1e3 * step:.0f} | {1e3 * copy:.0f} | {copy / step:.3f} |"
    )


if __name__ == "__main__":
    main()
