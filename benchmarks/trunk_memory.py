# SPDX-License-Identifier: Apache-2.0
"""What a trunk's process takes when its calls come in many threads, as transports' do.

Beside what the memory model says of its tensors, and what Python and its libraries take
before there are any.

Run from the top of the repository::

    python benchmarks/trunk_memory.py

SmolLM2's trunk, two clients at once, 12 steps each of 8 texts of 14 to 48 tokens, two
passes at once, one CPU thread each; a process for each row of the table.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from atlas_flwr.budget import TrunkSession, packing_environment, trunk_memory
from atlas_flwr.config import load_config
from atlas_flwr.lora import Scaling
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.memory import resident_bytes
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import EngineTrunk, Limits, SessionSpec
from atlas_flwr.types import TrunkCall

PLAN, CLIENTS, STEPS, ROWS = SplitPlan(1, 1), 2, 12, 8
CALLERS = 64  # threads in which a Ray actor or a gRPC server answers
LONGEST, RANK = 48, 8


def measured(own_threads: bool, callers: int) -> tuple[float, float, float]:
    """Return resident memory in MiB before and at its peak, and CPU seconds a step."""
    # As the actor's process does.
    importlib.import_module("atlas_flwr.trunk.transports.ray")
    torch.set_num_threads(1)
    before = resident_bytes() / 2**20
    files = ModelFiles.of(load_config({"model": "smollm2"}))
    _, shapes = files.outline().shapes_by_side(("all-linear",), PLAN)
    state = initial_state(shapes, rank=RANK, scaling=Scaling(16.0), seed=0)
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
            hidden = torch.randn(ROWS, lengths.randint(14, LONGEST), width)
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return before, peak, seconds


def predicted() -> float:
    """Return what the memory model says of the tensors, in MiB."""
    files = ModelFiles.of(load_config({"model": "smollm2"}))
    sessions = [TrunkSession(PLAN.head, PLAN.tail, RANK)] * CLIENTS
    found = trunk_memory(
        files.outline().architecture(("all-linear",)),
        sessions=sessions,
        batch=ROWS,
        length=LONGEST,
        in_flight=CLIENTS,
    )
    return found.total / 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, type=int, metavar=("OWN", "CALLERS"))
    given = parser.parse_args()
    if given.one:
        own, callers = given.one
        print(*measured(bool(own), callers))
        return
    print(f"predicted for the tensors: {predicted():.0f} MiB\n")
    print("| passes run in | calls come in | allocator | before, MiB | peak | CPU s |")
    print("| --- | --- | --- | --- | --- | --- |")
    packed = dict(packing_environment())
    rows = [(0, CALLERS, {}), (1, CALLERS, {}), (0, 2, {}), (1, CALLERS, packed)]
    for own, callers, more in rows:
        words = [sys.executable, __file__, "--one", str(own), str(callers)]
        done = subprocess.run(
            words,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **more},
        )
        before, peak, seconds = map(float, done.stdout.split())
        where = "2 threads of their own" if own else "the callers' threads"
        name = "jemalloc" if more else "glibc"
        print(
            f"| {where} | {callers} threads | {name} | {before:.0f} | {peak:.0f} | "
            f"{seconds:.2f} |"
        )


if __name__ == "__main__":
    main()
