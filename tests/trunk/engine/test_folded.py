# SPDX-License-Identifier: Apache-2.0
"""Sessions with products folded into the shared base, and sessions that probe it."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from atlas_flwr.errors import AdapterError, SessionError
from atlas_flwr.lora import (
    AdapterState,
    LoraFactors,
    canonical,
    fold,
    linear_names,
    oriented,
    trailing,
)
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import EngineTrunk, SessionSpec, TrunkEngine
from tests.families import batch, build
from tests.trunk.engine.test_parity import adapters, blocks_list

PLAN = SplitPlan(head=1, tail=1)
FAMILIES = ["llama", "gpt2", "bert"]


def products(model, rank=2):
    """Products of the trunk's layers, large enough to be seen."""
    found, prefix = {}, blocks_list(model)
    last = model.config.num_hidden_layers - 1
    for name in linear_names(model):
        if 1 <= int(name.removeprefix(f"{prefix}.").partition(".")[0]) < last:
            m, n = oriented(model.get_submodule(name)).shape
            A, B = torch.randn(rank, n), 0.1 * torch.randn(m, rank)
            found[name] = LoraFactors(A, B, 0.5)
    return found


def split(model, state, probe=False):
    parts = partition(model, PLAN)
    engine = TrunkEngine(parts.trunk)
    token = engine.open(SessionSpec(PLAN, state, probe=probe))
    trunk = EngineTrunk(engine, token)
    return SplitModel(parts.head, parts.tail, trunk), engine, token


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_computes_with_what_is_folded_and_its_neighbour_without(family):
    inputs = batch(family)
    whole = build(family)
    state = AdapterState(folded=products(whole))
    model, engine, _ = split(deepcopy(whole), state)
    plain = whole(**inputs).logits
    fold(whole, state.folded)
    wanted = whole(**inputs).logits
    torch.testing.assert_close(model(**inputs).logits, wanted, atol=1e-5, rtol=1e-4)
    other = engine.open(SessionSpec(PLAN))
    model.trunk = EngineTrunk(engine, other)
    torch.testing.assert_close(model(**inputs).logits, plain, atol=1e-5, rtol=1e-5)
    assert (wanted - plain).abs().max() > 1e-3


def test_what_is_folded_is_not_trained_and_live_adapters_beside_it_are():
    model = build("llama")
    blocks = range(1, model.config.num_hidden_layers - 1)
    live = adapters(model, blocks)
    state = AdapterState(live.factors, folded=products(model))
    split_model, engine, token = split(model, state)
    split_model(**batch("llama")).loss.backward()
    after = engine.adapters(token)
    assert not after.folded
    name = next(iter(live.factors))
    assert not torch.equal(after.factors[name].B, live.factors[name].B)


def test_a_product_of_a_layer_elsewhere_is_refused():
    model = build("llama")
    folded = {
        "model.layers.0.mlp.up_proj": LoraFactors(torch.ones(1, 32), torch.ones(48, 1))
    }
    with pytest.raises(AdapterError, match="not among"):
        split(model, AdapterState(folded=folded))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_probing_session_measures_what_the_full_gradient_says(family):
    whole, inputs = build(family), batch(family)
    model, engine, token = split(deepcopy(whole), AdapterState(), probe=True)
    whole.requires_grad_(True)
    whole(**inputs).loss.backward()
    head_weight = next(p for p in model.head.parameters() if p.dim() == 2)
    head_weight.requires_grad_(True)  # so that a gradient crosses the cut
    model(**inputs).loss.backward()
    found = engine.importance(token)
    assert set(found) == set(products(whole))
    for name, value in found.items():
        weight = whole.get_submodule(name).weight
        product = weight.detach() * weight.grad
        wanted = float(product.abs().sum())
        assert value == pytest.approx(wanted, rel=1e-3)


def test_a_session_that_does_not_probe_has_nothing_to_tell():
    _, engine, token = split(build("llama"), AdapterState())
    assert engine.importance(token) == {}


def test_sessions_fold_what_was_shared_once_each_from_its_own_direction_on():
    whole, inputs = build("llama"), batch("llama")
    shared = {n: canonical(f) for n, f in products(whole, rank=3).items()}
    parts = partition(deepcopy(whole), PLAN)
    engine = TrunkEngine(parts.trunk)
    engine.share("group", shared)
    for first in (0, 1, 3):
        state = AdapterState(origin="group")
        folds = dict.fromkeys(shared, first)
        token = engine.open(SessionSpec(PLAN, state, folds=folds))
        model = SplitModel(parts.head, parts.tail, EngineTrunk(engine, token))
        wanted = deepcopy(whole)
        rests = {name: trailing(found, first) for name, found in shared.items()}
        fold(wanted, {name: rest for name, rest in rests.items() if rest})
        torch.testing.assert_close(
            model(**inputs).logits, wanted(**inputs).logits, atol=1e-5, rtol=1e-4
        )


def test_sessions_keep_what_they_fold_when_it_is_shared_no_more():
    whole, inputs = build("llama"), batch("llama")
    model, engine, _ = split(whole, AdapterState())
    engine.share("group", products(build("llama")))
    spec = SessionSpec(
        PLAN, AdapterState(origin="group"), folds=dict.fromkeys(products(whole), 0)
    )
    model.trunk = EngineTrunk(engine, engine.open(spec))
    before = model(**inputs).logits
    engine.unshare("group")
    torch.testing.assert_close(model(**inputs).logits, before)
    with pytest.raises(SessionError, match="share\\(\\) it first"):
        engine.open(spec)


def test_many_sessions_hold_shared_products_once():
    engine = TrunkEngine(partition(build("llama"), PLAN).trunk)
    shared = products(build("llama"))
    engine.share("group", shared)
    spec = SessionSpec(
        PLAN, AdapterState(origin="group"), folds=dict.fromkeys(shared, 0)
    )
    for _ in range(2):
        engine.open(spec)
    held = [s.folded for s in engine._table._sessions.values()]
    name = next(iter(shared))
    places = {f[name].A.untyped_storage().data_ptr() for f in held}
    assert len(places) == 1
