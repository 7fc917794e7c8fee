from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from atlas_flwr.errors import AdapterError
from atlas_flwr.lora import LoraFactors, Scaling, attach, fold


def product(m=4, n=3):
    return LoraFactors(torch.randn(2, n), torch.randn(m, 2), 0.3)


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), Conv1D(4, 3)])
def test_a_folded_layer_computes_what_the_layer_and_the_product_do(layer):
    module, found, x = nn.ModuleDict({"q": layer}), product(), torch.randn(5, 3)
    wanted = layer(x) + x @ found.delta().T
    fold(module, {"q": found})
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize(
    ("name", "found", "dtype", "sentence"),
    [
        ("k", product(), torch.float32, "'k' is NoneType"),
        ("q", product(m=5), torch.float32, r"shape \(4, 3\)"),
        ("q", product(), torch.bfloat16, "aggregation='truncate' folds nothing"),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(name, found, dtype, sentence):
    module = nn.ModuleDict({"q": nn.Linear(3, 4, dtype=dtype)})
    with pytest.raises(AdapterError, match=sentence):
        fold(module, {name: found})


def test_an_adapted_layer_is_refused():
    module = nn.ModuleDict({"0": nn.ModuleDict({"q": nn.Linear(3, 4)})})
    attach(module, {"0.q": 1}, Scaling(1.0))
    with pytest.raises(AdapterError, match="not a linear layer without adapters"):
        fold(module, {"0.q": product()})
