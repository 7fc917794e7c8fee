"""Padding does not cross the cut, and nothing is lost by that, whatever the family."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.data import Batch
from atlas_flwr.errors import WireError
from atlas_flwr.lora import AdapterState, Scaling, initial_factors, linear_names
from atlas_flwr.split import SplitModel, SplitPlan, partition
from atlas_flwr.split.part import part_info
from atlas_flwr.train.step import batch_loss
from atlas_flwr.trunk import (
    EngineTrunk,
    SessionSpec,
    TrunkEngine,
    connect,
    serve_local,
)
from atlas_flwr.types import OptimizerSpec, TrunkCall
from tests.families import FAMILIES, batch, build

RAGGED = {"u-shaped": SplitPlan(1, 1), "vanilla": SplitPlan(1, None)}


def learned(family, plan, framed):
    """Two training steps; the losses, the head's gradients, the trunk's adapters."""
    torch.manual_seed(0)
    model = build(family)
    parts = partition(model, plan)
    info = part_info(parts.trunk)
    factors = {}
    for local in linear_names(parts.trunk):
        name, layer = info.global_name(local), parts.trunk.get_submodule(local)
        m, n = layer.weight.shape
        shape = (m, n) if isinstance(layer, torch.nn.Linear) else (n, m)
        factors[name] = initial_factors(name, shape, 2, scaling=Scaling(8.0), seed=0)
    engine = TrunkEngine(parts.trunk)
    state = AdapterState(factors)
    token = engine.open(SessionSpec(plan, state, OptimizerSpec(lr=0.01)))
    causal = FAMILIES[family][1].num_labels != 5
    given = ragged_batch(family, causal)
    with serve_local(f"{family}-{plan.head}", engine) as address:
        trunk = EngineTrunk(engine, token)
        if framed:
            trunk = connect(address, token=token, spares_padding=True)
        split, losses = SplitModel(parts.head, parts.tail, trunk), []
        for _ in range(2):
            loss = batch_loss(split, given)
            loss.backward()
            losses.append(loss.detach())
    grads = [p.grad for p in parts.head.parameters() if p.grad is not None]
    return losses, grads, engine.adapters(token).factors


@pytest.mark.parametrize("shape", RAGGED)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_padding_a_family_learns_the_same(family, shape):
    (losses, grads, factors), whole = (
        learned(family, RAGGED[shape], framed) for framed in (True, False)
    )
    near = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(torch.stack(losses), torch.stack(whole[0]), **near)
    assert len(grads) == len(whole[1]) > 0
    for got, wanted in zip(grads, whole[1], strict=True):
        torch.testing.assert_close(got, wanted, **near)
    for name, wanted in whole[2].items():
        # AdamW's first steps are of the learning rate's size, 0.01, whatever moves it.
        torch.testing.assert_close(factors[name].A, wanted.A, rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(factors[name].B, wanted.B, rtol=1e-3, atol=2e-4)
    assert any(wanted.B.any() for wanted in whole[2].values())


def ragged_batch(family, causal):
    """As collators make them: causal texts are padded left, and end in their labels."""
    found = batch(family, "left" if causal else "right")
    ids, mask, labels = (found[k] for k in ("input_ids", "attention_mask", "labels"))
    if not causal:
        return Batch(ids, mask, labels, labels)
    labels = labels.clone()
    labels[:, :-2] = -100
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return Batch(ids, mask, labels, labels[:, -1], positions, logits_to_keep=3)


def framed_trunk(name):
    plan = SplitPlan(1, 1)
    engine = TrunkEngine(partition(build("llama"), plan).trunk)
    with serve_local(name, engine) as address:
        token = engine.open(SessionSpec(plan))
        return connect(address, token=token, spares_padding=True)


def ragged(lengths, total=16):
    mask = torch.zeros(len(lengths), total, dtype=torch.long)
    for row, length in zip(mask, lengths, strict=True):
        row[total - length :] = 1
    return mask


def test_a_message_has_the_rows_of_real_positions_alone():
    trunk, mask = framed_trunk("rows"), ragged([2, 16, 5])
    trunk.forward(TrunkCall(torch.randn(3, 16, 32), mask, step=0))
    up, down = trunk.meter.total_up, trunk.meter.total_down
    grad = torch.randn(3, 16, 32) * mask[..., None]
    trunk.backward(0, grad)
    rows = int(mask.sum()) * 32 * 4
    around = 3 * 16 + 700  # the mask, a byte a position, and the header
    for sent in (up, down, trunk.meter.total_up - up, trunk.meter.total_down - down):
        assert rows < sent < rows + around


def test_a_tail_that_reads_padding_is_refused():
    trunk, mask = framed_trunk("reads"), ragged([2, 16])
    trunk.forward(TrunkCall(torch.randn(2, 16, 32), mask, step=0))
    with pytest.raises(WireError, match="tail of this model reads the padding"):
        trunk.backward(0, torch.ones(2, 16, 32))


def test_a_gradient_that_is_not_finite_is_told_as_that():
    trunk, mask = framed_trunk("nan"), ragged([2, 16])
    trunk.forward(TrunkCall(torch.randn(2, 16, 32), mask, step=0))
    with pytest.raises(Exception, match="NaN or infinity"):
        trunk.backward(0, torch.full((2, 16, 32), torch.nan))


def test_a_step_is_back_propagated_again_to_the_same_answer():
    trunk, mask = framed_trunk("again"), ragged([2, 16])
    trunk.forward(TrunkCall(torch.randn(2, 16, 32), mask, step=0))
    grad = torch.randn(2, 16, 32) * mask[..., None]
    assert torch.equal(trunk.backward(0, grad), trunk.backward(0, grad))
