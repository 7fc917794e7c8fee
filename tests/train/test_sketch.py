from __future__ import annotations

import numpy as np
import torch
from torch import nn

from atlas_flwr.clustering import fingerprint_parts
from atlas_flwr.train import sketch as module
from atlas_flwr.train.sketch import batch_gradients, sketch_gradients


class Model(nn.Module):
    """A layer with an adapter: its gradient is known."""

    def __init__(self):
        super().__init__()
        self.lora_A = nn.Parameter(torch.ones(2, 3))
        self.lora_B = nn.Parameter(torch.zeros(4, 2))
        self.classifier = nn.Parameter(torch.ones(4))


def loss(model, batch):
    return (model.classifier @ model.lora_B @ model.lora_A @ batch).sum()


def run(function, batches, monkeypatch, **options):
    monkeypatch.setattr(module, "batch_loss", loss)
    model = Model()
    model.train()
    found = function(model, iter(batches), name="shared.{}".format, **options)
    return model, found


BATCHES = [torch.full((3, 2), float(i + 1)) for i in range(6)]


def test_gradients_are_those_of_each_batch_alone(monkeypatch):
    _, found = run(batch_gradients, BATCHES, monkeypatch)
    copies = [{name: g.clone() for name, g in batch.items()} for batch in found]
    assert [set(batch) for batch in copies] == [{"shared.lora_B"}] * 6
    for i, batch in enumerate(copies):
        # d/dB of sum_k c_k (B A x): A x is 3 (i + 1) in each of 2 rows, 2 columns.
        np.testing.assert_allclose(batch["shared.lora_B"], 6.0 * (i + 1))


def test_a_fingerprint_is_that_of_the_batches_gradients(monkeypatch):
    _, found = run(batch_gradients, BATCHES, monkeypatch)
    copies = [{name: g.clone() for name, g in batch.items()} for batch in found]
    expected = fingerprint_parts(copies, 3, 16, 7)
    model, sketch = run(sketch_gradients, BATCHES, monkeypatch, parts=3, dim=16, seed=7)
    assert np.array_equal(sketch, expected)
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_a_fingerprint_takes_256_bytes(monkeypatch):
    _, sketch = run(sketch_gradients, BATCHES, monkeypatch)
    assert sketch.nbytes == 256
