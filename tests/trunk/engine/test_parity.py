# SPDX-License-Identifier: Apache-2.0
"""Training through an engine equals training the unsplit model with PEFT and AdamW."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atlas_flwr.errors import AdapterError, SessionError, TrunkError
from atlas_flwr.lora import (
    AdapterState,
    Scaling,
    attach,
    extract,
    initial_factors,
    linear_names,
    load,
)
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import (
    EngineTrunk,
    LocalTrunk,
    SessionSpec,
    TrunkEngine,
    connect,
    serve_local,
)
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import batch, build

SPEC = OptimizerSpec(lr=0.02, weight_decay=0.1, betas=(0.8, 0.95), accumulate=2)
FAMILIES = ["llama", "gpt2", "qwen2", "bert", "llama-classifier"]


def blocks_list(model):
    count = model.config.num_hidden_layers
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    return next(n for n in names if len(model.get_submodule(n)) == count)


def adapters(model, blocks, seed=0):
    made, prefix = {}, blocks_list(model)
    for name in linear_names(model):
        if int(name.removeprefix(f"{prefix}.").partition(".")[0]) in blocks:
            weight = model.get_submodule(name).weight
            is_linear = isinstance(model.get_submodule(name), torch.nn.Linear)
            shape = tuple(weight.shape if is_linear else weight.shape[::-1])
            made[name] = initial_factors(
                name, shape, 3, scaling=Scaling(6.0), seed=seed
            )
            made[name].B.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    return AdapterState(made)


def whole_run(model, state, batches):
    """The oracle: unsplit, PEFT's layers, torch's AdamW."""
    attach(model, dict.fromkeys(state.factors, 3), Scaling(6.0))
    load(model, state.factors)
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(
        trained, lr=SPEC.lr, betas=SPEC.betas, weight_decay=SPEC.weight_decay
    )
    losses = []
    for number, given in enumerate(batches, start=1):
        loss = model(**given).loss
        loss.backward()
        losses.append(loss.detach())
        if number % SPEC.accumulate == 0:
            adamw.step()
            adamw.zero_grad()
    return losses, extract(model)


@pytest.mark.parametrize("pad", ["", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_split_training_is_unsplit_training(family, pad):
    plan = SplitPlan(1, 2)
    model = build(family)
    state = adapters(model, range(1, 3))
    batches = [batch(family, pad) for _ in range(6)]
    parts = partition(model, plan)
    engine = TrunkEngine(parts.trunk)
    with serve_local("parity", engine) as address:
        token = engine.open(SessionSpec(plan, state, SPEC))
        split = SplitModel(parts.head, parts.tail, connect(address, token=token))
        got = []
        for given in batches:
            loss = split(**given).loss
            loss.backward()
            got.append(loss.detach())
    losses, expected = whole_run(model, state, batches)
    torch.testing.assert_close(got, losses, atol=2e-5, rtol=2e-5)
    found = engine.adapters(token).factors
    assert set(found) == set(expected)
    for name, factors in expected.items():
        torch.testing.assert_close(found[name].A, factors.A, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found[name].B, factors.B, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_vanilla_training_is_unsplit_training(family):
    plan = SplitPlan(2, None)
    model = build(family)
    state = adapters(model, range(2, 5))
    batches = [batch(family, "right") for _ in range(4)]
    parts = partition(model, plan)
    engine = TrunkEngine(parts.trunk)
    token = engine.open(SessionSpec(plan, state, SPEC))
    split = SplitModel(parts.head, None, EngineTrunk(engine, token))
    got = [split(**given).loss.detach() for given in batches]
    losses, expected = whole_run(model, state, batches)
    torch.testing.assert_close(got, losses, atol=2e-5, rtol=2e-5)
    for name, factors in expected.items():
        found = engine.adapters(token).factors[name]
        torch.testing.assert_close(found.B, factors.B, atol=1e-4, rtol=1e-3)


def test_a_trunk_that_ends_the_model_serves_u_shaped_plans_too():
    model = build("llama")
    engine = TrunkEngine(partition(model, SplitPlan(1, None)).trunk)
    plan = SplitPlan(2, 1)
    state = adapters(model, range(2, 4))
    here = EngineTrunk(engine, engine.open(SessionSpec(plan, state)))
    alone = TrunkEngine(partition(model, plan).trunk)
    there = EngineTrunk(alone, alone.open(SessionSpec(plan, state)))
    call, grad = TrunkCall(torch.randn(2, 4, 32), step=0), torch.randn(2, 4, 32)
    assert torch.equal(here.forward(call), there.forward(call))
    assert torch.equal(here.backward(0, grad), there.backward(0, grad))


def classifier(family="bert"):
    torch.manual_seed(1)
    model = build(family)
    plan = SplitPlan(2, None)
    dense = {
        name: value.detach().numpy().copy()
        for name, value in model.named_parameters()
        if name.startswith("classifier.")
    }
    return model, plan, dense


def test_each_session_trains_a_classifier_of_its_own():
    model, plan, dense = classifier()
    engine = TrunkEngine(partition(model, plan).trunk)
    spec = SessionSpec(plan, AdapterState({}, dense), OptimizerSpec(lr=0.1))
    one, two = engine.open(spec), engine.open(spec)
    labels = torch.tensor([0, 1])
    call = TrunkCall(torch.randn(2, 4, 32), step=0)
    before = engine.loss(two, TrunkCall(call.hidden), labels).loss
    engine.loss(one, call, labels)
    trained = engine.adapters(one).dense
    assert all((trained[key] != value).any() for key, value in dense.items())
    assert engine.loss(one, TrunkCall(call.hidden), labels).loss < before
    assert torch.equal(engine.loss(two, TrunkCall(call.hidden), labels).loss, before)
    for key, value in engine.adapters(two).dense.items():
        assert (value == dense[key]).all()


def test_dense_arrays_of_another_side_are_refused_by_name():
    model, plan, dense = classifier()
    engine = TrunkEngine(partition(model, plan).trunk)
    stranger = AdapterState({}, {"score.weight": dense["classifier.weight"]})
    with pytest.raises(AdapterError, match=r"score\.weight"):
        engine.open(SessionSpec(plan, stranger))
    narrow = AdapterState({}, {"classifier.weight": dense["classifier.weight"][:2]})
    with pytest.raises(AdapterError, match=r"classifier\.weight"):
        engine.open(SessionSpec(plan, narrow))


def test_a_loss_that_is_not_finite_trains_nothing():
    model = build("llama")
    plan = SplitPlan(1, None)
    engine = TrunkEngine(partition(model, plan).trunk)
    token = engine.open(SessionSpec(plan, adapters(model, range(1, 5)), SPEC))
    before = engine.adapters(token).factors
    ignored = torch.full((2, 4), -100)
    with pytest.raises(TrunkError, match="nan"):
        engine.loss(token, TrunkCall(torch.randn(2, 4, 32), step=0), ignored)
    after = engine.adapters(token).factors
    assert all(torch.equal(after[n].B, before[n].B) for n in before)
    assert engine.stats().steps == 0


@pytest.mark.parametrize("share", [1e39, torch.inf, torch.nan])
def test_a_finite_loss_whose_gradients_are_not_trains_nothing(share):
    model = build("llama")
    plan = SplitPlan(1, None)
    engine = TrunkEngine(partition(model, plan).trunk)
    token = engine.open(SessionSpec(plan, adapters(model, range(1, 5)), SPEC))
    before = engine.adapters(token).factors
    call = TrunkCall(torch.randn(2, 4, 32), step=0, share=share)
    with pytest.raises(TrunkError, match="gradients have NaN or infinity"):
        engine.loss(token, call, torch.ones(2, 4, dtype=torch.long))
    fine = TrunkCall(call.hidden, step=0)
    engine.loss(token, fine, torch.ones(2, 4, dtype=torch.long))
    engine.loss(token, replace(fine, step=1), torch.ones(2, 4, dtype=torch.long))
    after = engine.adapters(token).factors
    assert all(after[n].B.isfinite().all() for n in before)
    assert engine.stats().steps == 2


def test_a_tail_on_the_client_has_no_loss_in_the_trunk():
    engine = TrunkEngine(partition(build("llama"), SplitPlan(1, 1)).trunk)
    token = engine.open(SessionSpec(SplitPlan(1, 1)))
    with pytest.raises(TrunkError, match="vanilla"):
        engine.loss(token, TrunkCall(torch.randn(2, 4, 32)), None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (TrunkCall(torch.randn(2, 4, 31)), r"\(B, T, 32\)"),
        (TrunkCall(torch.randn(4, 32)), r"\(B, T, 32\)"),
        (TrunkCall(torch.randn(2, 4, 32), torch.ones(2, 5)), "attention_mask"),
        (TrunkCall(torch.randn(2, 4, 32), None, torch.ones(2, 3)), "position_ids"),
    ],
)
def test_calls_that_do_not_fit_the_trunk_are_refused(call, message):
    engine = TrunkEngine(partition(build("llama"), SplitPlan(1, 1)).trunk)
    token = engine.open(SessionSpec(SplitPlan(1, 1)))
    with pytest.raises(TrunkError, match=message):
        engine.forward(token, call)


def test_a_trunk_serves_one_engine():
    trunk = partition(build("llama"), SplitPlan(1, 1)).trunk
    TrunkEngine(trunk)
    with pytest.raises(TrunkError, match="serves an engine already"):
        TrunkEngine(trunk)


def test_a_local_trunk_keeps_a_bounded_number_of_open_passes():
    trunk = LocalTrunk(partition(build("llama"), SplitPlan(1, 1)).trunk, max_open=2)
    for step in range(3):
        trunk.forward(TrunkCall(torch.randn(2, 4, 32), step=step))
    trunk.backward(2, torch.ones(2, 4, 32))
    with pytest.raises(SessionError, match="max_open"):
        trunk.backward(0, torch.ones(2, 4, 32))
    with pytest.raises(SessionError, match="back-propagated already"):
        trunk.backward(2, torch.ones(2, 4, 32))
