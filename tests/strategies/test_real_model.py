"""Rounds on SmolLM2 itself: logits of split clients before and after aggregation."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.aggregation import AGGREGATIONS, Contribution
from atlas_flwr.aggregation.groups import ClusterAdapters
from atlas_flwr.config import load_config
from atlas_flwr.data import (
    CausalCollator,
    load_task,
    make_shard,
    sample_batches,
    tokenizer_of,
)
from atlas_flwr.lora import AdapterState, Scaling
from atlas_flwr.protocol.layout import write_state
from atlas_flwr.split import SplitPlan
from atlas_flwr.train.initial import initial_state
from atlas_flwr.train.loop import train
from atlas_flwr.train.model import adapted_split
from atlas_flwr.train.step import last_logits
from atlas_flwr.train.weights import ModelFiles
from atlas_flwr.trunk import EngineTrunk, SessionSpec, TrunkEngine
from atlas_flwr.types import OptimizerSpec, Side

SCALING, RATE = Scaling(16.0), OptimizerSpec(1e-3)
PLANS = (SplitPlan(2, 1), SplitPlan(4, 1), SplitPlan(3, 2))
WEIGHTS = (3.0, 1.0)


@pytest.fixture(scope="module")
def files():
    return ModelFiles.of(load_config({"model": "smollm2"}))


@pytest.fixture(scope="module")
def engine(files):
    return TrunkEngine(files.parts(SplitPlan(1, 1), sides=(Side.TRUNK,)).trunk)


def batches(files, client):
    tasks = [load_task(name) for name in ("spam", "questions")]
    shard = make_shard(client, 2, tasks, train_examples=16, test_examples=8, seed=0)
    collate = CausalCollator(tokenizer_of(files.source), shard.task, 48)
    return list(
        sample_batches(shard.train, collate, batch_size=4, steps=2, seed=client)
    )


def split_run(files, engine, plan, state, given, *, steps):
    """Train a split client and return what it has learned, or only its logits."""
    trunk = plan.trunk_range(files.outline().num_layers)
    inside = [n for n in state.layers if files.outline().block_of(n) in trunk]
    token = engine.open(SessionSpec(plan, state.select(inside, {}), RATE))
    outside = state.select(state.layers - set(inside))
    parts = files.parts(plan)
    sides = (parts.head, parts.tail, EngineTrunk(engine, token))
    with adapted_split(*sides, outside, SCALING) as adapted:
        if steps:
            train(adapted.model, given, RATE)
            learned = adapted.state().merged(engine.adapters(token))
            engine.close(token)
            return learned
        with torch.no_grad():
            logits = last_logits(adapted.model, given[0])
    engine.close(token)
    return logits


def dense_logits(files, products, batch):
    """Logits of the whole model with dense matrices added to its weights."""
    model = files.whole()
    with torch.no_grad():
        for name, product in products.items():
            model.get_parameter(f"{name}.weight").add_(product.float())
        return last_logits(model, batch)


def ranks_of(client, shapes):
    """Ranks that differ by client and by layer; some layers have none."""
    choices = ((2, 4, 0), (8, 2, 4), (1, 1, 8))[client]
    return {name: choices[i % 3] for i, name in enumerate(shapes)}


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["both", "fold"])
def test_logits_of_smollm2_after_a_round_are_those_of_the_exact_sum(
    files, engine, aggregation
):
    shapes = files.outline().shapes(("all-linear",))
    start = initial_state(shapes, rank=8, scaling=SCALING, seed=0)
    adapters = ClusterAdapters(AGGREGATIONS[aggregation](), SCALING)
    adapters.begin(write_state(start))
    probe = batches(files, 0)[:1]
    products: dict[str, torch.Tensor] = {}
    before = dense_logits(files, products, probe[0])
    for number in (1, 2):
        parts, wanted = [], {}
        for client, weight in enumerate(WEIGHTS):
            sent = adapters.start("0", ranks_of(client, shapes), number)
            given = batches(files, client)
            learned = split_run(files, engine, PLANS[client], sent, given, steps=2)
            alone = AdapterState(learned.factors)
            parts.append(Contribution(str(client), weight, alone))
            for name in shapes:
                # What a client holds of a layer: what it trains, and what is folded.
                held = [s[name] for s in (alone.factors, sent.folded) if name in s]
                wanted.setdefault(name, []).append(
                    (weight, name in alone.factors, [f.delta().double() for f in held])
                )
        adapters.aggregate({"0": parts})
        for name, found in wanted.items():
            trained = [(w, ds) for w, has, ds in found if has]
            total = sum(w for w, _ in trained)
            if trained:
                products[name] = sum(w / total * d for w, ds in trained for d in ds)
        exact = dense_logits(files, products, probe[0])
        for client, plan in enumerate(PLANS):  # the last one is new
            state = adapters.start("0", ranks_of(client, shapes), number + 1)
            logits = split_run(files, engine, plan, state, probe, steps=0)
            torch.testing.assert_close(logits, exact, atol=2e-3, rtol=1e-4)
        moved = float((exact - before).abs().max())
        assert moved > 0.5, "the rounds have learned something"
