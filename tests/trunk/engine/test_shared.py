# SPDX-License-Identifier: Apache-2.0
"""Sessions that train one adapter between them, against one model trained in turn."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from copy import deepcopy

import pytest
import torch

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import Scaling, attach, extract, load
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.trunk import EngineTrunk, SessionSpec, TrunkEngine
from atlas_flwr.trunk.engine.steps import StepLog
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import batch, build
from tests.trunk.engine.test_parity import adapters

PLAN, SPEC = SplitPlan(head=1, tail=1), OptimizerSpec(lr=0.02)


def served(model, names, shared="all", spec=SPEC):
    """Two clients' models on one engine."""
    state = adapters(model, range(1, model.config.num_hidden_layers - 1))
    parts = partition(deepcopy(model), PLAN)
    # The head is not trained, and yet a gradient has to cross the cut.
    next(p for p in parts.head.parameters() if p.dim() == 2).requires_grad_(True)
    engine = TrunkEngine(parts.trunk)
    clients = {}
    for name in names:
        token = engine.open(SessionSpec(PLAN, state, spec, shared))
        trunk = EngineTrunk(engine, token)
        clients[name] = SplitModel(parts.head, parts.tail, trunk), token
    return engine, clients, state


def test_steps_in_turn_are_those_of_one_model_trained_on_both_clients_data():
    model = build("llama")
    engine, clients, state = served(model, "ab")
    batches = [batch("llama"), batch("llama", pad="right")]
    for _ in range(3):
        for given, (client, _) in zip(batches, clients.values(), strict=True):
            client(**given).loss.backward()
    attach(model, dict.fromkeys(state.factors, 3), Scaling(6.0))
    load(model, state.factors)
    adamw = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=SPEC.lr, weight_decay=0.0
    )
    for _ in range(3):
        for given in batches:
            adamw.zero_grad()
            model(**given).loss.backward()
            adamw.step()
    wanted = extract(model)
    for _, token in clients.values():
        for name, found in engine.adapters(token).factors.items():
            torch.testing.assert_close(found.B, wanted[name].B, atol=1e-5, rtol=1e-4)


def test_a_pass_that_another_client_overtakes_is_run_again_not_wrong():
    model = build("llama")
    engine, clients, _ = served(model, "ab")
    (a, _), (b, _) = clients.values()
    late = a(**batch("llama")).loss
    b(**batch("llama", pad="right")).loss.backward()
    late.backward()
    assert engine.stats().steps == 2
    assert engine.stats().passes == 0


def test_a_step_that_another_client_brought_about_drops_no_open_pass():
    model, spec = build("llama"), OptimizerSpec(lr=0.02, accumulate=2)
    engine, clients, _ = served(model, "ab", spec=spec)
    (a, _), (b, _) = clients.values()
    losses = [b(**batch("llama")).loss for _ in range(2)]
    a(**batch("llama")).loss.backward()
    for loss in losses:  # the first of them ends a's half of a step
        loss.backward()
    a(**batch("llama")).loss.backward()
    assert engine.stats().steps == 4


def test_a_shared_adapter_lives_as_long_as_one_of_its_sessions():
    model = build("llama")
    engine, clients, state = served(model, "ab")
    (a, first), (_, second) = clients.values()
    a(**batch("llama")).loss.backward()
    trained = engine.adapters(first)
    engine.close(first)
    name = next(iter(state.factors))
    kept = engine.adapters(second).factors[name]
    assert torch.equal(kept.B, trained.factors[name].B)
    del a, clients
    engine.close(second)
    again = engine.open(SessionSpec(PLAN, state, SPEC, "all"))
    fresh = engine.adapters(again).factors[name]
    assert torch.equal(fresh.B, state.factors[name].B)


def test_a_call_that_outlives_its_session_hands_its_adapter_to_no_later_one():
    model = build("llama")
    engine, clients, state = served(model, "a")
    ((a, token),) = clients.values()
    a(**batch("llama")).loss.backward()
    trained = engine.adapters(token)
    entered, ended = threading.Event(), threading.Event()
    run = engine._passes.batcher.run

    def slowly(works):
        entered.set()
        ended.wait()
        return run(works)

    engine._passes.batcher.run = slowly
    hidden = torch.zeros(1, 2, model.config.hidden_size)
    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(engine.forward, token, TrunkCall(hidden))
        entered.wait()
        engine.close(token)  # its round has ended, and the next one begins
        opening = pool.submit(engine.open, SessionSpec(PLAN, state, SPEC, "all"))
        done, _ = wait([opening], timeout=20)
        ended.set()
    assert done
    assert late.result().shape == hidden.shape
    name = next(iter(state.factors))
    begun = engine.adapters(opening.result()).factors[name]
    assert not torch.equal(trained.factors[name].B, state.factors[name].B)
    assert torch.equal(begun.B, state.factors[name].B)


def test_sessions_of_unlike_ranks_or_cuts_cannot_share():
    model = build("llama")
    engine, _, state = served(model, "a")
    fewer = state.select(list(state.factors)[:3])
    with pytest.raises(AdapterError, match="one cut and the same ranks"):
        engine.open(SessionSpec(PLAN, fewer, SPEC, "all"))
    engine.open(SessionSpec(PLAN, fewer, SPEC, "others"))


def test_own_sessions_do_not_see_each_other():
    model = build("llama")
    engine, clients, state = served(model, "ab", shared="")
    (a, _), (_, second) = clients.values()
    a(**batch("llama")).loss.backward()
    name = next(iter(state.factors))
    assert torch.equal(engine.adapters(second).factors[name].B, state.factors[name].B)
    hidden = torch.zeros(1, 2, model.config.hidden_size)
    assert engine.forward(second, TrunkCall(hidden)).shape == hidden.shape


def test_a_session_that_joins_while_others_step_disturbs_nobody(monkeypatch):
    model = build("llama")
    engine, clients, state = served(model, "ab")
    forget, joining = StepLog.forget_graphs, []

    def meanwhile(log):
        if not joining:
            spec = SessionSpec(PLAN, state, SPEC, "all")
            joining.append(threading.Thread(target=engine.open, args=(spec,)))
            joining[0].start()
            joining[0].join(0.2)  # it may have to wait for the step's end
        forget(log)

    monkeypatch.setattr(StepLog, "forget_graphs", meanwhile)
    for client, _ in clients.values():
        client(**batch("llama")).loss.backward()
    joining[0].join(20)
    assert (engine.stats().steps, engine.stats().sessions) == (2, 3)
