"""Accumulated gradients are of the mean over all labels of an optimiser step."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from atlas_flwr.config import load_config
from atlas_flwr.errors import ConfigError
from atlas_flwr.lora import AdapterState, Scaling, attach, extract, load
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.train.loop import train
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.step import Step, task_loss
from atlas_flwr.trunk import LocalTrunk, SessionSpec, TrunkEngine, connect, serve_local
from atlas_flwr.types import OptimizerSpec
from tests.families import build
from tests.train.batches import classifier_batch, ragged_chats
from tests.trunk.engine.test_parity import adapters

SPEC = OptimizerSpec(lr=0.02, betas=(0.8, 0.95), accumulate=3)
SCALING = Scaling(6.0)


def uneven(kind, steps=2):
    """Batches whose labels differ in number."""
    if kind == "bert":
        made = [classifier_batch() for _ in range(3 * steps)]
        return [_first(b, 1 + n % 3) for n, b in enumerate(made)]
    return [ragged_chats(rows=1 + n % 3, length=20 + n) for n in range(3 * steps)]


def _first(batch, rows):
    kept = {name: getattr(batch, name)[:rows] for name in ("input_ids", "labels")}
    mask, targets = batch.attention_mask[:rows], batch.targets[:rows]
    return replace(batch, attention_mask=mask, targets=targets, **kept)


def adapted_by(model, state):
    attach(model, dict.fromkeys(state.factors, 3), SCALING)
    load(model, state.factors)
    return model


def as_trainer_does(model, batches):
    """Transformers' convention: a sum over labels, divided by all of the step's."""
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=SPEC.lr, betas=SPEC.betas, weight_decay=0)
    for start in range(0, len(batches), 3):
        window = batches[start : start + 3]
        items = sum(int((b.labels != -100).sum()) for b in window)
        for batch in window:
            given = {"input_ids": batch.input_ids, "labels": batch.labels}
            given["attention_mask"] = batch.attention_mask
            if batch.causal:
                given |= {"position_ids": batch.position_ids}
                loss = model(**given, num_items_in_batch=items).loss
            else:
                loss = model(**given).loss * len(batch) / items
            loss.backward()
        adamw.step()
        adamw.zero_grad()
    return extract(model)


def alike(found, expected):
    assert set(found) == set(expected)
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name].A, wanted.A, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found[name].B, wanted.B, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(2, None)], ids=str)
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_both_sides_learn_as_the_unsplit_model_does(kind, plan):
    batches, model = uneven(kind), build(kind)
    whole = copy.deepcopy(model)
    state = adapters(model, range(5))
    parts = partition(model, plan)
    on_trunk = adapters(model, plan.trunk_range(5)).factors.keys()
    expected = as_trainer_does(adapted_by(whole, state), batches)
    engine = TrunkEngine(parts.trunk)
    with serve_local("accumulation", engine) as address:
        theirs = AdapterState({n: state.factors[n] for n in sorted(on_trunk)})
        mine = AdapterState(
            {n: f for n, f in state.factors.items() if n not in on_trunk}
        )
        token = engine.open(SessionSpec(plan, theirs, SPEC))
        link = connect(address, token=token)
        with adapted_split(parts.head, parts.tail, link, mine, SCALING) as client:
            done = train(client.model, batches, SPEC)
            ours = client.state().factors
        alike(engine.adapters(token).factors, {n: expected[n] for n in on_trunk})
    alike(ours, {n: f for n, f in expected.items() if n not in on_trunk})
    assert done.steps == 6


@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(2, None)], ids=str)
def test_what_is_reported_is_each_batchs_mean(plan):
    (batch,) = uneven("llama")[:1]
    parts = partition(build("llama"), plan)
    split = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk))
    alone = task_loss(Step(split, batch, 0)).task
    shared = task_loss(Step(split, batch, 0, labels=40)).task
    torch.testing.assert_close(shared, alone)


def test_batches_that_stay_cannot_be_accumulated():
    for key, value in (("skip-gradients", 0.5), ("auxiliary-steps", 1)):
        with pytest.raises(ConfigError, match="accumulate=2"):
            load_config({"accumulate": 2, key: value})
