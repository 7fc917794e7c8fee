# SPDX-License-Identifier: Apache-2.0
"""What a trunk's process takes when its calls come in many threads, as transports' do.

Run from the top of the repository::

    python benchmarks/trunk_memory.py

SmolLM2's trunk, two clients at once, 12 steps each of 8 texts of 14 to 48 tokens, two
passes at once, one CPU thread each; a process for each row of the table.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from atlas_flwr.config import load_config
from atlas_flwr.lora import Scaling
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import EngineTrunk, Limits, SessionSpec
from atlas_flwr.types import TrunkCall

PLAN, CLIENTS, STEPS, ROWS = SplitPlan(1, 1), 2, 12, 8
CALLERS = 64  # threads in which a Ray actor or a gRPC server answers


def measured(own_threads: bool, callers: int) -> tuple[float, float]:
    """Return the largest resident memory in MiB, and processor seconds a step."""
    torch.set_num_threads(1)
    files = ModelFiles.of(load_config({"model": "smollm2"}))
    outline = files.outline()
    middle = PLAN.trunk_range(outline.num_layers)
    shapes = {
        name: shape
        for name, shape in outline.shapes(("all-linear",)).items()
        if outline.block_of(name) in middle
    }
    state = initial_state(shapes, rank=8, scaling=Scaling(16.0), seed=0)
    limits = Limits(sessions_per_pass=1, passes_at_once=2)
    engine = files.trunk(PLAN, limits=limits).engine(own_threads=own_threads)
    width = engine.base.reference_tensor.shape[-1]
    pool = ThreadPoolExecutor(callers, initializer=lambda: torch.set_num_threads(1))
    all_there = threading.Barrier(callers)
    list(pool.map(lambda _: all_there.wait(), range(callers)))

    def client(number: int) -> None:
        trunk = EngineTrunk(engine, engine.open(SessionSpec(PLAN, state)))
        lengths = random.Random(number)
        for step in range(STEPS):
            hidden = torch.randn(ROWS, lengths.randint(14, 48), width)
            call = TrunkCall(hidden, step=step)
            answer = pool.submit(trunk.forward, call).result()
            pool.submit(trunk.backward, step, torch.randn_like(answer)).result()

    begun = time.process_time()
    clients = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    seconds = (time.process_time() - begun) / (CLIENTS * STEPS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, type=int, metavar=("OWN", "CALLERS"))
    given = parser.parse_args()
    if given.one:
        own, callers = given.one
        print(*measured(bool(own), callers))
        return
    print("| passes run in | calls come in | peak, MiB | CPU s a step |")
    print("| --- | --- | --- | --- |")
    for own, callers in ((0, CALLERS), (1, CALLERS), (0, 2)):
        words = [sys.executable, __file__, "--one", str(own), str(callers)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        peak, seconds = map(float, done.stdout.split())
        where = "2 threads of their own" if own else "the callers' threads"
        print(f"| {where} | {callers} threads | {peak:.0f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
