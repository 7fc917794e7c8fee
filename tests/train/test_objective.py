"""Objectives of a round: alignment, and an auxiliary tail, on tiny models."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.train.alignment import Alignment
from atlas_flwr.train.auxiliary import AuxiliaryTail
from atlas_flwr.train.loop import train
from atlas_flwr.train.objective import Objective
from atlas_flwr.train.pruning import el2n, hardest
from atlas_flwr.train.step import batch_loss, last_logits
from atlas_flwr.trunk import LocalTrunk
from atlas_flwr.types import OptimizerSpec
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


@pytest.fixture(params=KINDS)
def kind(request):
    torch.manual_seed(0)
    return request.param


def batches(kind, count):
    return [KINDS[kind]() for _ in range(count)]


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


def test_alignment_adds_the_divergence_from_the_rounds_start(kind):
    model, given = split_model(kind), batches(kind, 2)
    with torch.no_grad():
        begun = at_labels(model, given[1])[0]
    aligned = Alignment(model, given, 0.7)
    with torch.no_grad():
        for parameter in model.tail.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    now, labels = at_labels(model, given[1])
    apart = (begun * (begun / now).log()).sum(-1).mean()
    expected = -now[range(len(labels)), labels].log().mean() + 0.7 * apart
    torch.testing.assert_close(aligned(model, given[1], 1), expected)
    assert apart > 1e-3


def test_at_the_start_alignment_is_the_plain_loss_with_its_gradient(kind):
    model, given = split_model(kind), batches(kind, 1)
    grads = []
    for loss in (Alignment(model, given, 5.0), lambda m, b, i: batch_loss(m, b)):
        model.zero_grad()
        value = loss(model, given[0], 0)
        value.backward()
        torch.testing.assert_close(value, batch_loss(model, given[0]))
        grads.append([p.grad.clone() for p in model.tail.parameters()])
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)


def test_alignment_holds_answers_near_those_of_the_start(kind):
    def moved(strength):
        torch.manual_seed(0)
        model, given = split_model(kind), batches(kind, 1) * 8
        with torch.no_grad():
            begun = at_labels(model, given[0])[0]
        train(
            model,
            given,
            OptimizerSpec(1e-2),
            step_loss=Objective.of(model, given, align=strength).loss,
        )
        with torch.no_grad():
            now = at_labels(model, given[0])[0]
        return float((now - begun).abs().sum())

    assert moved(20.0) < 0.7 * moved(0.0)


@pytest.mark.parametrize("local_steps", [1, 3])
def test_an_auxiliary_tail_crosses_in_one_step_of_k_plus_one(kind, local_steps):
    model, given = split_model(kind), batches(kind, 8)
    trunk = model.trunk
    objective = Objective.of(model, given, auxiliary_steps=local_steps)
    done = train(
        model,
        given,
        OptimizerSpec(1e-3),
        step_loss=objective.loss,
        counts=objective.counts,
    )
    assert done.steps == 8
    assert trunk.calls == 2 * 8 // (local_steps + 1)


def test_between_crossings_the_head_alone_learns(kind):
    model, given = split_model(kind), batches(kind, 2)
    auxiliary = AuxiliaryTail(model, 1, 0)
    auxiliary(model, given[0], 0).backward()
    model.zero_grad()
    before = [p.grad for p in model.trunk.trunk.module.parameters()]
    auxiliary(model, given[1], 1).backward()
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
    auxiliary(model, batch, 0).backward()
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
    auxiliary(model, batch, 0).backward()
    _, found = auxiliary._estimate(
        model.tail, model.trunk.hidden, batch, create_graph=False
    )
    model.trunk.gradient = -found
    auxiliary._steps.param_groups[0]["lr"] = 0.0
    auxiliary._align(model.tail, batch)
    assert auxiliary.scale == 0


def test_el2n_is_the_norm_of_the_error_by_hand(kind):
    model, given = split_model(kind), batches(kind, 2)
    ids = [3, 1, 4, 2]
    for batch in given:
        batch.targets[:] = torch.arange(len(batch)) % 4
    scores = el2n(model, given, ids)
    expected = []
    for batch in given:
        with torch.no_grad():
            logits = last_logits(model, batch)
        logits = logits[:, -1] if batch.causal else logits
        for row, target in zip(logits, batch.targets, strict=True):
            error = F.softmax(row[ids], 0)
            error[target] -= 1
            expected.append(error.square().sum().sqrt())
    torch.testing.assert_close(scores, torch.stack(expected))


@given(
    st.lists(st.floats(0, 1.5, width=32), min_size=1, max_size=40), st.floats(0, 0.95)
)
def test_the_hardest_stay_and_as_many_as_asked(values, dropped):
    scores = torch.tensor(values)
    kept = hardest(scores, dropped)
    assert kept == sorted(set(kept))
    assert len(kept) == max(1, len(values) - int(dropped * len(values)))
    lost = set(range(len(values))) - set(kept)
    assert all(scores[k] >= scores[j] for k in kept for j in lost)
