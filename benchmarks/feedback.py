# SPDX-License-Identifier: Apache-2.0
"""What error feedback does to a split model's training under lossy codecs.

Run from the top of the repository::

    python benchmarks/feedback.py

One client fine-tunes MiniLM over a cut; what crosses is rounded by a codec in all four
ways: hidden states and gradients, there and back. With feedback each way keeps what the
codec lost and adds it to what is sent next. As texts change, there are two ways to say
whose loss is whose:

- ``row``: the mean over all positions of what was lost, added to each position;
- ``text``: each text's own, by position, for its next turn: memory of its hidden states
  at both ends, and a text that comes once has none.

Every text comes in every epoch, in an order of its own. Losses at last are of test
texts, which cross by the codec without feedback. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from atlas_flwr.config import load_config
from atlas_flwr.data import load_task, make_shard, tokenizer_of
from atlas_flwr.data.collation import collator_of
from atlas_flwr.lora import Scaling
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.evaluation import evaluate
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import EngineTrunk, SessionSpec
from atlas_flwr.trunk.passing import PassingTrunk
from atlas_flwr.types import OptimizerSpec, Role, TrunkCall
from atlas_flwr.wire import codec_named

PLAN = SplitPlan(2, 1)
SCALING = Scaling(16.0)


@dataclass
class RoundedTrunk(PassingTrunk):
    """Round what crosses, with what was lost before added to it."""

    codec: str
    feedback: str
    texts: Sequence[int] = ()
    mask: Tensor = field(default_factory=lambda: torch.ones(0))
    lost: dict[Any, Tensor] = field(default_factory=dict)

    def forward(self, call: TrunkCall) -> Tensor:
        assert call.attention_mask is not None
        self.mask = call.attention_mask != 0
        learns = call.step is not None
        sent = self.crossed("up", call.hidden, Role.ACTIVATION, learns=learns)
        answer = self.trunk.forward(replace(call, hidden=sent))
        return self.crossed("down", answer, Role.ACTIVATION, learns=learns)

    def backward(self, step: int, grad: Tensor) -> Tensor:
        sent = self.crossed("up", grad, Role.GRADIENT, learns=True)
        back = self.trunk.backward(step, sent)
        assert back is not None
        return self.crossed("down", back, Role.GRADIENT, learns=True)

    def crossed(self, way: str, values: Tensor, role: Role, *, learns: bool) -> Tensor:
        rows = values[self.mask]
        owed = self._owed(way, role, values) if learns else torch.zeros(())
        given = (values + owed)[self.mask]
        codec = codec_named(self.codec)
        kept = codec.decode(codec.encode(given.numpy(), role))
        arrived = torch.zeros_like(values)
        arrived[self.mask] = torch.from_numpy(kept.copy())
        assert len(rows) == len(given)
        if learns:
            self._keep(way, role, (values + owed - arrived) * self.mask[..., None])
        return arrived

    def _owed(self, way: str, role: Role, values: Tensor) -> Tensor:
        if self.feedback == "row":
            return self.lost.get((way, role), torch.zeros(values.shape[-1]))
        owed = torch.zeros_like(values)
        if self.feedback == "text":
            for row, text in enumerate(self.texts):
                known = self.lost.get((way, role, text))
                if known is not None:
                    owed[row, : len(known)] = known[: owed.shape[1]]
        return owed

    def _keep(self, way: str, role: Role, lost: Tensor) -> None:
        if self.feedback == "row":
            self.lost[way, role] = lost.sum((0, 1)) / self.mask.sum()
        if self.feedback == "text":
            for row, text in enumerate(self.texts):
                self.lost[way, role, text] = lost[row].clone()


def trial(
    task: str, codec: str, feedback: str, seed: int, given: argparse.Namespace
) -> tuple[float, float, float]:
    """Return the last epoch's loss, and test loss and accuracy, %."""
    files = ModelFiles.of(load_config({"model": given.model, "tasks": task}))
    near, far = (
        initial_state(shapes, rank=8, scaling=SCALING, seed=seed)
        for shapes in files.outline().shapes_by_side(("all-linear",), PLAN)
    )
    near = replace(near, dense=files.dense())
    spec = OptimizerSpec(1e-3)
    engine = files.trunk(PLAN).engine()
    token = engine.open(SessionSpec(PLAN, far, spec))
    wire = RoundedTrunk(EngineTrunk(engine, token), codec, feedback)
    tokenizer: Any = tokenizer_of(files.source)
    known = load_task(task)
    shard = make_shard(
        0, 1, [known], train_examples=given.texts, test_examples=96, seed=seed
    )
    collate: Any = collator_of(files.source, tokenizer, known, 48)
    texts = collate.prepared(shard.train)[: given.texts]
    test = collate.prepared(shard.test)
    drawn = torch.Generator().manual_seed(seed)
    batches, owners = [], []
    for _ in range(given.epochs):
        order = torch.randperm(len(texts), generator=drawn).tolist()
        for start in range(0, len(order) - given.batch + 1, given.batch):
            owners.append(order[start : start + given.batch])
            batches.append(collate([texts[i] for i in owners[-1]]))
    parts = files.parts(PLAN)
    losses: list[float] = []
    with adapted_split(parts.head, parts.tail, wire, near, SCALING) as adapted:

        def objective(step: Any) -> Any:
            from atlas_flwr.train.step import task_loss

            wire.texts = owners[step.index]
            found = task_loss(step)
            losses.append(found.task.item())
            return found

        train(adapted.model, batches, spec, objective=objective)
        scored = [collate(test[i : i + 16]) for i in range(0, len(test), 16)]
        found = evaluate(adapted.model, scored, collate.label_ids)
    last = len(batches) // given.epochs
    return statistics.fmean(losses[-last:]), found.loss, 100 * found.accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tasks", nargs="+", default=["questions", "news"])
    parser.add_argument("--codecs", nargs="+", default=["topk", "int4"])
    parser.add_argument("--feedback", nargs="+", default=["none", "row", "text"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ways = [("raw", "none")]
    ways += [(codec, way) for codec in given.codecs for way in given.feedback]
    print("| task | codec | feedback | loss, last epoch | test loss | accuracy, % |")
    print("| --- " * 6 + "|")
    for task in given.tasks:
        for codec, feedback in ways:
            found = [trial(task, codec, feedback, s, given) for s in given.seeds]
            cells = [
                " ".join(f"{value:.{digits}f}" for value in values)
                for values, digits in zip(
                    zip(*found, strict=True), (3, 3, 1), strict=True
                )
            ]
            print(
                f"| {task} | `{codec}` | {feedback} | {' | '.join(cells)} |", flush=True
            )


if __name__ == "__main__":
    main()
