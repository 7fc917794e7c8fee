# SPDX-License-Identifier: Apache-2.0
"""The simulated clock beside a real run, and what it says of 64 and 10,000 clients.

Run from the top of the repository::

    python benchmarks/clock.py           # all; some minutes
    python benchmarks/clock.py --paper   # without the real run; seconds

The real run is a trunk of SmolLM2's width in this process, on one thread, whose clients
are threads that sleep for as long as their own blocks and their links take. The clock
is told the same times, and those of the trunk's passes as they were measured alone.
Elsewhere nothing is run: times are those of the given rates.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atlas_flwr.budget import QUEUES, Traveller, TrunkRate, simulate
from atlas_flwr.split import SplitPlan, partition
from atlas_flwr.trunk import Limits, SessionSpec, TrunkEngine
from atlas_flwr.types import TrunkCall

PLAN = SplitPlan(1, 1)
WIDTH, BLOCKS, BATCH, TOKENS = 576, 8, 2, 32


def engine(queue: str) -> TrunkEngine:
    """Make a trunk."""
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=1536,
        num_hidden_layers=BLOCKS,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    torch.manual_seed(0)
    trunk = partition(transformers.LlamaForCausalLM(config).eval(), PLAN).trunk
    return TrunkEngine(trunk, limits=Limits(sessions_per_pass=1, queue=queue))


class Sleeper:
    """A client whose own work and link are sleep."""

    def __init__(self, made: TrunkEngine, times: Traveller) -> None:
        self.engine, self.times = made, times
        self.token = made.open(SessionSpec(PLAN, steps=times.steps))
        self.hidden = torch.randn(BATCH, TOKENS, WIDTH)
        self.trunk_seconds: list[float] = []

    def run(self) -> None:
        """Take all steps."""
        torch.set_num_threads(1)
        head, tail, link = self.times.head, self.times.tail or 0.0, self.times.link
        for step in range(self.times.steps):
            time.sleep(head / 3 + link)
            began = time.perf_counter()
            answer = self.engine.forward(self.token, TrunkCall(self.hidden, step=step))
            took = time.perf_counter() - began
            time.sleep(link + tail + link)
            began = time.perf_counter()
            self.engine.backward(self.token, step, torch.ones_like(answer))
            self.trunk_seconds.append(took + time.perf_counter() - began)
            time.sleep(link + head * 2 / 3)


def real(queue: str, clients: list[Traveller]) -> float:
    """Run a round; return its seconds."""
    made = engine(queue)
    sleepers = [Sleeper(made, client) for client in clients]
    threads = [threading.Thread(target=sleeper.run) for sleeper in sleepers]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def pass_seconds() -> float:
    """Time a step's passes alone."""
    alone = Sleeper(engine("fifo"), Traveller(0.0, 0.0, 0.0, steps=12))
    alone.run()
    return median(alone.trunk_seconds[2:])


def uneven(
    number: int, path: float, steps: int, seed: int, trunks: int = 1
) -> list[Traveller]:
    """Draw clients: compute over 10x, links over 20x, the slowest's step ``path``."""
    chance, made = random.Random(seed), []
    for k in range(number):
        own, link = path / 2 * 10 ** -chance.random(), path / 8 * 20 ** -chance.random()
        cluster = str(chance.randrange(4))
        made.append(
            Traveller(
                own / 2, own / 2, link, 1, steps, trunks=(k % trunks,), cluster=cluster
            )
        )
    return made


def against_a_real_run() -> None:
    """Print the clock's seconds beside a real round's."""
    print("| clients | trunk-queue | real, s | clock, s | clock / real |")
    print("| --- | --- | --- | --- | --- |")
    for number in (8, 24):
        for queue in ("fifo", "longest-path"):
            row = pass_seconds()
            clients = uneven(number, 24 * row, 6, seed=0)
            took = real(queue, clients)
            row = (row + pass_seconds()) / 2  # before and after, as others work too
            said = simulate(clients, [TrunkRate(row)], queue=QUEUES[queue]).seconds
            ratio = said / took
            print(f"| {number} | {queue} | {took:.1f} | {said:.1f} | {ratio:.2f} |")


def sixty_four() -> None:
    """Print the gain over first come, first served without overlap."""
    print("\n| trunk's work / slowest client's | trunk-queue | whole steps | ", end="")
    print("2 micro-batches | 4 | smallest cluster |")
    print("| --- | --- | --- | --- | --- | --- |")
    for load in (0.25, 0.5, 0.9, 1.5):
        seeds = range(3)
        fleets = [uneven(64, 1.0, 8, seed) for seed in seeds]
        for fleet in fleets:  # one cluster of four
            for k in range(64):
                fleet[k] = replace(fleet[k], cluster="few" if k < 4 else "many")
        trunk = [TrunkRate(load / 64)]
        before = [simulate(fleet, trunk) for fleet in fleets]
        for name, queue in QUEUES.items():
            gains = [
                median(
                    b.seconds / simulate(fleet, trunk, queue=queue, parts=parts).seconds
                    for b, fleet in zip(before, fleets, strict=True)
                )
                for parts in (1, 2, 4)
            ]
            few = median(
                max(b.ends[:4]) / max(simulate(fleet, trunk, queue=queue).ends[:4])
                for b, fleet in zip(before, fleets, strict=True)
            )
            shown = " | ".join(f"{gain:.2f}" for gain in (*gains, few))
            print(f"| {load} | {name} | {shown} |")


def on_paper() -> None:
    """Print rounds of bases and fleets that fit no machine here."""
    print(
        "\n| base, GPUs | clients | fifo, s | longest path, s | with 2 parts, s | ",
        end="",
    )
    print("trunk busy, % |")
    print("| --- | --- | --- | --- | --- | --- |")
    # 4 operations a weight and position, at the 394 TFLOP/s that joined passes of a 7B
    # base reach on an H200 (issue 10's table: 6,144 rows more in 366 ms).
    for name, weights, launch in (("7B", 6.2e9, 0.1), ("70B", 68e9, 0.27)):
        for number, gpus in ((100, 1), (1000, 1), (1000, 4), (10_000, 16)):
            rows = BATCH * 4 * 64
            row = 4 * weights / 394e12
            # The base in as many replicas; a 70B one takes two GPUs in a chain.
            chain = 2 if name == "70B" else 1
            replicas = max(gpus // chain, 1)
            fleet = uneven(number, 20.0, 8, seed=0)
            fleet = [
                replace(
                    client,
                    rows=rows,
                    trunks=tuple(k % replicas * chain + hop for hop in range(chain)),
                )
                for k, client in enumerate(fleet)
            ]
            rate = TrunkRate(row / chain, launch / chain, sessions_per_pass=64)
            trunks = [rate] * (replicas * chain)
            found = [
                simulate(fleet, trunks, queue=QUEUES[queue], parts=parts)
                for queue, parts in (
                    ("fifo", 1),
                    ("longest-path", 1),
                    ("longest-path", 2),
                )
            ]
            busy = 100 * max(found[1].busy) / found[1].seconds
            seconds = " | ".join(f"{f.seconds:.0f}" for f in found)
            used = replicas * chain
            print(
                f"| {name}, {used} | {number:,} | {seconds} | {busy:.0f} |", flush=True
            )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--paper", action="store_true", help="without the real run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.paper:
        against_a_real_run()
    sixty_four()
    on_paper()


if __name__ == "__main__":
    main()
