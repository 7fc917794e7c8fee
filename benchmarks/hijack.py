# SPDX-License-Identifier: Apache-2.0
"""What a trunk that hijacks a client reads more than one that looks on, and its price.

Run from the top of the repository::

    python benchmarks/hijack.py --model smollm2 --steps 24

One client of the questions task trains with a defence on. Its trunk is honest, or
returns so much of its own aim's gradients (`atlas_flwr/privacy/attacks/hijack.py`).
Prints a Markdown table, a row a trunk: what the attacks read of 24 other texts of the
client past the head that it has by then, fitted anew on other tasks' texts past that
head; the training loss of the first and the last steps; and by how much gradients were
off the trunk's answers, which `watch` looks at.

    python benchmarks/hijack.py --model tiny --rounds 100

counts, instead, the rounds of eight steps in which `watch` raises an alarm, all steps
watched, each round from a start of its own, with the exact interval of Clopper and
Pearson.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from atlas_flwr.cli.recorded import cases
from atlas_flwr.config import RunConfig, load_config
from atlas_flwr.data import Collator, Shard, load_task, make_shard, tokenizer_of
from atlas_flwr.data.collation import collator_of
from atlas_flwr.errors import TrunkError
from atlas_flwr.lora import AdapterState, Scaling
from atlas_flwr.privacy import ATTACKS, Observation, Recording, Score, Truth
from atlas_flwr.privacy.attacks.hijack import HijackingTrunk
from atlas_flwr.privacy.defended import DefendedTrunk
from atlas_flwr.privacy.knowledge import PublicModel
from atlas_flwr.privacy.watched import ALLOWED, WatchedTrunk
from atlas_flwr.remedies.wire_defence import defence_of, penalised
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.step import Step, StepLoss, task_loss
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import SessionSpec
from atlas_flwr.trunk.transports.local import EngineTrunk
from atlas_flwr.types import OptimizerSpec, TrunkClient

TASK, RANK, ROUND = "questions", 8, 8
LEARNED, READ = 400, 24  # texts
TRUNKS = {
    "honest": (0.0, False),
    "its aim alone": (1.0, False),
    "half": (0.5, False),
    "a tenth": (0.1, False),
    "its aim, evading": (1.0, True),
}


@dataclass
class Client:
    """One client, and a trunk of its own, from the start.

    Attributes
    ----------
    config : RunConfig
        Model, task, cut, defence.
    seed : int
        Of adapters and batches.
    """

    config: RunConfig
    seed: int
    files: ModelFiles = field(init=False)
    plan: SplitPlan = field(init=False)
    state: AdapterState = field(init=False)
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = ModelFiles.of(self.config, "cpu")
        self.plan = SplitPlan.parse(self.config.cut)
        shapes = self.files.outline().shapes(self.config.target_list)
        self.state = initial_state(shapes, rank=RANK, scaling=Scaling(), seed=self.seed)

    def batches(self, count: int) -> Iterator[Any]:
        collate, shard = self._data()
        size = self.config.batch_size
        drawn = torch.Generator().manual_seed(self.seed)
        for _ in range(count):
            rows = torch.randint(len(shard.train), (size,), generator=drawn)
            yield collate([shard.train[int(row)] for row in rows])

    def train(
        self, steps: int, share: float, evades: bool, allowed: float = ALLOWED
    ) -> WatchedTrunk:
        """Train, every step watched; return the watch.

        Raises
        ------
        TrunkError
            When it raises an alarm.
        """
        outline, state = self.files.outline(), self.state
        blocks = self.plan.trunk_range(outline.num_layers)
        middle = [n for n in state.layers if outline.block_of(n) in blocks]
        sides = [n for n in state.layers if n not in middle]
        rate = OptimizerSpec(self.config.learning_rate)
        engine = self.files.trunk(self.plan).engine()
        token = engine.open(SessionSpec(self.plan, state.select(middle, {}), rate))
        trunk: TrunkClient = EngineTrunk(engine, token)
        if share:
            trunk = HijackingTrunk(trunk, share, evades)
        watch = WatchedTrunk(trunk, 1.0, allowed)
        drawn = torch.Generator().manual_seed(self.seed)
        sent = DefendedTrunk(watch, defence_of(self.config), drawn)
        parts, own = self.files.parts(self.plan), state.select(sides, {})
        with adapted_split(parts.head, parts.tail, sent, own, Scaling()) as adapted:
            train(adapted.model, self.batches(steps), rate, self._objective)
            self.state = adapted.state()
        return watch

    def _objective(self, step: Step) -> StepLoss:
        loss = penalised(defence_of(self.config), step, task_loss)
        self.losses.append(loss.task.item())
        return loss

    def read(self, attacks: list[str]) -> list[Score]:
        """Return what the attacks read of texts that it did not train on."""
        drawn = torch.Generator().manual_seed(self.seed + 1)
        collate, shard = self._data()
        where = "0", 1, 0, str(self.plan)
        anyone = Observation(*where, torch.empty(0), None, None)
        own = Recording("0", 1, self.plan, self.state, [], [])
        head = PublicModel(self.files.parts, [own])
        seen, truths = [], []
        for example in shard.test:
            ids = collate([example], prompt=True).input_ids
            with torch.no_grad():
                hidden = head.crossing(anyone, ids)[0].float()
            sent = defence_of(self.config).activations(hidden, drawn)
            seen.append(Observation(*where, sent, None, None))
            truths.append(Truth(ids[0], torch.zeros(ids.shape[1]).bool(), 0))
        found = [replace(own, observations=seen, truths=truths)]
        (case,) = cases(self.config, found, len(seen), self.config.seed)
        scores = []
        for name in attacks:
            score = case.attacked(ATTACKS[name], self.config.seed)
            if isinstance(score, str):
                raise SystemExit(f"{name}: {score}")
            scores.append(score)
        return scores

    def _data(self) -> tuple[Collator, Shard]:
        files, task = self.files, load_task(TASK)
        tokenizer: Any = tokenizer_of(files.source)
        collate = collator_of(files.source, tokenizer, task, self.config.max_length)
        shard = make_shard(
            0, 1, [task], train_examples=LEARNED, test_examples=READ, seed=self.seed
        )
        return collate, shard


def table(config: RunConfig, steps: int, trunks: list[str], attacks: list[str]) -> None:
    read = " | ".join(f"{name}, % (95 %)" for name in attacks)
    print(f"| trunk | {read} | loss | off |")
    print("| --- " * (len(attacks) + 3) + "|", flush=True)
    for name in trunks:
        client = Client(config, config.seed)
        share, evades = TRUNKS[name]
        watch = client.train(steps, share, evades, math.inf)
        scores = client.read(attacks)
        few = min(8, steps)
        first, last = client.losses[:few], client.losses[-few:]
        print(
            f"| {name} | {' | '.join(map(told, scores))} "
            f"| {statistics.fmean(first):.2f} → {statistics.fmean(last):.2f} "
            f"| {watch.off:.3g} |",
            flush=True,
        )


def told(score: Score) -> str:
    low, high = (f"{100 * end:.1f}" for end in score.interval)
    return f"{100 * score.token_accuracy:.1f} ({low}–{high})"


def alarms(config: RunConfig, rounds: int, trunks: list[str]) -> None:
    from scipy.stats import beta

    print("| trunk | alarms | 95 % | off, at most |")
    print("| --- " * 4 + "|", flush=True)
    for name in trunks:
        count, most = 0, 0.0
        for number in range(rounds):
            try:
                watch = Client(config, number).train(ROUND, *TRUNKS[name])
                most = max(most, watch.off)
            except TrunkError:
                count += 1
        low = beta.ppf(0.025, count, rounds - count + 1) if count else 0.0
        high = beta.ppf(0.975, count + 1, rounds - count) if count < rounds else 1.0
        span = f"{100 * low:.1f}–{100 * high:.1f}"
        worst = f"{most:.3g}" if count < rounds else "—"
        print(f"| {name} | {count} of {rounds} | {span} | {worst} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--cut", default="2/1")
    parser.add_argument("--defence", default="gaussian:1")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--attacks", nargs="+", default=["linear", "verified"])
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--trunks", nargs="+", default=list(TRUNKS), choices=TRUNKS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    asked = {"tasks": TASK, "cut": given.cut, "defence": given.defence}
    sizes = {"model": given.model, "batch-size": given.batch_size}
    config = load_config({"trunk": "local", **sizes, **asked})
    if given.rounds:
        alarms(config, given.rounds, given.trunks)
    else:
        table(config, given.steps, given.trunks, given.attacks)


if __name__ == "__main__":
    main()
