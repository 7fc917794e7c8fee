from __future__ import annotations

import pytest
import torch
from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import (
    AdapterState,
    LoraFactors,
    attach,
    detach,
    extract,
    initial_factors,
    linear_names,
    load,
    save_peft,
)
from peft import PeftModel
from tests.families import CLASSES, build


def ranks(model):
    return {name: 1 + i % 3 for i, name in enumerate(linear_names(model))}


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gpt-neox"])
def test_a_loaded_adapter_adds_its_product_to_the_weight(family):
    model, reference = build(family), build(family)
    reference.load_state_dict(model.state_dict())
    attach(model, ranks(model), 6.0)
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
    attach(model, ranks(model), 6.0)
    detach(model)
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_ranks_are_those_asked_for_layer_by_layer():
    model = build("llama")
    asked = ranks(model)
    attach(model, asked, 6.0)
    found = extract(model)
    assert {name: f.rank for name, f in found.items()} == asked
    assert all(f.scale == 6.0 / f.rank for f in found.values())


def test_only_adapters_are_trainable():
    model = build("llama")
    asked = ranks(model)
    attach(model, asked, 6.0)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(asked)
    assert all("lora_" in name for name in trained)


def test_heads_and_embeddings_are_no_targets():
    names = linear_names(build("bert"))
    assert not [n for n in names if "classifier" in n or "pooler" in n]
    assert not [n for n in linear_names(build("llama")) if "lm_head" in n]


def test_targets_that_name_nothing_are_refused_with_those_that_exist():
    with pytest.raises(AdapterError, match="q_proj"):
        linear_names(build("llama"), ["qproj"])


def test_what_does_not_fit_is_refused_by_name():
    model = build("llama")
    attach(model, ranks(model), 6.0)
    found = extract(model)
    name = next(iter(found))
    with pytest.raises(AdapterError, match=name):
        load(model, {k: v for k, v in found.items() if k != name})
    short = LoraFactors(torch.zeros(5, 32), torch.zeros(32, 5))
    with pytest.raises(AdapterError, match=f"{name}.*rank 5"):
        load(model, {**found, name: short})
    with pytest.raises(AdapterError, match="detach"):
        attach(model, {name: 2}, 6.0)


def test_initial_adapters_are_nested_over_ranks():
    big = initial_factors("x", (5, 700), 8, alpha=16, seed=3)
    small = initial_factors("x", (5, 700), 3, alpha=16, seed=3)
    assert torch.equal(big.A[:3], small.A)
    assert not big.B.any()
    assert (small.scale, big.scale) == (16 / 3, 2)


def test_initial_adapters_differ_by_layer_and_seed_and_spread_as_kaiming():
    one = initial_factors("x", (5, 400), 8, alpha=16, seed=3)
    assert not torch.equal(one.A, initial_factors("y", (5, 400), 8, alpha=1, seed=3).A)
    assert not torch.equal(one.A, initial_factors("x", (5, 400), 8, alpha=1, seed=4).A)
    assert one.A.abs().max() <= 400**-0.5
    assert float(one.A.std()) == pytest.approx((3 * 400) ** -0.5, rel=0.05)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_peft_loads_what_is_saved_and_computes_the_same(family, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path / "whole")
    attach(model, ranks(model), 6.0)
    drawn = {
        name: LoraFactors(torch.randn_like(f.A), 0.1 * torch.randn_like(f.B), 0.4)
        for name, f in extract(model).items()
    }
    load(model, drawn)
    dense = {}
    if family == "bert":
        with torch.no_grad():
            model.classifier.weight.normal_()
        dense = {
            "classifier.weight": model.classifier.weight.detach().numpy(),
            "classifier.bias": model.classifier.bias.detach().numpy(),
        }
    save_peft(
        tmp_path / "adapter",
        AdapterState(drawn, dense),
        base_model=str(tmp_path / "whole"),
        causal=family != "bert",
    )
    extra = {"num_labels": CLASSES} if family == "bert" else {}
    whole = type(model).from_pretrained(tmp_path / "whole", **extra)
    loaded = PeftModel.from_pretrained(whole, str(tmp_path / "adapter")).eval()
    ids = torch.randint(3, 61, (2, 9))
    torch.testing.assert_close(
        loaded(input_ids=ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5
    )


def test_an_empty_adapter_is_not_saved(tmp_path):
    with pytest.raises(AdapterError, match="no adapter"):
        save_peft(tmp_path, AdapterState(), base_model="x", causal=True)
