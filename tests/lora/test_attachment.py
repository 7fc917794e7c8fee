from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import (
    LoraFactors,
    Scaling,
    attach,
    attach_ia3,
    detach,
    extract,
    linear_names,
    load,
)
from tests.families import build


def ranks(model):
    return {name: 1 + i % 3 for i, name in enumerate(linear_names(model))}


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gpt-neox"])
def test_a_loaded_adapter_adds_its_product_to_the_weight(family):
    model, reference = build(family), build(family)
    reference.load_state_dict(model.state_dict())
    attach(model, ranks(model), Scaling(6.0))
    drawn = {
        name: LoraFactors(torch.randn_like(f.A), 0.1 * torch.randn_like(f.B), 1.3)
        for name, f in extract(model).items()
    }
    load(model, drawn)
    with torch.no_grad():
        for name, found in drawn.items():
            layer = reference.get_submodule(name)
            linear = isinstance(layer, torch.nn.Linear)
            layer.weight += found.delta() if linear else found.delta().T
    ids = torch.randint(3, 61, (2, 9))
    torch.testing.assert_close(
        model(ids).logits, reference(ids).logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_detaching_gives_the_same_module_back(family):
    model = build(family)
    before = {name: id(module) for name, module in model.named_modules()}
    attach(model, ranks(model), Scaling(6.0))
    detach(model)
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_ranks_are_those_asked_for_layer_by_layer():
    model = build("llama")
    asked = ranks(model)
    attach(model, asked, Scaling(6.0))
    found = extract(model)
    assert {name: f.rank for name, f in found.items()} == asked
    assert all(f.scale == 6.0 / f.rank for f in found.values())


def test_only_adapters_are_trainable():
    model = build("llama")
    asked = ranks(model)
    attach(model, asked, Scaling(6.0))
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(asked)
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_adapters_are_float32_on_a_base_in_half_precision(dtype):
    model = build("llama").to(dtype)
    attach(model, ranks(model), Scaling(6.0))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert model(torch.ones(1, 3, dtype=torch.long)).logits.dtype == dtype


def test_a_layer_of_rank_0_stays_bare():
    model = build("llama")
    first, second = linear_names(model)[:2]
    attach(model, {first: 0, second: 2}, Scaling(6.0))
    assert [*extract(model)] == [second]
    assert isinstance(model.get_submodule(first), torch.nn.Linear)


def test_targets_have_the_same_names_with_adapters_on():
    model = build("gpt2")
    names = linear_names(model)
    attach(model, ranks(model), Scaling(6.0))
    assert linear_names(model) == names


def blocks(**extra):
    inside = torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 4)})
    return torch.nn.ModuleDict({"layers": torch.nn.ModuleList([inside]), **extra})


def test_a_layer_whose_name_ends_as_anothers_keeps_its_own_rank():
    model = blocks(inner=blocks())
    asked = {"layers.0.fc": 1, "inner.layers.0.fc": 3}
    attach(model, asked, Scaling(6.0))
    assert {name: f.rank for name, f in extract(model).items()} == asked


def test_a_layer_whose_name_ends_as_anothers_stays_bare_if_it_is_not_asked_for():
    model = blocks(inner=blocks())
    attach(model, {"layers.0.fc": 1}, Scaling(6.0))
    assert [*extract(model)] == ["layers.0.fc"]
    detach(model)
    attach_ia3(model, {"layers.0.fc": np.ones((4, 1), np.float32)})
    assert type(model.get_submodule("inner.layers.0.fc")) is torch.nn.Linear


def test_extracted_factors_do_not_follow_the_training():
    model = build("llama")
    attach(model, {linear_names(model)[0]: 2}, Scaling(6.0))
    (before,) = extract(model).values()
    for parameter in model.parameters():
        parameter.data.add_(1.0)
    assert not before.B.any()
    assert not before.B.requires_grad


def test_heads_and_embeddings_are_no_targets():
    names = linear_names(build("bert"))
    assert not [n for n in names if "classifier" in n or "pooler" in n]
    assert not [n for n in linear_names(build("llama")) if "lm_head" in n]


def test_targets_that_name_nothing_are_refused_with_those_that_exist():
    with pytest.raises(AdapterError, match="q_proj"):
        linear_names(build("llama"), ["qproj"])


def test_what_does_not_fit_is_refused_by_name():
    model = build("llama")
    attach(model, ranks(model), Scaling(6.0))
    found = extract(model)
    name = next(iter(found))
    with pytest.raises(AdapterError, match=name):
        load(model, {k: v for k, v in found.items() if k != name})
    short = LoraFactors(torch.zeros(5, 32), torch.zeros(32, 5))
    with pytest.raises(AdapterError, match=f"{name}.*rank 5"):
        load(model, {**found, name: short})
    with pytest.raises(AdapterError, match="detach"):
        attach(model, {name: 2}, Scaling(6.0))
    with pytest.raises(AdapterError, match="rank -1"):
        attach(build("llama"), {name: -1}, Scaling(6.0))
    for odd in ("nowhere", "model.embed_tokens"):
        with pytest.raises(AdapterError, match=f"{odd}.*linear_names"):
            attach(build("llama"), {odd: 2}, Scaling(6.0))
