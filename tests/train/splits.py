"""Tiny split models, and a trunk that counts what crosses."""

from __future__ import annotations

from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import LocalTrunk
from tests.families import build
from tests.train.batches import causal_batch, classifier_batch

KINDS = {"llama": causal_batch, "bert": classifier_batch}


class Counting(LocalTrunk):
    """A trunk that counts what crosses."""

    calls = 0

    def forward(self, call):
        self.calls += 1
        return super().forward(call)

    def backward(self, step, grad):
        self.calls += 1
        return super().backward(step, grad)


def split_model(kind="llama"):
    parts = partition(build(kind), SplitPlan(2, 1))
    return SplitModel(parts.head, parts.tail, Counting(parts.trunk))


def batches(kind, count):
    return [KINDS[kind]() for _ in range(count)]
