from __future__ import annotations

import pytest
import torch

from atlas_flwr.lora import (
    ImportanceProbe,
    Scaling,
    attach,
    detach,
    linear_names,
    oriented,
    probing,
)
from tests.families import batch, build


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_the_importance_is_that_of_the_full_gradient(family):
    model, inputs = build(family), batch(family)
    names = linear_names(model)
    model.requires_grad_(True)
    model(**inputs).loss.backward()
    wanted = {}
    for name in names:
        layer = model.get_submodule(name)
        product = layer.weight.detach() * layer.weight.grad
        wanted[name] = float(product.abs().sum())
    model.zero_grad()

    attach(model, dict.fromkeys(names, 2), Scaling(4.0))
    probe = ImportanceProbe()
    with probing(model, probe, {name: name for name in names}):
        for _ in range(2):
            model(**inputs).loss.backward()
    assert probe.means() == pytest.approx(wanted, rel=1e-3)
    assert set(probe.passes.values()) == {2}


def test_nothing_is_watched_afterwards_or_in_passes_without_a_graph():
    model, inputs = build("llama"), batch("llama")
    names = linear_names(model)
    attach(model, dict.fromkeys(names, 2), Scaling(4.0))
    probe = ImportanceProbe()
    with probing(model, probe, {name: name for name in names}), torch.no_grad():
        model(**inputs)
    model(**inputs).loss.backward()
    assert not probe.means()
    detach(model)


def test_a_weight_is_turned_to_outputs_by_inputs():
    for family in ("llama", "gpt2"):
        model = build(family)
        layer = model.get_submodule(linear_names(model)[0])
        x = torch.randn(2, oriented(layer).shape[1])
        bias = 0 if layer.bias is None else layer.bias
        torch.testing.assert_close(layer(x), x @ oriented(layer).T + bias)
