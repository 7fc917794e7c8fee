# SPDX-License-Identifier: Apache-2.0
"""What batches in flight together gain, by the delay of the link.

Run from the top of the repository::

    python benchmarks/overlap.py

MiniLM over a cut, its trunk behind frames in this process; a link takes some time each
way, and some for its bytes. An optimiser step is of several batches; the ways take
turns, and medians of a step are told, with the processor's time beside.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from atlas_flwr.config import load_config
from atlas_flwr.data import load_task, make_shard, tokenizer_of
from atlas_flwr.data.collation import collator_of
from atlas_flwr.lora import Scaling
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import FrameService, Limits, Request, SessionSpec
from atlas_flwr.trunk.transports.local import LoopbackTrunk
from atlas_flwr.types import OptimizerSpec
from atlas_flwr.wire import codec_named

PLAN = SplitPlan(2, 1)
SCALING = Scaling(16.0)


@dataclass(kw_only=True)
class SlowTrunk(LoopbackTrunk):
    """A link of so many seconds each way, and so many bytes a second."""

    delay: float
    speed: float

    def exchange(self, request: Request) -> bytes:
        time.sleep(self.delay + len(request.frame) / self.speed)
        answer = super().exchange(request)
        time.sleep(self.delay + len(answer) / self.speed)
        return answer


def batches(files: ModelFiles, given: argparse.Namespace) -> Iterator[Any]:
    task, tokenizer = load_task("questions"), tokenizer_of(files.source)
    collate: Any = collator_of(files.source, tokenizer, task, given.length)
    count = given.batch * given.accumulate * (given.steps + 1)
    shard = make_shard(0, 1, [task], train_examples=count, test_examples=8, seed=0)
    texts = collate.prepared(shard.train)
    begun = time.perf_counter()
    for start in range(0, count, given.batch):
        yield collate([texts[(start + k) % len(texts)] for k in range(given.batch)])
    print(f"making all batches took {time.perf_counter() - begun:.3f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delays", nargs="+", type=float, default=[0, 20, 100])
    parser.add_argument("--in-flight", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--mib", type=float, default=10.0, help="of the link, a second")
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    files = ModelFiles.of(load_config({"model": "minilm", "tasks": "questions"}))
    near, far = (
        initial_state(shapes, rank=8, scaling=SCALING, seed=0)
        for shapes in files.outline().shapes_by_side(("all-linear",), PLAN)
    )
    near = replace(near, dense=files.dense())
    spec = OptimizerSpec(1e-3, accumulate=given.accumulate)
    limits = Limits(passes_per_session=max(given.in_flight))
    engine = files.trunk(PLAN, limits=limits).engine()
    made = list(batches(files, given))
    print("| ms each way | in flight | s a step | of one | CPU s a step | loss |")
    print("| --- " * 6 + "|")
    for delay in given.delays:
        speed = given.mib * 2**20 if delay else 1e18
        times: dict[int, list[tuple[float, float]]] = {n: [] for n in given.in_flight}
        losses: dict[int, float] = {}
        with ExitStack() as stack:
            clients = {}
            for count in given.in_flight:
                parts = files.parts(PLAN)
                link = SlowTrunk(
                    token=engine.open(SessionSpec(PLAN, far, spec)),
                    codec=codec_named("raw"),
                    service=FrameService(engine),
                    spares_padding=True,
                    delay=delay / 1000,
                    speed=speed,
                )
                adapted = adapted_split(parts.head, parts.tail, link, near, SCALING)
                clients[count] = stack.enter_context(adapted).model
            for step in range(given.steps + 1):
                window = made[step * given.accumulate : (step + 1) * given.accumulate]
                for count, model in clients.items():
                    begun, cpu = time.perf_counter(), time.process_time()
                    done = train(model, window, spec, in_flight=count)
                    losses[count] = done.loss
                    if step:  # the first one warms up
                        now = time.perf_counter() - begun, time.process_time() - cpu
                        times[count].append(now)
        one = statistics.median(wall for wall, _ in times[given.in_flight[0]])
        for count, took in times.items():
            wall, cpu = (statistics.median(t) for t in zip(*took, strict=True))
            print(
                f"| {delay:g} | {count} | {wall:.2f} | {wall / one:.2f} | {cpu:.2f} "
                f"| {losses[count]:.6f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
