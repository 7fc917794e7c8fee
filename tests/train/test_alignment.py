"""The divergence from the round's start, on tiny models."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.train.alignment import StartingPoint
from atlas_flwr.train.loop import train
from atlas_flwr.train.step import Step, last_logits, task_loss
from atlas_flwr.types import OptimizerSpec
from tests.train.splits import KINDS, batches, split_model


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(0)
    return request.param


def at_labels(model, batch):
    """Probabilities at the labels, gathered row by row."""
    logits = last_logits(model, batch)
    if not batch.causal:
        return logits.softmax(-1), batch.labels
    rows, labels = [], []
    for i in range(len(batch)):
        for t in range(batch.logits_to_keep - 1):
            label = batch.labels[i, -batch.logits_to_keep + 1 + t]
            if label != -100:
                rows.append(logits[i, t].softmax(-1))
                labels.append(label)
    return torch.stack(rows), torch.stack(labels)


def test_the_divergence_is_from_the_rounds_start(kind):
    model, given = split_model(kind), batches(kind, 2)
    with torch.no_grad():
        begun = at_labels(model, given[1])[0]
    start = StartingPoint.of(model, given)
    with torch.no_grad():
        for parameter in model.tail.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    now, _ = at_labels(model, given[1])
    apart = (begun * (begun / now).log()).sum(-1).mean()
    torch.testing.assert_close(start.divergence(Step(model, given[1], 1)), apart)
    assert apart > 1e-3


def test_at_the_start_there_is_no_divergence_and_it_has_no_gradient(kind):
    model, given = split_model(kind), batches(kind, 1)
    value = StartingPoint.of(model, given).divergence(Step(model, given[0], 0))
    torch.testing.assert_close(value, torch.zeros(()), atol=1e-6, rtol=0)
    value.backward()
    for parameter in model.tail.parameters():
        assert parameter.grad is None or parameter.grad.abs().max() < 1e-6


def test_alignment_holds_answers_near_those_of_the_start(kind):
    def moved(strength):
        torch.manual_seed(0)
        model, given = split_model(kind), batches(kind, 1) * 8
        with torch.no_grad():
            begun = at_labels(model, given[0])[0]
        start = StartingPoint.of(model, given)

        def held(step):
            return task_loss(step).plus(strength * start.divergence(step))

        train(model, given, OptimizerSpec(1e-2), objective=held)
        with torch.no_grad():
            now = at_labels(model, given[0])[0]
        return float((now - begun).abs().sum())

    assert moved(20.0) < 0.7 * moved(0.0)
