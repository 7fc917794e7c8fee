"""The first property: split training equals unsplit training, for every family."""

from __future__ import annotations

import pytest
import torch

from atlas_flwr.lora import LoraFactors, Scaling, attach, linear_names, load
from atlas_flwr.split import SplitModel, SplitPlan, part_info, partition
from atlas_flwr.trunk import LocalTrunk
from tests.families import FAMILIES, batch, build

TOLERANCE = 1e-5
ALPHA = 4.0


def random_factors(model):
    made = {}
    for index, name in enumerate(linear_names(model)):
        layer, rank = model.get_submodule(name), 1 + index % 3
        weight = layer.weight
        m, n = (
            weight.shape if isinstance(layer, torch.nn.Linear) else weight.shape[::-1]
        )
        A, B = 0.2 * torch.randn(rank, n), 0.2 * torch.randn(m, rank)
        made[name] = LoraFactors(A, B, ALPHA / rank)
    return made


def adapt(module, factors, name_of=lambda local: local):
    mine = {local: factors[name_of(local)] for local in linear_names(module)}
    attach(module, {local: f.rank for local, f in mine.items()}, Scaling(ALPHA))
    load(module, mine)
    return {name_of(local) for local in mine}


def lora_gradients(module, name_of=lambda local: local):
    return {
        name_of(name.replace(".default.weight", "")): parameter.grad
        for name, parameter in module.named_parameters()
        if "lora_" in name
    }


def difference(x, y):
    assert torch.isfinite(x).all()
    x, y = x.detach(), y.detach()
    return float((x - y).abs().max() / y.abs().max().clamp(min=1e-12))


def largest_difference(family, plan):
    whole = build(family)
    factors = random_factors(whole)
    parts = partition(whole, plan)
    modules = [p for p in (parts.head, parts.trunk, parts.tail) if p is not None]
    adapted = set()
    for module in modules:
        adapted |= adapt(module, factors, part_info(module).global_name)
    assert adapted == set(factors)
    adapt(whole, factors)
    split = SplitModel(parts.head, parts.tail, LocalTrunk(parts.trunk)).eval()
    trained = [p for m in modules for p in m.parameters() if p.requires_grad]
    optimizers = [
        torch.optim.AdamW((p for p in whole.parameters() if p.requires_grad), lr=1e-2),
        torch.optim.AdamW(trained, lr=1e-2),
    ]
    worst = 0.0
    # Right padding would put the last column, which is not attended, into the loss of
    # causal models; their labels are masked there.
    for pad in ("", "right", "left" if FAMILIES[family][1].num_labels != 5 else ""):
        inputs = batch(family, pad)
        expected, got = whole(**inputs), split(**inputs)
        expected.loss.backward()
        got.loss.backward()
        kept = inputs["attention_mask"].bool()
        rows = slice(None) if expected.logits.dim() == 2 else kept
        worst = max(worst, difference(got.loss, expected.loss))
        worst = max(worst, difference(got.logits[rows], expected.logits[rows]))
        reference = lora_gradients(whole)
        for module in modules:
            found = lora_gradients(module, part_info(module).global_name)
            for name, gradient in found.items():
                worst = max(worst, difference(gradient, reference[name]))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return worst


def plans(layers, vanilla):
    """Every plan that leaves the trunk a block."""
    for head in range(1, layers):
        for tail in [None] if vanilla else range(1, layers - head):
            yield SplitPlan(head, tail)


EVERY_CUT = {"llama", "bert"}
CASES = [
    (family, plan)
    for family, (_, config) in FAMILIES.items()
    for vanilla in (False, True)
    for index, plan in enumerate(plans(config.num_hidden_layers, vanilla))
    if family in EVERY_CUT or index in (0, 4)
]


@pytest.mark.parametrize(("family", "plan"), CASES, ids=lambda value: str(value))
def test_losses_logits_and_gradients_equal_the_unsplit_models(family, plan):
    assert largest_difference(family, plan) <= TOLERANCE
