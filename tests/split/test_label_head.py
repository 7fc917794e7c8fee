"""The LM head multiplies its weight once, however many rows a batch has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.train.step import answer_logits, batch_loss
from atlas_flwr.trunk import LocalTrunk
from tests.families import build
from tests.train.batches import causal_batch


class Products(TorchDispatchMode):
    """Keeps the operands' shapes of each batched matrix product."""

    def __init__(self):
        super().__init__()
        self.batched = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.bmm.default:
            self.batched.append(tuple(args[1].shape))
        return func(*args, **(kwargs or {}))


def models(vanilla):
    whole = build("llama").requires_grad_(False)
    tail = None if vanilla else 1
    parts = partition(build("llama"), SplitPlan(1, tail))
    for part in (parts.head, parts.trunk, parts.tail):
        if part is not None:
            part.requires_grad_(False)
    return whole, SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk))


def copies(run, width):
    """Batched products with a matrix that has a side as wide as the vocabulary."""
    with Products() as products:
        run()
    return [shape for shape in products.batched if width in shape[1:]]


@pytest.mark.parametrize("vanilla", [False, True])
def test_answers_of_many_rows_copy_no_vocabulary(vanilla):
    whole, split = models(vanilla)
    batch, width = causal_batch(), whole.config.vocab_size
    given = {"input_ids": batch.input_ids, "logits_to_keep": batch.logits_to_keep}
    assert copies(lambda: whole(**given), width)  # transformers alone makes them
    for model in (whole, split):
        assert not copies(lambda: answer_logits(model, batch), width)  # noqa: B023


def test_a_label_after_the_text_copies_no_vocabulary():
    _, split = models(vanilla=False)
    batch = causal_batch(keep=2)
    ids = batch.input_ids
    labels = torch.full((len(ids), ids.shape[1] + 1), -100)
    labels[:, -1] = 5
    ahead = replace(batch, labels=labels, logits_to_keep=1)
    assert ahead.looks_ahead
    width = split.tail.config.vocab_size
    assert not copies(lambda: batch_loss(split, ahead), width)
