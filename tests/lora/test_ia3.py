"""IA3 on a module is PEFT's IA3, layer for layer and number for number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import IA3Config, get_peft_model
from peft.tuners.ia3 import IA3Layer

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import (
    attach_ia3,
    detach,
    ia3_key,
    ia3_shapes,
    ia3_vectors,
    linear_names,
)
from tests.families import FAMILIES, UNKNOWN_TO_PEFT, batch, build

KNOWN = sorted(set(FAMILIES) - UNKNOWN_TO_PEFT)


def drawn(model):
    return {
        name: torch.empty(shape).uniform_(0.5, 1.5).numpy()
        for name, shape in ia3_shapes(model).items()
    }


def pefts_layers(model):
    """The oracle: what PEFT adapts of a model when it is told nothing."""
    kind = "CAUSAL_LM" if "CausalLM" in type(model).__name__ else None
    made = get_peft_model(model, IA3Config(task_type=kind))
    base = made.base_model.model
    return {n: m for n, m in base.named_modules() if isinstance(m, IA3Layer)}


@pytest.mark.parametrize("family", KNOWN)
def test_the_layers_and_the_shapes_are_pefts(family):
    model = build(family)
    found = ia3_shapes(model)
    expected = pefts_layers(model)
    shapes = {n: tuple(m.ia3_l["default"].shape) for n, m in expected.items()}
    assert found == shapes
    for name, layer in expected.items():
        assert layer.is_feedforward == (found[name][0] == 1)


@pytest.mark.parametrize("family", KNOWN)
def test_an_attached_model_computes_what_pefts_computes(family):
    model, given = build(family), batch(family, "right")
    vectors = drawn(model)
    attach_ia3(model, vectors)
    out = model(**given)
    detach(model)
    for name, layer in pefts_layers(model).items():
        layer.ia3_l["default"].data = torch.from_numpy(vectors[name])
    torch.testing.assert_close(out.logits, model(**given).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_vectors_of_ones_change_nothing_and_come_off(family):
    model, given = build(family), batch(family)
    names, before = linear_names(model), model(**given).logits
    ones = {n: np.ones(s, np.float32) for n, s in ia3_shapes(model).items()}
    trained = attach_ia3(model, ones)
    assert torch.equal(model(**given).logits, before)
    assert linear_names(model) == names
    own = {id(p) for p in model.parameters() if p.requires_grad}
    assert own == {id(p) for p in trained.values()}
    detach(model)
    assert not any(isinstance(m, IA3Layer) for m in model.modules())
    assert torch.equal(model(**given).logits, before)


def test_vectors_stay_in_float32_on_a_base_in_half_precision():
    model = build("llama").bfloat16()
    trained = attach_ia3(model, drawn(model))
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert model(**batch("llama")).logits.dtype == torch.bfloat16


def test_vectors_are_found_among_dense_arrays_by_pefts_name():
    assert ia3_vectors({ia3_key("a.b"): 1, "classifier.weight": 2}) == {"a.b": 1}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.mlp.down_proj", (47, 1)),
        ("model.layers.0.mlp.down_proj", (48,)),
        ("model.layers.9.mlp.down_proj", (1, 48)),
        ("model.norm", (1, 32)),
    ],
)
def test_a_vector_of_no_layer_or_another_shape_is_refused_by_name(name, shape):
    with pytest.raises(AdapterError, match=name):
        attach_ia3(build("llama"), {name: np.ones(shape, np.float32)})


def test_a_type_of_model_that_peft_has_no_layers_for_is_refused():
    with pytest.raises(AdapterError, match=r"'distilbert'.*llama"):
        ia3_shapes(build("distilbert"))
