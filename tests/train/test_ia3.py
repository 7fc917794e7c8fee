"""A split model with IA3 trains as PEFT's IA3 does on the unsplit one."""

from __future__ import annotations

import pytest
import torch
from peft import IA3Config, get_peft_model

from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import AdapterState, Scaling, ia3_key, ia3_shapes
from atlas_flwr.split import SplitPlan, part_info, partition
from atlas_flwr.train.model import adapted_split, adapted_whole
from atlas_flwr.trunk import SessionSpec, TrunkEngine, connect, serve_local
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import batch, build
from tests.train.parity import assert_trained_alike

SPEC = OptimizerSpec(lr=0.02, weight_decay=0.1, betas=(0.8, 0.95))
PLANS = [SplitPlan(1, 1), SplitPlan(2, None)]


def start(model, seed=0):
    """Vectors away from ones, and the classifier if there is one."""
    generator = torch.Generator().manual_seed(seed)
    dense = {
        ia3_key(name): torch.empty(shape).uniform_(0.8, 1.2, generator=generator)
        for name, shape in ia3_shapes(model).items()
    }
    heads = ("classifier.", "score.")
    dense |= {n: p.detach() for n, p in model.named_parameters() if n.startswith(heads)}
    return AdapterState({}, {key: value.numpy().copy() for key, value in dense.items()})


def pefts_run(model, state, batches):
    """The oracle: unsplit, PEFT's own layers, one AdamW for all."""
    made = get_peft_model(model, IA3Config())
    named = {
        key.removeprefix("base_model.model.").removesuffix(".default"): value
        for key, value in made.named_parameters()
    }
    trained = {key: named[key].requires_grad_() for key in state.dense}
    for key, value in state.dense.items():
        trained[key].data = torch.from_numpy(value.copy())
    adamw = torch.optim.AdamW(
        trained.values(), lr=SPEC.lr, betas=SPEC.betas, weight_decay=SPEC.weight_decay
    )
    losses = []
    for given in batches:
        loss = model(**given).loss
        loss.backward()
        adamw.step()
        adamw.zero_grad()
        losses.append(loss.detach())
    return losses, trained


def split_run(model, plan, state, batches, recompute=False):
    """Through the session that a strategy opens, and the client's own model."""
    parts = partition(model, plan)
    info, engine = part_info(parts.trunk), TrunkEngine(parts.trunk, recompute=recompute)
    count = model.config.num_hidden_layers
    losses = []
    with serve_local("ia3", engine) as address:
        sessions = TrunkSessions(engine, address, SPEC, info.block_of, count)
        token = sessions.open("0", plan, state)
        mine = sessions.on_client(plan, state)
        trunk = connect(address, token=token)
        with adapted_split(parts.head, parts.tail, trunk, mine, Scaling()) as adapted:
            own = [p for p in adapted.model.parameters() if p.requires_grad]
            adamw = torch.optim.AdamW(
                own, lr=SPEC.lr, betas=SPEC.betas, weight_decay=SPEC.weight_decay
            )
            for given in batches:
                loss = adapted.model(**given).loss
                loss.backward()
                adamw.step()
                adamw.zero_grad()
                losses.append(loss.detach())
            state = adapted.state().merged(sessions.collect("0"))
    return losses, state


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "llama-classifier"])
def test_split_training_is_pefts_training(family, plan):
    model = build(family)
    state = start(model)
    batches = [batch(family, "right") for _ in range(5)]
    found = split_run(model, plan, state, batches)
    assert_trained_alike(found, pefts_run(model, state, batches), state)


def test_recomputing_gives_the_same_vectors():
    model, plan = build("llama"), SplitPlan(1, 1)
    state, batches = start(model), [batch("llama") for _ in range(3)]
    kept = split_run(model, plan, state, batches)
    again = split_run(model, plan, state, batches, recompute=True)
    assert kept[0] == again[0]
    for key, value in kept[1].dense.items():
        assert (value == again[1].dense[key]).all(), key


def test_a_whole_model_trains_as_pefts_does_too():
    model = build("llama")
    state, batches = start(model), [batch("llama") for _ in range(3)]
    with adapted_whole(model, state, Scaling()) as adapted:
        own = [p for p in adapted.model.parameters() if p.requires_grad]
        adamw = torch.optim.AdamW(
            own, lr=SPEC.lr, betas=SPEC.betas, weight_decay=SPEC.weight_decay
        )
        losses = []
        for given in batches:
            loss = adapted.model(**given).loss
            loss.backward()
            adamw.step()
            adamw.zero_grad()
            losses.append(loss.detach())
        found = adapted.state()
    expected_losses, expected = pefts_run(model, state, batches)
    assert losses == expected_losses
    for key, value in expected.items():
        assert (torch.from_numpy(found.dense[key]) == value).all()


def on_trunk(model, plan, seed):
    info = part_info(partition(model, plan).trunk)
    blocks, dense = plan.trunk_range(info.num_layers), start(model, seed).dense
    return {key: v for key, v in dense.items() if info.block_of(key) in blocks}


def test_sessions_have_vectors_of_their_own_on_one_frozen_base():
    model, plan = build("llama"), SplitPlan(1, 1)
    engine = TrunkEngine(partition(model, plan).trunk)
    first = SessionSpec(plan, AdapterState({}, on_trunk(model, plan, 1)), SPEC)
    second = SessionSpec(plan, AdapterState({}, on_trunk(model, plan, 2)), SPEC)
    one, two, bare = (
        engine.open(first),
        engine.open(second),
        engine.open(SessionSpec(plan)),
    )
    hidden = torch.randn(2, 4, 32)
    before = [engine.forward(token, TrunkCall(hidden)) for token in (two, bare)]
    assert not torch.equal(*before)
    engine.forward(one, TrunkCall(hidden, step=0))
    engine.backward(one, 0, torch.randn(2, 4, 32))
    after = [engine.forward(token, TrunkCall(hidden)) for token in (two, bare)]
    assert all(map(torch.equal, before, after))
    for key, value in engine.adapters(two).dense.items():
        assert (value == second.state.dense[key]).all()
    assert any(
        (v != first.state.dense[k]).any() for k, v in engine.adapters(one).dense.items()
    )


def test_vectors_of_another_side_are_refused_by_name():
    model, plan = build("llama"), SplitPlan(1, 1)
    parts = partition(model, plan)
    engine = TrunkEngine(parts.trunk)
    key = ia3_key("model.layers.0.self_attn.k_proj")
    stray = AdapterState({}, {key: start(model).dense[key]})
    with pytest.raises(AdapterError, match=r"layers\.0\.self_attn\.k_proj"):
        engine.open(SessionSpec(plan, stray))
    middle = AdapterState({}, on_trunk(model, plan, 0))
    with (
        pytest.raises(AdapterError, match="0 of them are on this client"),
        adapted_split(parts.head, parts.tail, connect, middle, Scaling()),
    ):
        pass
