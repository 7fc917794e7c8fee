# SPDX-License-Identifier: Apache-2.0
"""How well an auxiliary tail estimates the trunk's gradient on batches it has not seen.

Run from the top of the repository::

    python benchmarks/auxiliary.py

A client trains with ``auxiliary-steps=1``; in steps that do not cross, the trunk is
asked for the true gradient as well. Prints the cosines of estimate and truth.
"""

from __future__ import annotations

import argparse
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlas_flwr.client_apps.batches import ClientBatches
from atlas_flwr.client_apps.identity import Identity
from atlas_flwr.config import load_config
from atlas_flwr.lora import Scaling
from atlas_flwr.split import SplitPlan
from atlas_flwr.split.passes import end_model, run_blocks
from atlas_flwr.train.auxiliary import AuxiliaryTail
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.step import (
    Step,
    StepLoss,
    batch_loss,
    model_inputs,
    task_loss,
)
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import LocalTrunk
from atlas_flwr.types import OptimizerSpec, Side

PLAN, SCALING = SplitPlan(2, 1), Scaling(16.0)


class Rest(nn.Module):
    """Trunk and tail behind hidden states, as one differentiable model."""

    def __init__(self, trunk: nn.Module, tail: nn.Module, hidden: Tensor) -> None:
        super().__init__()
        self.trunk, self.tail, self.hidden = trunk, tail, hidden

    def forward(self, attention_mask, position_ids=None, logits_to_keep=0, **_):  # noqa: ANN001, ANN003, ANN201
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        answer = run_blocks(self.trunk, inputs_embeds=self.hidden, **given)
        return end_model(self.tail, answer, logits_to_keep=logits_to_keep, **given)


def cosines(model: str, client: int) -> list[float]:
    config = load_config({"model": model, "local-steps": 16, "batch-size": 8})
    files = ModelFiles.of(config)
    parts = files.parts(PLAN, sides=(Side.HEAD, Side.TRUNK, Side.TAIL))
    shapes, _ = files.outline().shapes_by_side(("all-linear",), PLAN)
    state = initial_state(shapes, rank=8, scaling=SCALING, seed=0)
    me = Identity(client, 4, None)
    batches = ClientBatches(config, me, files.source, 1)
    parts.trunk.requires_grad_(False)
    trunk = LocalTrunk(parts.trunk)
    found: list[float] = []
    with adapted_split(parts.head, parts.tail, trunk, state, SCALING) as adapted:
        auxiliary = AuxiliaryTail(adapted.model, 1, 0)

        def objective(step: Step) -> StepLoss:
            split, batch = step.model, step.batch
            if auxiliary.crosses(step.index):
                auxiliary.heard(batch)
                loss = task_loss(step)
            else:
                loss = StepLoss(auxiliary.estimated_loss(batch), counted=False)
                with torch.no_grad():
                    hidden = run_blocks(split.head, **model_inputs(split, batch))
                _, estimate = auxiliary._estimate(
                    split.tail, hidden, batch, create_graph=False
                )
                leaf = hidden.clone().requires_grad_()
                whole = batch_loss(Rest(parts.trunk, split.tail, leaf), batch)
                (true,) = torch.autograd.grad(whole, leaf)
                found.append(
                    float(F.cosine_similarity(true.flatten(), estimate.flatten(), 0))
                )
            return loss

        given, _ = batches.to_train(adapted.model)
        train(adapted.model, given, OptimizerSpec(1e-3), objective=objective)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["minilm", "smollm2"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| model | cut | cosine: mean | least | most |\n| --- | --- | --- | --- | --- |"
    )
    for model in given.models:
        found = [c for client in range(4) for c in cosines(model, client)]
        ends = f"{min(found):.2f} | {max(found):.2f}"
        print(f"| {model} | {PLAN} | {statistics.fmean(found):.2f} | {ends} |")


if __name__ == "__main__":
    main()
