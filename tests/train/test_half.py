"""A base in half precision: what is trained is float32 on both sides of the cut."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.cohort.trunk_sessions import TrunkSessions
from atlas_flwr.lora import AdapterState, Scaling
from atlas_flwr.split import SplitPlan, part_info, partition
from atlas_flwr.train.model import adapted_split
from atlas_flwr.trunk import TrunkEngine, connect, serve_local
from atlas_flwr.types import OptimizerSpec
from tests.families import batch, build
from tests.trunk.engine.test_parity import adapters

RATE = 1e-6
HALF = [torch.bfloat16, torch.float16]


def start(model):
    """Adapters of all blocks, and the classifier if there is one."""
    blocks = range(model.config.num_hidden_layers)
    named = model.named_parameters()
    dense = {n: p for n, p in named if n.startswith(("classifier.", "score."))}
    arrays = {n: p.detach().float().numpy().copy() for n, p in dense.items()}
    return AdapterState(adapters(model, blocks).factors, arrays)


def one_step(model, plan, state, given):
    """A step of the smallest useful rate, taken by client and trunk."""
    spec = OptimizerSpec(lr=RATE, weight_decay=0.0)
    parts = partition(model, plan)
    info, engine = part_info(parts.trunk), TrunkEngine(parts.trunk)
    count = model.config.num_hidden_layers
    with serve_local("half", engine) as address:
        sessions = TrunkSessions(engine, address, spec, info.block_of, count)
        trunk = connect(address, token=sessions.open("0", plan, state))
        mine = sessions.on_client(plan, state)
        with adapted_split(
            parts.head, parts.tail, trunk, mine, Scaling(6.0)
        ) as adapted:
            own = [p for p in adapted.model.parameters() if p.requires_grad]
            adamw = torch.optim.AdamW(own, lr=RATE, weight_decay=0.0)
            adapted.model(**given).loss.backward()
            adamw.step()
            return adapted.state().merged(sessions.collect("0"))


def tensors(state):
    yield from ((f"{n}.A", f.A) for n, f in state.factors.items())
    yield from ((f"{n}.B", f.B) for n, f in state.factors.items())
    yield from ((n, torch.from_numpy(value)) for n, value in state.dense.items())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("plan", [SplitPlan(1, 1), SplitPlan(2, None)], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "llama-classifier"])
def test_no_step_is_lost_however_small(family, plan, dtype):
    model = build(family).to(dtype)
    state = start(model)
    after = dict(tensors(one_step(model, plan, state, batch(family, "right"))))
    before = dict(tensors(state))
    assert after.keys() == before.keys()
    for name, value in before.items():
        moved = float((after[name] - value).abs().max())
        # AdamW's first step is the rate itself wherever there is a gradient.
        assert moved == pytest.approx(RATE, rel=0.05), name
