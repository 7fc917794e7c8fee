"""An auxiliary tail on tiny models: what it estimates, and what it moves."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.train.auxiliary import AuxiliaryTail
from atlas_flwr.train.step import batch_loss
from tests.train.batches import causal_batch
from tests.train.splits import KINDS, batches, split_model


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(0)
    return request.param


def crossing(auxiliary, model, batch):
    auxiliary.heard(batch)
    return batch_loss(model, batch)


def test_between_crossings_the_head_alone_learns(kind):
    model, given = split_model(kind), batches(kind, 2)
    auxiliary = AuxiliaryTail(model, 1, 0)
    crossing(auxiliary, model, given[0]).backward()
    model.zero_grad()
    before = [p.grad for p in model.trunk.trunk.module.parameters()]
    auxiliary.estimated_loss(given[1]).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.head.parameters())
    own = {id(p) for p in model.head.parameters()}  # tied embeddings are in both
    rest = [p for p in model.tail.parameters() if id(p) not in own]
    assert all(p.grad is None for p in rest)
    assert all(
        a is b
        for a, b in zip(
            before,
            [p.grad for p in model.trunk.trunk.module.parameters()],
            strict=True,
        )
    )


def test_the_estimate_is_nearer_to_the_trunks_gradient_after_aligning(kind):
    model, (batch,) = split_model(kind), batches(kind, 1)
    with torch.no_grad():  # an untrained trunk is nearly the identity
        for parameter in model.trunk.module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    auxiliary = AuxiliaryTail(model, 1, 0)
    crossing(auxiliary, model, batch).backward()
    hidden, wanted = model.trunk.hidden, model.trunk.gradient

    def miss():
        _, found = auxiliary._estimate(model.tail, hidden, batch, create_graph=False)
        best = ((found * wanted).sum() / found.square().sum()).clamp_min(0)
        return float((best * found - wanted).norm() / wanted.norm())

    before = miss()
    assert before > 0.1
    auxiliary._align(model.tail, batch)
    assert miss() < before
    _, found = auxiliary._estimate(model.tail, hidden, batch, create_graph=False)
    closed_form = (found * wanted).sum() / found.square().sum()
    torch.testing.assert_close(auxiliary.scale, closed_form.clamp_min(0))


def test_an_estimate_that_points_the_wrong_way_moves_nothing():
    model, (batch,) = split_model(), [causal_batch()]
    auxiliary = AuxiliaryTail(model, 1, 0)
    crossing(auxiliary, model, batch).backward()
    _, found = auxiliary._estimate(
        model.tail, model.trunk.hidden, batch, create_graph=False
    )
    model.trunk.gradient = -found
    auxiliary._steps.param_groups[0]["lr"] = 0.0
    auxiliary._align(model.tail, batch)
    assert auxiliary.scale == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_gradients_of_half_precision_have_a_scale(kind, dtype):
    model, (batch,) = split_model(kind), batches(kind, 1)
    for part in (model.head, model.tail, model.trunk.module):
        part.to(dtype)
    auxiliary = AuxiliaryTail(model, 1, 0)
    crossing(auxiliary, model, batch).backward()
    model.trunk.gradient = model.trunk.gradient / 128
    auxiliary._align(model.tail, batch)
    _, found = auxiliary._estimate(
        model.tail, model.trunk.hidden, batch, create_graph=False
    )
    found, wanted = found.double(), model.trunk.gradient.double()
    best = float((found * wanted).sum() / found.square().sum())
    assert best > 0
    assert float(auxiliary.scale) == pytest.approx(best, rel=1e-4)
