from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from atlas_flwr.data import Batch
from atlas_flwr.errors import AtlasError
from atlas_flwr.lora import (
    AdapterState,
    Scaling,
    excess,
    initial_factors,
    linear_names,
)
from atlas_flwr.remedies.proximal import ProximalTerm
from atlas_flwr.seeds import derive_seed
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.train.evaluation import evaluate
from atlas_flwr.train.loop import train
from atlas_flwr.train.memory import PeakMeter
from atlas_flwr.train.model import adapted_whole
from atlas_flwr.train.step import StepLoss, batch_loss, task_loss
from atlas_flwr.trunk import LocalTrunk
from atlas_flwr.types import OptimizerSpec
from tests.families import build
from tests.train.batches import causal_batch


def test_the_loss_of_kept_positions_is_hugging_faces_loss():
    model, batch = build("llama"), causal_batch()
    expected = model(input_ids=batch.input_ids, labels=batch.labels).loss
    torch.testing.assert_close(batch_loss(model, batch), expected)


@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(2, None)], ids=str)
def test_split_and_whole_models_have_the_same_loss(plan):
    model, batch = build("llama"), causal_batch()
    parts = partition(model, plan)
    split = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk))
    torch.testing.assert_close(batch_loss(split, batch), batch_loss(model, batch))


@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(2, None)], ids=str)
@pytest.mark.parametrize("family", ["bloom", "mpt"])
def test_numbered_positions_are_left_out_where_a_model_takes_none(family, plan):
    model, batch = build(family), causal_batch()
    batch.attention_mask[1, :4] = 0
    batch = replace(batch, position_ids=batch.attention_mask.cumsum(1) - 1)
    parts = partition(model, plan)
    split = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk)).eval()
    plain = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    expected = model(**plain, labels=batch.labels)
    got = split(**plain, position_ids=batch.position_ids, labels=batch.labels)
    assert torch.equal(got.loss, expected.loss)
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(batch_loss(split, batch), batch_loss(model, batch))
    torch.testing.assert_close(batch_loss(model, batch), expected.loss)


def weights_after(mu, steps=3):
    torch.manual_seed(0)
    model = build("llama")
    start = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(1)
    batches = [causal_batch() for _ in range(steps)]
    term = ProximalTerm(mu)
    term.begin(SimpleNamespace(model=model), batches)
    objective = partial(term.step, proceed=task_loss)
    train(model, batches, OptimizerSpec(lr=1e-2), objective=objective)
    moved = [p.detach() - p0 for p, p0 in zip(model.parameters(), start, strict=True)]
    return sum(float(m.square().sum()) for m in moved)


def test_the_proximal_term_holds_the_weights_back():
    free, held = weights_after(0.0), weights_after(1000.0)
    assert held < 0.9 * free


def test_the_first_step_does_not_feel_the_proximal_term():
    assert weights_after(0.0, steps=1) == pytest.approx(weights_after(5.0, steps=1))


def test_a_penalty_is_a_term_of_every_steps_loss():
    batches, found = [causal_batch() for _ in range(3)], []
    for by_hand in (False, True):
        torch.manual_seed(0)
        model, scaling = build("llama"), Scaling(8.0)
        shapes = {n: model.get_submodule(n).weight.shape for n in linear_names(model)}
        factors = {
            name: initial_factors(name, tuple(shape), 4, scaling=scaling, seed=0)
            for name, shape in shapes.items()
        }
        for name in factors:
            factors[name].B.normal_(std=0.1)
        with adapted_whole(model, AdapterState(factors), scaling) as client:
            if by_hand:
                _train_by_hand(client.model, batches, weight=0.7, rank=3)
            else:
                term = partial(_weighted, client, 0.7)
                train(client.model, batches, OptimizerSpec(lr=1e-2), objective=term)
            found.append(client.state().factors)
    ours, wanted = found
    for name in factors:
        torch.testing.assert_close(ours[name].A, wanted[name].A, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours[name].B, wanted[name].B, atol=1e-5, rtol=1e-4)


def _weighted(client, weight, step):
    return task_loss(step).plus(weight * excess(client.attached(), 0.75))


def _train_by_hand(model, batches, weight, rank):
    named = dict(model.named_parameters())
    pairs = [
        (named[key], named[key.replace("lora_A", "lora_B")])
        for key in named
        if "lora_A" in key
    ]
    adamw = torch.optim.AdamW([t for p in pairs for t in p], lr=1e-2, weight_decay=0.0)
    for batch in batches:
        adamw.zero_grad()
        loss = batch_loss(model, batch)
        for A, B in pairs:
            beyond = (B[:, rank:] ** 2).sum() * (A[rank:, :] ** 2).sum()
            loss = loss + weight * beyond.sqrt()
        loss.backward()
        adamw.step()


def test_the_tasks_loss_and_the_penalty_are_told_apart():
    model, given = build("llama"), [causal_batch() for _ in range(3)]
    spec = OptimizerSpec(lr=1e-9)

    def penalised(step):
        found = task_loss(step)
        return found if step.index == 1 else found.plus(torch.tensor(2.0 + step.index))

    plain = train(model, given, spec)
    told = train(model, given, spec, objective=penalised)
    assert plain.penalty is None
    assert told.loss == pytest.approx(plain.loss, rel=1e-5)
    assert told.penalty == pytest.approx((2.0 + 4.0) / 2)


def test_an_estimated_step_is_not_in_the_mean():
    model, given = build("llama"), [causal_batch() for _ in range(2)]

    def second_estimated(step):
        found = task_loss(step)
        return found if step.index == 0 else StepLoss(found.task * 50, counted=False)

    done = train(model, given, OptimizerSpec(lr=1e-9), objective=second_estimated)
    assert done.loss == pytest.approx(batch_loss(model, given[0]).item(), rel=1e-5)
    assert done.steps == 2


def test_a_loss_that_is_not_finite_ends_training_with_advice():
    model = build("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(AtlasError, match="learning-rate"):
        train(model, [causal_batch()], OptimizerSpec())


def test_accuracy_is_that_of_the_best_label_alone():
    class Fixed(torch.nn.Module):
        def forward(self, input_ids, attention_mask, logits_to_keep):
            logits = torch.zeros(len(input_ids), 1, 10)
            logits[:, 0, 9] = 5.0  # the likeliest token is no label
            logits[:, 0, 4] = 1.0
            return type("Out", (), {"logits": logits})

    batch = Batch(
        input_ids=torch.zeros(4, 2, dtype=torch.long),
        attention_mask=torch.ones(4, 2, dtype=torch.long),
        labels=torch.full((4, 2), -100),
        targets=torch.tensor([0, 1, 1, 0]),
        logits_to_keep=1,
    )
    found = evaluate(Fixed(), [batch], label_ids=[4, 7])
    assert found.accuracy == 0.5
    assert found.examples == 4
    logits = torch.zeros(10)
    logits[9], logits[4] = 5.0, 1.0
    chance = torch.log_softmax(logits, 0)
    expected = -(2 * chance[4] + 2 * chance[7]) / 4
    assert found.loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_of_a_block_is_its_own_even_after_a_larger_one():
    def peak(mib):
        with PeakMeter() as meter:
            block = torch.ones(mib * 2**18)
            del block
        return meter.peak_bytes / 2**20

    assert peak(200) == pytest.approx(200, abs=20)
    assert peak(50) == pytest.approx(50, abs=20)


def test_derived_seeds_differ_by_every_name_and_stay_the_same():
    seeds = {derive_seed(s, n, r) for s in range(5) for n in "ab" for r in range(5)}
    assert len(seeds) == 50
    assert derive_seed(0, "train", 1) == derive_seed(0, "train", "1")
    assert derive_seed(1, "ab", "c") != derive_seed(1, "a", "bc")
